"""Which backend a session gets."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.config.model import Backend, Pool
from relay.core.balance import Member, Rendezvous, RoundRobin, balancer_for, rank

ROOT = Path(__file__).parents[2]


def always(_member):
    return True


def never(_member):
    return False


def members(*weights):
    return [Member(f"worker{i}", weight) for i, weight in enumerate(weights, 1)]


def keys(count):
    return [i.to_bytes(4, "big") for i in range(0x0A000000, 0x0A000000 + count)]


def picks(balancer, count, usable=always, tried=()):
    return [balancer.pick(key, tried, usable) for key in keys(count)]


def pool(**settings):
    return Pool(backend=(Backend(route="a", address="10.0.0.1:1", weight=2), Backend(route="b", address="10.0.0.2:1")), **settings)


def test_round_robin_spreads_turns_as_nginx_does():
    assert [*map("abc".__getitem__, picks(RoundRobin(members(5, 1, 1)), 14))] == list("aabacaaaabacaa")
    assert picks(RoundRobin(members(1, 1, 1)), 6) == [0, 1, 2, 0, 1, 2]
    assert picks(RoundRobin(members(256, 256)), 4) == [0, 1, 0, 1]


@pytest.mark.parametrize("weights", [(1, 1, 1), (5, 1, 1), (3, 2), (256, 255, 1), (7,), tuple(range(1, 21))])
def test_round_robin_gives_every_member_exactly_its_weight_in_each_period(weights):
    balancer = RoundRobin(members(*weights))
    for _ in range(2):
        assert Counter(picks(balancer, sum(weights))) == dict(enumerate(weights))


def test_workers_with_different_offsets_begin_at_different_members():
    assert [RoundRobin(members(1, 1, 1), offset).pick(b"", (), always) for offset in range(5)] == [0, 1, 2, 0, 1]


def test_the_turns_of_a_lost_member_go_to_the_others_in_proportion_to_their_weights():
    counts = Counter(picks(RoundRobin(members(4, 1, 2, 3)), 10_000, lambda member: member != 0))
    assert set(counts) == {1, 2, 3}
    for member, weight in ((1, 1), (2, 2), (3, 3)):
        assert abs(counts[member] / 10_000 - weight / 6) < 0.02


def test_a_member_that_comes_back_gets_no_more_than_its_share():
    balancer = RoundRobin(members(1, 1, 1))
    picks(balancer, 1000, lambda member: member != 0)
    assert Counter(picks(balancer, 300)) == {0: 100, 1: 100, 2: 100}


@pytest.mark.parametrize("weights", [(1, 1, 1), (5, 1, 1), (1, 2, 3, 4)])
def test_rendezvous_gives_every_member_its_weight_within_two_percent(weights):
    counts = Counter(picks(Rendezvous(members(*weights)), 20_000))
    for member, weight in enumerate(weights):
        assert abs(counts[member] / 20_000 - weight / sum(weights)) < 0.02


@pytest.mark.parametrize("lost", [0, 1, 4])
def test_a_lost_member_moves_only_its_own_clients(lost):
    balancer = Rendezvous(members(1, 1, 1, 1, 1))
    before = picks(balancer, 20_000)
    after = picks(balancer, 20_000, lambda member: member != lost)
    moved = [b for b, a in zip(before, after, strict=True) if a != b]
    assert set(moved) == {lost}
    assert len(moved) / 20_000 <= 1 / 5 + 0.02
    spread = Counter(a for b, a in zip(before, after, strict=True) if b == lost)
    assert len(spread) == 4
    assert max(spread.values()) / len(moved) < 1 / 4 + 0.02


def test_a_new_member_takes_only_its_share_and_order_in_the_file_does_not_matter():
    four = members(1, 1, 1, 1)
    five = [*four, Member("worker5")]
    moved = 0
    for key in keys(5_000):
        old, new = four[rank(key, four)[0]].name, five[rank(key, five)[0]].name
        assert new in {old, "worker5"}
        moved += new != old
        assert [five[::-1][i].name for i in rank(key, five[::-1])] == [five[i].name for i in rank(key, five)]
    assert moved / 5_000 <= 1 / 5 + 0.02


def test_the_same_key_has_the_same_order_in_every_process_whatever_its_hash_seed():
    program = (
        "import json; from relay.core.balance import Member, rank; m = [Member(f'worker{i}', i) for i in range(1, 8)]; "
        "print(json.dumps([rank(i.to_bytes(4, 'big'), m) for i in range(300)]))"
    )
    found = {
        subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=True).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
    here = [list(rank(i.to_bytes(4, "big"), [Member(f"worker{i}", i) for i in range(1, 8)])) for i in range(300)]
    assert json.loads(found.pop()) == here


def test_the_order_of_preference_is_this_one_on_every_machine_and_in_every_version():
    # Written down: a change here would move the clients of everyone who upgrades.
    assert [rank(key, members(1, 2, 3)) for key in keys(6)] == [(1, 0, 2), (2, 1, 0), (2, 0, 1), (0, 1, 2), (1, 2, 0), (0, 2, 1)]


def both(weights):
    return [RoundRobin(members(*weights)), Rendezvous(members(*weights))]


@settings(deadline=None)
@given(
    weights=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    down=st.sets(st.integers(0, 5)),
    key=st.binary(max_size=20),
)
def test_a_session_that_keeps_failing_tries_the_usable_members_first_then_the_others_each_once(weights, down, key):
    everyone = set(range(len(weights)))
    for balancer in both(weights):
        tried = []
        while (member := balancer.pick(key, tried, lambda m: m not in down)) is not None:
            assert member not in tried
            tried.append(member)
        usable = everyone - down
        assert set(tried) == everyone
        assert set(tried[: len(usable)]) == usable


@pytest.mark.parametrize("balancer", both((1, 2, 3)), ids=["round robin", "rendezvous"])
def test_a_pool_whose_every_member_is_left_alone_tries_anyway(balancer):
    assert set(picks(balancer, 100, never)) == {0, 1, 2}
    assert set(picks(balancer, 100, never, tried=(0, 2))) == {1}
    assert set(picks(balancer, 10, never, tried=(0, 1, 2))) == {None}


def test_a_key_stays_on_its_second_choice_as_long_as_its_first_is_lost_and_returns():
    balancer = Rendezvous(members(1, 1, 1))
    first, second, _ = rank(b"client", members(1, 1, 1))
    assert {balancer.pick(b"client", (), always) for _ in range(5)} == {first}
    assert {balancer.pick(b"client", (), lambda m: m != first) for _ in range(5)} == {second}
    assert balancer.pick(b"client", (), always) == first


def test_the_settings_choose_the_balancer_and_stickiness_comes_first():
    plain = balancer_for(pool(), 0)
    assert isinstance(plain, RoundRobin)
    assert (plain.keyed, plain.why) == (False, "balanced")
    hashed = balancer_for(pool(balance="hash"), 0)
    assert isinstance(hashed, Rendezvous)
    assert (hashed.keyed, hashed.why) == (True, "balanced")
    for balance in ("round_robin", "hash"):
        sticky = balancer_for(pool(balance=balance, sticky="source"), 0)
        assert isinstance(sticky, Rendezvous)
        assert (sticky.keyed, sticky.why) == (True, "sticky")
        assert picks(sticky, 100) == picks(hashed, 100)
    assert [balancer_for(pool(), slot).pick(b"", (), always) for slot in range(3)] == [0, 1, 0]


@pytest.mark.parametrize("settings", [{"balance": "random"}, {"balance": "least_connections"}, {"sticky": "cookie"}])
def test_settings_of_later_versions_are_refused(settings):
    with pytest.raises(ValueError, match="not supported in this version"):
        balancer_for(pool(**settings), 0)
