"""Whether a peer of earlier would be admitted by other CAs."""

import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from relay.demo.ca import Authority, LeafSpec
from relay.tls.identity import _parse
from relay.tls.standing import Standing, has_lost_none, standing, valid_until
from relay.tls.trust import CaTrust
from relay.tls.trust_store import valid_until as ends_of
from tests.support.pki import parsed

ROOT, OTHER, TWIN = Authority.root("Root"), Authority.root("Other"), Authority.root("Root")
BELOW = ROOT.intermediate("Below")


def identity(certificate):
    der = certificate.public_bytes(Encoding.DER)
    return _parse(parsed(certificate).pointer, der, hashlib.sha256(der).digest())


def trust(*authorities):
    certificates = [parsed(each.certificate) for each in authorities]
    return CaTrust.of(certificates, ends_of(certificates))


def peer(authority, **spec):
    """A leaf and the chain that a full handshake verifies; [] is a resumption's."""
    issued = authority.issue(LeafSpec("leaf", **spec))
    above = [*issued.intermediates, ROOT.certificate]
    return identity(issued.certificate), tuple(map(identity, above))


CASES = {
    "the same": ([ROOT], [ROOT], Standing.TRUSTED),
    "one more": ([ROOT], [ROOT, OTHER], Standing.TRUSTED),
    "another one is gone": ([ROOT, OTHER], [ROOT], Standing.TRUSTED),
    "its own is gone": ([ROOT, OTHER], [OTHER], Standing.GONE),
    "its own is replaced": ([ROOT], [OTHER], Standing.GONE),
    "a namesake takes its place": ([ROOT], [TWIN], Standing.GONE),
    "a namesake is gone": ([ROOT, TWIN], [ROOT], Standing.TRUSTED),
    "its own is gone, a namesake is left": ([ROOT, TWIN], [TWIN], Standing.GONE),
    "all are gone": ([ROOT], [], Standing.GONE),
}


@pytest.mark.parametrize(("then", "now", "expected"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("resumed", [False, True], ids=["full", "resumed"])
def test_a_peer_stands_with_the_ca_that_it_leads_to(then, now, expected, resumed):
    who, chain = peer(ROOT)
    assert standing(who, () if resumed else chain, trust(*then), trust(*now)) is expected


@pytest.mark.parametrize(
    ("now", "expected"),
    [([ROOT], Standing.TRUSTED), ([ROOT, TWIN], Standing.TRUSTED), ([TWIN], Standing.UNKNOWN)],
)
def test_namesakes_without_key_identifiers_must_all_be_left(now, expected):
    who, chain = peer(ROOT, key_identifiers=False)
    then = trust(ROOT) if now == [ROOT] else trust(ROOT, TWIN)
    assert standing(who, (), then, trust(*now)) is expected
    full = Standing.GONE if expected is Standing.UNKNOWN else Standing.TRUSTED
    assert standing(who, chain, then, trust(*now)) is full


def test_a_chain_through_an_intermediate_stands_with_its_root():
    who, chain = peer(BELOW)
    then = trust(ROOT, OTHER)
    assert standing(who, chain, then, trust(ROOT)) is Standing.TRUSTED
    assert standing(who, chain, then, trust(OTHER)) is Standing.GONE


def test_a_resumption_below_a_clients_own_intermediate_cannot_be_judged():
    who, _ = peer(BELOW)
    then = trust(ROOT, OTHER)
    assert standing(who, (), then, trust(ROOT, OTHER, TWIN)) is Standing.TRUSTED
    assert standing(who, (), then, trust(ROOT)) is Standing.UNKNOWN


def test_a_certificate_that_is_in_the_file_itself_stands():
    who = identity(ROOT.certificate)
    assert standing(who, (), trust(ROOT, OTHER), trust(ROOT)) is Standing.TRUSTED
    assert standing(who, (), trust(ROOT, OTHER), trust(OTHER)) is Standing.GONE


def test_a_renewed_ca_with_its_key_has_lost_nobody():
    longer = Authority.root("Root")
    assert has_lost_none(trust(ROOT), trust(ROOT, longer))
    assert not has_lost_none(trust(ROOT), trust(longer))
    assert has_lost_none(trust(), trust(ROOT))


def test_a_peer_is_valid_until_the_first_of_its_chain_expires():
    now = datetime.now(UTC).replace(microsecond=0)
    soon, later = now + timedelta(hours=1), now + timedelta(hours=2)
    root = Authority.root("Short", not_after=later)
    below = root.intermediate("Shorter", not_after=soon)
    issued = below.issue(LeafSpec("leaf"))
    who = identity(issued.certificate)
    chain = (identity(below.certificate), identity(root.certificate))
    cas = trust(root)
    assert valid_until(who, chain, cas) == soon.timestamp()
    assert valid_until(who, (), cas) == who.not_after_at, "the issuer is not known"
    direct = identity(root.issue(LeafSpec("leaf")).certificate)
    assert valid_until(direct, (), cas) == later.timestamp()
    renewed = CaTrust(dict.fromkeys(cas.valid_until, later.timestamp() + 3600), cas.keys)
    assert valid_until(direct, chain[1:], renewed) == later.timestamp() + 3600
