"""Certificates with their lists, and what follows for a handshake."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from relay.demo.ca import Authority, Leaf, LeafSpec, _builder, _leaf_extensions, make_key
from relay.errors import Reason
from relay.tls.identity import Identity, _parse
from relay.tls.revocation.crl import entries_of, parse_list
from relay.tls.revocation.revoked_set import RevokedSet, build, pack
from relay.tls.revocation.selection import select
from relay.tls.trust import CaTrust, ClientTrust, CrlPolicy
from tests.support.crls import COMPROMISED, HOLD, REMOVED, make_crl, with_name
from tests.support.pki import parsed

ROOT = Authority.root("Root")
ISSUING = ROOT.intermediate("Issuing")
NAMESAKE = ROOT.intermediate("Issuing")
RENAMED = with_name(ISSUING, "Renamed")
OLD = timedelta(days=3)
A, B = "http://crl.test/a.crl", "http://crl.test/b.crl"


_LEAVES: dict[x509.Certificate, Leaf] = {}


def leaf_of(certificate: x509.Certificate) -> Leaf:
    """A certificate of a case with its key, and the intermediates to send."""
    return _LEAVES[certificate]


def issue(
    authority: Authority,
    *,
    points: tuple[str, ...] = (),
    key_identifiers: bool = True,
    serial: int | None = None,
) -> x509.Certificate:
    """A leaf with these distribution points."""
    leaf = _issue(authority, points, serial, key_identifiers=key_identifiers)
    _LEAVES[leaf.certificate] = leaf
    return leaf.certificate


def _issue(
    authority: Authority, points: tuple[str, ...], serial: int | None, *, key_identifiers: bool
) -> Leaf:
    spec = LeafSpec("alice", purposes=("client",), key_identifiers=key_identifiers)
    if not points and serial is None:
        return authority.issue(spec)
    key = make_key("ec-p256")
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "alice")])
    builder = _builder(name, authority.certificate.subject, key, None, None)
    if serial is not None:
        builder = x509.CertificateBuilder(
            authority.certificate.subject,
            name,
            key.public_key(),
            serial,
            authority.certificate.not_valid_before_utc,
            authority.certificate.not_valid_after_utc,
        )
    builder = _leaf_extensions(builder, spec, key, authority.key)
    if points:
        builder = builder.add_extension(
            x509.CRLDistributionPoints(
                [
                    x509.DistributionPoint([x509.UniformResourceIdentifier(each)], None, None, None)
                    for each in points
                ]
            ),
            critical=False,
        )
    return Leaf(builder.sign(authority.key, hashes.SHA256()), key, authority.above)


def identity(certificate: x509.Certificate) -> Identity:
    """What the relay reads in it."""
    der = certificate.public_bytes(Encoding.DER)
    return _parse(parsed(certificate).pointer, der, certificate.fingerprint(hashes.SHA256()))


@dataclass
class Case:
    """A leaf, the CAs above it from its issuer to the root, and the lists in use."""

    leaf: x509.Certificate
    lists: tuple[bytes, ...]
    above: tuple[Authority, ...] = (ISSUING, ROOT)
    reason: Reason | None = None
    says: str = ""
    resumed: Any = "the same"  # the reason after a resumption, if it is another one
    openssl: bool | None = None  # OpenSSL's verdict, if it differs
    trusted: tuple[Authority, ...] = (ROOT, ISSUING, NAMESAKE)
    policy: CrlPolicy = field(default_factory=CrlPolicy)


GOOD = issue(ISSUING)
BELOW_ROOT = issue(ROOT)
SHARDED = issue(ISSUING, points=(A,))
TWO_POINTS = issue(ISSUING, points=(B, A))
NO_KEY_ID = issue(ISSUING, key_identifiers=False)
OF_NAMESAKE = issue(NAMESAKE, serial=GOOD.serial_number)
ROOTS, EMPTY = make_crl(ROOT), make_crl(ISSUING)
USERS, CAS = {"only_contains_user_certs": True}, {"only_contains_ca_certs": True}
# Without this extension, OpenSSL ignores deltas.
HAS_DELTAS = [
    (
        x509.FreshestCRL(
            [x509.DistributionPoint([x509.UniformResourceIdentifier(B)], None, None, None)]
        ),
        False,
    )
]
UNKNOWN = "there is no revocation list of"

CASES = {
    "good": Case(GOOD, (ROOTS, EMPTY)),
    "good, below the root": Case(BELOW_ROOT, (ROOTS,), (ROOT,)),
    "leaf revoked": Case(
        GOOD,
        (ROOTS, make_crl(ISSUING, [(GOOD, COMPROMISED)], number=17)),
        reason=Reason.REVOKED,
        says='revoked 2026-11-26 (key compromise), CRL 17 of "CN=Issuing" from list, next update',
    ),
    "leaf on hold": Case(
        GOOD,
        (ROOTS, make_crl(ISSUING, [(GOOD, HOLD)])),
        reason=Reason.REVOKED,
        says="(certificate hold)",
    ),
    "intermediate revoked": Case(
        GOOD,
        (make_crl(ROOT, [(ISSUING.certificate, COMPROMISED)]), EMPTY),
        reason=Reason.REVOKED,
        says='its issuer "CN=Issuing" (certificate 1 of its chain) is revoked 2026-11-26',
        resumed=None,  # a revoked CA is no longer trusted: its tickets do not count
    ),
    "the issuer's list is missing": Case(
        GOOD, (ROOTS,), reason=Reason.CRL_MISSING, says=f'{UNKNOWN} "CN=Issuing"'
    ),
    "the root's list is missing": Case(
        GOOD,
        (EMPTY,),
        reason=Reason.CRL_MISSING,
        says=f'{UNKNOWN} "CN=Root", which issued the certificate "CN=Issuing" (number 1',
        resumed=None,
    ),
    "no list at all": Case(GOOD, (), reason=Reason.CRL_MISSING),
    "the issuer's list expired": Case(
        GOOD,
        (ROOTS, make_crl(ISSUING, number=3, age=OLD, lasts=timedelta(days=1))),
        reason=Reason.CRL_EXPIRED,
        says='CRL 3 of "CN=Issuing" from list has expired 20',
    ),
    "the root's list expired": Case(
        GOOD,
        (make_crl(ROOT, age=OLD, lasts=timedelta(days=1)), EMPTY),
        reason=Reason.CRL_EXPIRED,
        says='for the certificate "CN=Issuing" (number 1 of its chain) has expired',
        resumed=None,
    ),
    "revoked by an expired list": Case(
        GOOD,
        (ROOTS, make_crl(ISSUING, [GOOD], age=OLD, lasts=timedelta(days=1))),
        reason=Reason.REVOKED,
    ),
    "the namesake's list alone": Case(
        GOOD, (ROOTS, make_crl(NAMESAKE)), reason=Reason.CRL_MISSING, says=f'{UNKNOWN} "CN=Issuing"'
    ),
    "the namesake revoked this serial": Case(GOOD, (ROOTS, EMPTY, make_crl(NAMESAKE, [GOOD]))),
    "the namesake's leaf of the same serial": Case(
        OF_NAMESAKE, (ROOTS, make_crl(ISSUING, [GOOD]), make_crl(NAMESAKE)), (NAMESAKE, ROOT)
    ),
    "without key id, revoked": Case(
        NO_KEY_ID,
        (ROOTS, make_crl(ISSUING, [NO_KEY_ID]), make_crl(NAMESAKE)),
        reason=Reason.REVOKED,
    ),
    "without key id, a namesake revoked this serial": Case(
        NO_KEY_ID,
        (ROOTS, EMPTY, make_crl(NAMESAKE, [NO_KEY_ID])),
        resumed=Reason.REVOKED,  # its issuer may be either, so the answer is no
    ),
    "in its shard": Case(SHARDED, (ROOTS, make_crl(ISSUING, scope={"uris": (A,)}))),
    "in one of its two points": Case(TWO_POINTS, (ROOTS, make_crl(ISSUING, scope={"uris": (A,)}))),
    "revoked in its shard": Case(
        SHARDED, (ROOTS, make_crl(ISSUING, [SHARDED], scope={"uris": (A,)})), reason=Reason.REVOKED
    ),
    "another shard": Case(
        SHARDED,
        (ROOTS, make_crl(ISSUING, scope={"uris": (B,)})),
        reason=Reason.CRL_MISSING,
        says=f"its distribution points are {A}, and the lists of its issuer have only a part",
    ),
    "a shard, and no distribution point": Case(
        GOOD,
        (ROOTS, make_crl(ISSUING, scope={"uris": (A,)})),
        reason=Reason.CRL_MISSING,
        says="its distribution points are none",
    ),
    "its shard expired, another one not": Case(
        SHARDED,
        (
            ROOTS,
            make_crl(ISSUING, scope={"uris": (A,)}, age=OLD, lasts=timedelta(days=1)),
            make_crl(ISSUING, scope={"uris": (B,)}),
        ),
        reason=Reason.CRL_EXPIRED,
    ),
    "lists of users and of CAs": Case(
        GOOD, (make_crl(ROOT, scope=CAS), make_crl(ISSUING, scope=USERS))
    ),
    "a list of CAs for a leaf": Case(
        GOOD, (ROOTS, make_crl(ISSUING, scope=CAS)), reason=Reason.CRL_MISSING
    ),
    "a list of users for a CA": Case(
        GOOD, (make_crl(ROOT, scope=USERS), EMPTY), reason=Reason.CRL_MISSING, resumed=None
    ),
    "several lists, one revokes": Case(
        SHARDED,
        (ROOTS, EMPTY, make_crl(ISSUING, [SHARDED], scope={"uris": (A,)})),
        reason=Reason.REVOKED,
        openssl=True,  # it stops at the first list that covers the certificate
    ),
    "revoked by a delta": Case(
        GOOD,
        (
            ROOTS,
            make_crl(ISSUING, number=4, extensions=HAS_DELTAS),
            make_crl(ISSUING, [GOOD], number=5, base=4),
        ),
        reason=Reason.REVOKED,
    ),
    "on hold, and removed by a delta": Case(
        GOOD,
        (
            ROOTS,
            make_crl(ISSUING, [(GOOD, HOLD)], number=4, extensions=HAS_DELTAS),
            make_crl(ISSUING, [(GOOD, REMOVED)], number=5, base=4),
        ),
    ),
    "missing lists are accepted": Case(
        GOOD, (), policy=CrlPolicy(accepts_missing=True), openssl=False
    ),
    "missing lists are accepted, revoked": Case(
        GOOD,
        (make_crl(ISSUING, [GOOD]),),
        policy=CrlPolicy(accepts_missing=True),
        reason=Reason.REVOKED,
    ),
    "missing lists are accepted, expired": Case(
        GOOD,
        (make_crl(ISSUING, age=OLD, lasts=timedelta(days=1)),),
        policy=CrlPolicy(accepts_missing=True),
        reason=Reason.CRL_EXPIRED,
    ),
    "expired in grace": Case(
        GOOD,
        (ROOTS, make_crl(ISSUING, age=OLD, lasts=timedelta(days=1))),
        policy=CrlPolicy(grace_s=2.5 * 86400),
        openssl=False,
    ),
    "expired and out of grace": Case(
        GOOD,
        (ROOTS, make_crl(ISSUING, age=OLD, lasts=timedelta(days=1))),
        policy=CrlPolicy(grace_s=86400),
        reason=Reason.CRL_EXPIRED,
    ),
    "in grace and revoked": Case(
        GOOD,
        (ROOTS, make_crl(ISSUING, [GOOD], age=OLD, lasts=timedelta(days=1))),
        policy=CrlPolicy(grace_s=2.5 * 86400),
        reason=Reason.REVOKED,
    ),
    "its CA's list expired, another name's of the same key not": Case(
        GOOD,
        (ROOTS, make_crl(ISSUING, age=OLD, lasts=timedelta(days=1)), make_crl(RENAMED)),
        reason=Reason.CRL_EXPIRED,
        trusted=(ROOT, ISSUING, RENAMED),
    ),
    "another name of the same key has a list": Case(
        GOOD,
        (ROOTS, make_crl(RENAMED)),
        reason=Reason.CRL_MISSING,
        says=f'{UNKNOWN} "CN=Issuing"',
        trusted=(ROOT, ISSUING, RENAMED),
    ),
    "an issuer that the client sent": Case(
        GOOD,
        (ROOTS,),
        trusted=(ROOT,),
        reason=Reason.CRL_MISSING,
        says=f'{UNKNOWN} "CN=Issuing"',
    ),
}


def set_of(case: Case) -> RevokedSet:
    """The set of a case's lists."""
    cas = [parsed(each.certificate) for each in case.trusted]
    lists = [parse_list("list", each) for each in case.lists]
    found = select(lists, cas, time.time(), lambda crl, key: pack(key, entries_of(crl)))
    assert found.errors == []
    return RevokedSet(build(found.lists))


def trust_of(case: Case) -> ClientTrust:
    """The CAs and the policy of a case."""
    cas = CaTrust.of([parsed(each.certificate) for each in case.trusted], {})
    return ClientTrust(None, cas, case.policy)
