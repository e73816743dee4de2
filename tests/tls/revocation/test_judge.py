"""Whether a peer is refused by the lists, beside the verdict of OpenSSL."""

import subprocess
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from relay.demo.ca import Authority, LeafSpec, _builder, _leaf_extensions, make_key, to_pem
from relay.errors import Reason, Side
from relay.tls.certificates.configured import ChainRules
from relay.tls.explain import Failure
from relay.tls.identity import Identity, _parse
from relay.tls.revocation.crl import entries_of, parse_list
from relay.tls.revocation.judge import why_revoked
from relay.tls.revocation.revoked_cas import revoked_cas
from relay.tls.revocation.revoked_set import RevokedSet, build, pack
from relay.tls.revocation.selection import select
from relay.tls.trust import CaTrust, ClientTrust, CrlPolicy
from tests.support.crls import COMPROMISED, HOLD, REMOVED, make_crl
from tests.support.crls import to_pem as lists_to_pem
from tests.support.pki import parsed
from tests.support.programs import program

ROOT = Authority.root("Root")
ISSUING = ROOT.intermediate("Issuing")
NAMESAKE = ROOT.intermediate("Issuing")
OLD = timedelta(days=3)
A, B = "http://crl.test/a.crl", "http://crl.test/b.crl"


def issue(authority, *, points=(), key_identifiers=True, serial=None):
    """A leaf with these distribution points."""
    spec = LeafSpec("alice", purposes=("client",), key_identifiers=key_identifiers)
    if not points and serial is None:
        return authority.issue(spec).certificate
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
    return builder.sign(authority.key, hashes.SHA256())


def identity(certificate: x509.Certificate) -> Identity:
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
    "an issuer that the client sent": Case(
        GOOD,
        (ROOTS,),
        trusted=(ROOT,),
        reason=Reason.CRL_MISSING,
        says=f'{UNKNOWN} "CN=Issuing"',
    ),
}
all_cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def set_of(case: Case) -> RevokedSet:
    cas = [parsed(each.certificate) for each in case.trusted]
    lists = [parse_list("list", each) for each in case.lists]
    found = select(lists, cas, time.time(), lambda crl, key: pack(key, entries_of(crl)))
    assert found.errors == []
    return RevokedSet(build(found.lists))


def trust_of(case: Case) -> ClientTrust:
    cas = CaTrust.of([parsed(each.certificate) for each in case.trusted], {})
    return ClientTrust(None, cas, case.policy)


def judged(case: Case, *, resumed: bool = False, revoked=None, side=Side.INBOUND, now_at=None):
    chain = () if resumed else tuple(identity(each.certificate) for each in case.above)
    now_at = now_at or time.time()
    revoked = revoked or set_of(case)
    found = why_revoked(side, identity(case.leaf), chain, trust_of(case), revoked, now_at)
    # What was remembered of the chain changes nothing.
    assert why_revoked(side, identity(case.leaf), chain, trust_of(case), revoked, now_at) == found
    return found


@all_cases
def test_a_full_handshake_is_judged_by_the_chain(case):
    found = judged(case)
    assert (found and found.reason) == case.reason
    assert case.says in (found.detail if found else "")


@all_cases
def test_a_resumption_is_judged_by_the_leaf(case):
    found = judged(case, resumed=True)
    assert (found and found.reason) == (case.reason if case.resumed == "the same" else case.resumed)


@all_cases
def test_openssl_agrees(case, tmp_path):
    (tmp_path / "leaf.pem").write_bytes(to_pem([case.leaf]))
    (tmp_path / "root.pem").write_bytes(to_pem([ROOT.certificate]))
    (tmp_path / "chain.pem").write_bytes(to_pem(each.certificate for each in case.above))
    (tmp_path / "lists.pem").write_bytes(lists_to_pem(*case.lists))
    command = [program("openssl"), "verify", "-CAfile", "root.pem", "-untrusted", "chain.pem"]
    if case.lists:
        command += ["-CRLfile", "lists.pem"]
    command += ["-crl_check_all", "-extended_crl", "-use_deltas", "leaf.pem"]
    done = subprocess.run(command, check=False, timeout=30, capture_output=True, cwd=tmp_path)
    expected = case.reason is None if case.openssl is None else case.openssl
    assert (done.returncode == 0) == expected, done.stdout + done.stderr


def test_a_backend_has_reasons_of_its_own():
    pairs = {
        "leaf revoked": Reason.BACKEND_REVOKED,
        "no list at all": Reason.BACKEND_CRL_MISSING,
        "the issuer's list expired": Reason.BACKEND_CRL_EXPIRED,
    }
    for name, reason in pairs.items():
        assert judged(CASES[name], side=Side.OUTBOUND).reason == reason


def test_a_list_that_expires_while_it_is_used_refuses():
    for name in ("good", "good, below the root"):
        case = CASES[name]
        revoked = set_of(case)
        assert judged(case, revoked=revoked) is None
        later = judged(case, revoked=revoked, now_at=time.time() + 30 * 86400)
        assert later.reason is Reason.CRL_EXPIRED
        assert "has expired" in later.detail


def test_a_chain_that_passed_does_not_speak_for_another_one():
    good = CASES["good"]
    revoked = set_of(good)
    assert judged(good, revoked=revoked) is None
    twin = Case(OF_NAMESAKE, good.lists, (NAMESAKE, ROOT))
    assert judged(twin, revoked=revoked).reason is Reason.CRL_MISSING


def test_without_a_set_every_list_is_missing():
    case = CASES["good"]
    chain = tuple(identity(each.certificate) for each in case.above)
    for policy, reason in (
        (CrlPolicy(), Reason.CRL_MISSING),
        (CrlPolicy(True), None),
        (None, None),
    ):
        trust = ClientTrust(None, trust_of(case).cas, policy)
        found = why_revoked(Side.INBOUND, identity(case.leaf), chain, trust, None, time.time())
        assert (found and found.reason) == reason


def test_a_resumption_below_an_unknown_ca_is_refused_with_its_name():
    case = CASES["an issuer that the client sent"]
    found = judged(case, resumed=True)
    assert found.detail == (
        'the CA that issued it, "CN=Issuing", is not trusted here, so no list covers it'
    )


def test_a_chain_that_ends_at_a_revoked_intermediate_is_refused():
    """With partial_chain, the root that revoked it is not in the chain."""
    lists = (make_crl(ROOT, [ISSUING.certificate]), EMPTY)
    case = Case(GOOD, lists, (ISSUING,), trusted=(ROOT, ISSUING))
    cas = [parsed(each.certificate) for each in case.trusted]
    revoked = set_of(case)
    gone = revoked_cas(cas, revoked)
    rules = ChainRules(partial_chain=True)
    trust = ClientTrust(None, CaTrust.of([e for e in cas if e not in gone], {}, rules), case.policy)
    chain = (identity(ISSUING.certificate),)
    found = why_revoked(Side.INBOUND, identity(GOOD), chain, trust, revoked, time.time())
    assert found == Failure(
        Reason.REVOKED, 'the CA "CN=Issuing", where its chain ends, is revoked itself'
    )
    unrevoked = set_of(Case(GOOD, (EMPTY,), trusted=(ROOT, ISSUING)))
    trust = ClientTrust(None, CaTrust.of(cas, {}, rules), case.policy)
    assert why_revoked(Side.INBOUND, identity(GOOD), chain, trust, unrevoked, time.time()) is None
