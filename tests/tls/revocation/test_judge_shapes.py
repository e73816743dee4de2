"""The judge agrees with the rules, written down plainly, for lists of any kind."""

from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from relay.errors import Reason, Side
from relay.tls.certificates.revocation_fields import RevocationFields
from relay.tls.revocation.distribution_points import Scope
from relay.tls.revocation.fields import RevokedEntry
from relay.tls.revocation.judge import why_revoked
from relay.tls.revocation.revoked_set import ListInfo, RevokedSet, build, pack
from relay.tls.trust import CaKey, CaTrust, ClientTrust, CrlPolicy, issuers_in
from tests.support.identities import ALICE
from tests.support.odd import tlv

NOW = 1_000_000.0
KEYS = [bytes([number]) * 32 for number in range(4)]
NAMES = [b"name one", b"name two"]
IDS = [b"", b"id one", b"id two"]
URIS = ["http://a/", "http://b/"]


class Listed(NamedTuple):
    """One list as the model sees it."""

    key: bytes
    serials: frozenset[bytes]
    next_update: float | None
    scope: Scope


def points(uris):
    """A cRLDistributionPoints with one point for each."""
    each = (tlv(0x30, tlv(0xA0, tlv(0xA0, tlv(0x86, uri.encode())))) for uri in uris)
    return tlv(0x30, b"".join(each)) if uris else b""


serials = st.sampled_from([b"\x01", b"\x02", b"\x03"])
scopes = st.builds(
    Scope,
    st.lists(st.sampled_from(URIS), max_size=2).map(tuple),
    st.sampled_from(["", "user", "ca"]),
)
certificates = st.builds(
    lambda number, key, name, issuer, identifier, serial, uris, ca: (
        replace(
            ALICE,
            subject=f"CN={number}",
            fingerprint=f"{number}{key}{serial}{uris}{ca}",
            spki_sha256=key,
            issuer_der=issuer,
            for_lists=RevocationFields(name, serial, identifier, points(uris), ca),
        ),
        frozenset(uris),
    ),
    st.integers(0, 3),
    st.sampled_from(KEYS),
    st.sampled_from(NAMES),
    st.sampled_from(NAMES),
    st.sampled_from(IDS),
    serials,
    st.lists(st.sampled_from(URIS), max_size=2, unique=True).map(tuple),
    st.sampled_from([True, False, None]),
)
lists = st.builds(
    Listed,
    st.sampled_from(KEYS),
    st.frozensets(serials, max_size=2),
    st.sampled_from([None, 0.0, NOW - 100, NOW - 10, NOW, NOW + 10]),
    scopes,
)
policies = st.builds(CrlPolicy, st.booleans(), st.sampled_from([0.0, 50.0]))
authorities = st.dictionaries(
    st.sampled_from(NAMES),
    st.lists(st.builds(CaKey, st.sampled_from(KEYS), st.sampled_from(IDS)), min_size=1).map(tuple),
)


def verdict(certificate, uris, key, listed, policy):
    """The rules for one certificate below one key, as an operator would write them."""
    fields = certificate.for_lists
    own = [each for each in listed if each.key == key]
    if any(fields.serial in each.serials for each in own):
        return Reason.REVOKED
    covering = [
        each
        for each in own
        if each.scope == Scope()
        or (
            fields.is_ca is not None
            and each.scope.only in {"", "ca" if fields.is_ca else "user"}
            and (not each.scope.uris or uris & set(each.scope.uris))
        )
    ]
    if any(
        each.next_update is None or each.next_update + policy.grace_s >= NOW for each in covering
    ):
        return None
    if covering:
        return Reason.CRL_EXPIRED
    return None if policy.accepts_missing else Reason.CRL_MISSING


def set_of(listed):
    infos = [
        (
            ListInfo(each.key, "CN=CA", 1, NOW - 1000, each.next_update, each.scope, "a.crl"),
            pack(each.key, [RevokedEntry(serial, 1, 0) for serial in sorted(each.serials)]),
        )
        for each in listed
    ]
    return RevokedSet(build(infos))


@settings(max_examples=400)
@given(
    st.lists(certificates, min_size=2, max_size=4),
    st.frozensets(st.sampled_from(KEYS)),
    st.frozensets(st.sampled_from(KEYS)),
    st.lists(lists, max_size=5),
    policies,
)
def test_full_handshakes(chain, trusted, gone, listed, policy):
    end = chain[-1][0].spki_sha256
    expected = None if end in trusted else Reason.REVOKED if end in gone else Reason.UNKNOWN_CA
    for (certificate, uris), (above, _) in pairwise(chain):
        expected = expected or verdict(certificate, uris, above.spki_sha256, listed, policy)
    (who, _), *above = chain
    revoked = set_of(listed)
    trust = ClientTrust(None, CaTrust(key_ids=trusted, revoked_ids=gone - trusted), policy)
    issuers = tuple(each for each, _ in above)
    for _ in range(2):  # the second time, the upper part is remembered
        found = why_revoked(Side.INBOUND, who, issuers, trust, revoked, NOW)
        assert (found and found.reason) == expected


@settings(max_examples=400)
@given(certificates, authorities, st.lists(lists, max_size=5), policies)
def test_resumed_handshakes(leaf, keys, listed, policy):
    who, uris = leaf
    identifier = who.for_lists.issuer_key_id
    named = keys.get(who.issuer_der)
    if named is None:
        every = [key for several in keys.values() for key in several]
        possible = [key for key in every if identifier and key.identifier == identifier]
    else:
        possible = [key for key in named if not (identifier and key.identifier)] + [
            key for key in named if identifier and key.identifier == identifier
        ]
    verdicts = {verdict(who, uris, key.key_id, listed, policy) for key in possible}
    unknown = None if policy.accepts_missing else Reason.CRL_MISSING
    allowed = verdicts or {unknown}
    trust = ClientTrust(None, CaTrust({}, keys, b"", issuers_in(keys)), policy)
    found = why_revoked(Side.INBOUND, who, (), trust, set_of(listed), NOW)
    if found is None:
        assert allowed == {None}
    else:
        assert found.reason in allowed
