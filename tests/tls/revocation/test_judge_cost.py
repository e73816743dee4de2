"""What a look-up in revocation lists costs a handshake."""

import time
from dataclasses import replace

import pytest

from relay.demo.ca import Authority
from relay.errors import Side
from relay.tls.revocation.distribution_points import Scope
from relay.tls.revocation.fields import RevokedEntry
from relay.tls.revocation.judge import why_revoked
from relay.tls.revocation.revoked_set import ListInfo, RevokedSet, build, pack
from relay.tls.trust import CaTrust, ClientTrust, CrlPolicy
from tests.support.odd import tlv
from tests.support.pki import parsed
from tests.support.revocation_cases import identity, issue

ENTRIES, TIMES = 200_000, 2_000
# Microseconds, the best of ten. Measured (AMD EPYC, CPython 3.11, one million entries):
# 1.7 below the root, 1.9 below an intermediate, 1.8 in a resumption, 1.7 with a hundred
# shards. A machine with other work takes longer.
MOST_US = 8.0
ROOT = Authority.root("Root")
ISSUING = ROOT.intermediate("Issuing")
SHARDS = 100


def set_of(scopes):
    """A set with the lists of both CAs; those of the root have these scopes."""
    entries = [RevokedEntry(number.to_bytes(16), 20_000, 1) for number in range(1, ENTRIES)]
    lists = []
    for who, each in [(ROOT, scope) for scope in scopes] + [(ISSUING, Scope())]:
        key = identity(who.certificate).spki_sha256
        info = ListInfo(key, "CN=CA", 1, 0.0, time.time() + 86_400, each, "a.crl")
        lists.append((info, pack(key, entries[: ENTRIES // len(scopes)])))
    return RevokedSet(build(lists))


@pytest.fixture(scope="module")
def complete():
    return set_of([Scope()])


@pytest.fixture(scope="module")
def sharded():
    return set_of([Scope((f"http://crl.test/{number}",)) for number in range(SHARDS)])


def took_us(who, chain, revoked):
    cas = [parsed(each.certificate) for each in (ROOT, ISSUING)]
    trust, now_at = ClientTrust(None, CaTrust.of(cas, {}), CrlPolicy()), time.time()
    assert why_revoked(Side.INBOUND, who, chain, trust, revoked, now_at) is None
    best = float("inf")
    for _ in range(10):
        before = time.thread_time()
        for _ in range(TIMES):
            why_revoked(Side.INBOUND, who, chain, trust, revoked, now_at)
        best = min(best, time.thread_time() - before)
    return best / TIMES * 1e6


root, issuing = identity(ROOT.certificate), identity(ISSUING.certificate)
below_root, below_issuing = identity(issue(ROOT)), identity(issue(ISSUING))
CASES = {
    "below the root": (below_root, (root,)),
    "below an intermediate": (below_issuing, (issuing, root)),
    "resumed": (below_issuing, ()),
}


@pytest.mark.serial
@pytest.mark.parametrize(("who", "chain"), CASES.values(), ids=CASES)
def test_a_look_up_takes_microseconds(complete, who, chain):
    assert took_us(who, chain, complete) < MOST_US


@pytest.mark.serial
def test_a_hundred_shards_cost_no_more_than_a_complete_list(sharded):
    uri = tlv(0x86, b"http://crl.test/77")
    points = tlv(0x30, tlv(0x30, tlv(0xA0, tlv(0xA0, uri))))
    who = replace(below_root, for_lists=below_root.for_lists._replace(points=points))
    assert took_us(who, (root,), sharded) < MOST_US
