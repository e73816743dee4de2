"""Which backend a session gets."""

import heapq
import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.config.pool_model import Backend, Pool
from relay.core.balance import LeastConnections, RandomOfTwo, RoundRobin, balancer_for
from relay.core.candidates import Candidate, CandidateStatus, Mode
from relay.core.rendezvous import Rendezvous, rank

ROOT = Path(__file__).parents[2]


def always(_index):
    return True


def never(_index):
    return False


def backends(*weights):
    return [Candidate(f"worker{i}", weight) for i, weight in enumerate(weights, 1)]


def keys(count):
    return [i.to_bytes(4, "big") for i in range(0x0A000000, 0x0A000000 + count)]


def picks(balancer, count, usable=always, tried=()):
    return [balancer.pick(key, tried, usable) for key in keys(count)]


def pool(**settings):
    return Pool(
        backend=(
            Backend(route="a", address="10.0.0.1:1", weight=2),
            Backend(route="b", address="10.0.0.2:1"),
        ),
        **settings,
    )


def test_round_robin_spreads_turns_as_nginx_does():
    assert [*map("abc".__getitem__, picks(RoundRobin(backends(5, 1, 1)), 14))] == list(
        "aabacaaaabacaa"
    )
    assert picks(RoundRobin(backends(1, 1, 1)), 6) == [0, 1, 2, 0, 1, 2]
    assert picks(RoundRobin(backends(256, 256)), 4) == [0, 1, 0, 1]


@pytest.mark.parametrize(
    "weights", [(1, 1, 1), (5, 1, 1), (3, 2), (256, 255, 1), (7,), tuple(range(1, 21))]
)
def test_round_robin_gives_exact_weights_in_each_period(weights):
    balancer = RoundRobin(backends(*weights))
    for _ in range(2):
        assert Counter(picks(balancer, sum(weights))) == dict(enumerate(weights))


def test_workers_start_at_different_backends():
    assert [RoundRobin(backends(1, 1, 1), offset).pick(b"", (), always) for offset in range(5)] == [
        0,
        1,
        2,
        0,
        1,
    ]


def test_turns_of_a_lost_backend_are_shared_by_weight():
    counts = Counter(picks(RoundRobin(backends(4, 1, 2, 3)), 10_000, lambda index: index != 0))
    assert set(counts) == {1, 2, 3}
    for index, weight in ((1, 1), (2, 2), (3, 3)):
        assert abs(counts[index] / 10_000 - weight / 6) < 0.02


def test_a_backend_that_comes_back_gets_only_its_share():
    balancer = RoundRobin(backends(1, 1, 1))
    picks(balancer, 1000, lambda index: index != 0)
    assert Counter(picks(balancer, 300)) == {0: 100, 1: 100, 2: 100}


@pytest.mark.parametrize("weights", [(1, 1, 1), (5, 1, 1), (1, 2, 3, 4)])
def test_rendezvous_keeps_weights_within_two_percent(weights):
    counts = Counter(picks(Rendezvous(backends(*weights)), 20_000))
    for index, weight in enumerate(weights):
        assert abs(counts[index] / 20_000 - weight / sum(weights)) < 0.02


@pytest.mark.parametrize("lost", [0, 1, 4])
def test_a_lost_backend_moves_only_its_own_clients(lost):
    balancer = Rendezvous(backends(1, 1, 1, 1, 1))
    before = picks(balancer, 20_000)
    after = picks(balancer, 20_000, lambda index: index != lost)
    moved = [b for b, a in zip(before, after, strict=True) if a != b]
    assert set(moved) == {lost}
    assert len(moved) / 20_000 <= 1 / 5 + 0.02
    spread = Counter(a for b, a in zip(before, after, strict=True) if b == lost)
    assert len(spread) == 4
    assert max(spread.values()) / len(moved) < 1 / 4 + 0.02


def test_a_new_backend_takes_only_its_share():
    four = backends(1, 1, 1, 1)
    five = [*four, Candidate("worker5")]
    moved = 0
    for key in keys(5_000):
        old, new = four[rank(key, four)[0]].name, five[rank(key, five)[0]].name
        assert new in {old, "worker5"}
        moved += new != old
        assert [five[::-1][i].name for i in rank(key, five[::-1])] == [
            five[i].name for i in rank(key, five)
        ]
    assert moved / 5_000 <= 1 / 5 + 0.02


def test_a_key_has_the_same_order_with_any_hash_seed():
    program = (
        "import json; from relay.core.rendezvous import Candidate, rank; "
        "m = [Candidate(f'worker{i}', i) for i in range(1, 8)]; "
        "print(json.dumps([rank(i.to_bytes(4, 'big'), m) for i in range(300)]))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
    here = [
        list(rank(i.to_bytes(4, "big"), [Candidate(f"worker{i}", i) for i in range(1, 8)]))
        for i in range(300)
    ]
    assert json.loads(found.pop()) == here


def test_the_order_of_preference_never_changes():
    # Written down: a change here would move the clients of everyone who upgrades.
    assert [rank(key, backends(1, 2, 3)) for key in keys(6)] == [
        (1, 0, 2),
        (2, 1, 0),
        (2, 0, 1),
        (0, 1, 2),
        (1, 2, 0),
        (0, 2, 1),
    ]


def lottery(seed=1):
    """Chance, the same in every run."""
    return random.Random(seed).random


def none_open(_index):
    return 0


def every(weights, **settings):
    given = backends(*weights)
    return [
        RoundRobin(given, counts=none_open, **settings),
        Rendezvous(given, counts=none_open, **settings),
        Rendezvous(given, counts=none_open, load_factor=1.25, **settings),
        LeastConnections(given, none_open, **settings),
        RandomOfTwo(given, lottery(), counts=none_open, **settings),
    ]


NAMES = ["round robin", "rendezvous", "bounded", "least connections", "random"]


@settings(deadline=None)
@given(
    weights=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    down=st.sets(st.integers(0, 5)),
    key=st.binary(max_size=20),
)
def test_usable_backends_come_first_then_the_others_once_each(weights, down, key):
    everyone = set(range(len(weights)))
    for balancer in every(weights):
        tried = []
        while (index := balancer.pick(key, tried, lambda m: m not in down)) is not None:
            assert index not in tried
            tried.append(index)
        usable = everyone - down
        assert set(tried) == everyone
        assert set(tried[: len(usable)]) == usable


@pytest.mark.parametrize("balancer", every((1, 2, 3)), ids=NAMES)
def test_a_pool_whose_backends_all_failed_tries_one_anyway(balancer):
    assert set(picks(balancer, 100, never)) == {0, 1, 2}
    assert set(picks(balancer, 100, never, tried=(0, 2))) == {1}
    assert set(picks(balancer, 10, never, tried=(0, 1, 2))) == {None}


def test_a_key_stays_on_its_second_choice_meanwhile():
    balancer = Rendezvous(backends(1, 1, 1))
    first, second, _ = rank(b"client", backends(1, 1, 1))
    assert {balancer.pick(b"client", (), always) for _ in range(5)} == {first}
    assert {balancer.pick(b"client", (), lambda m: m != first) for _ in range(5)} == {second}
    assert balancer.pick(b"client", (), always) == first


def test_settings_choose_the_balancer_and_sticky_comes_first():
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


def test_counts_and_chance_make_the_other_balancers():
    least = balancer_for(pool(balance="least_connections"), 0, counts=none_open)
    assert isinstance(least, LeastConnections)
    chosen = balancer_for(pool(balance="random"), 0, chance=lottery())
    assert isinstance(chosen, RandomOfTwo)
    assert [(each.keyed, each.why) for each in (least, chosen)] == [(False, "balanced")] * 2
    spare = Pool(
        backend=(
            Backend(route="a", address="10.0.0.1:1", standby=True),
            Backend(route="b", address="10.0.0.2:1"),
        )
    )
    assert [balancer_for(spare, 0).candidates.modes, picks(balancer_for(spare, 0), 3)] == [
        (Mode.STANDBY, Mode.ENABLED),
        [1, 1, 1],
    ]


@pytest.mark.parametrize("settings", [{"balance": "random"}, {"balance": "least_connections"}])
def test_a_balancer_without_what_it_needs_is_refused(settings):
    with pytest.raises(ValueError, match="which are not given"):
        balancer_for(pool(**settings), 0)


@pytest.mark.parametrize("weights", [(1, 1, 1), (3, 1), (5, 1, 1)])
def test_round_robin_is_fair_over_all_workers_within_two_percent(weights):
    workers = [RoundRobin(backends(*weights), slot) for slot in range(4)]
    chance = random.Random(7)
    counts = Counter(chance.choice(workers).pick(b"", (), always) for _ in range(10_000))
    for index, weight in enumerate(weights):
        assert abs(counts[index] / 10_000 - weight / sum(weights)) < 0.02


def simulate(workers, open_connections, arrivals, chance, lasting=200):
    """How many sessions each backend got.

    Sessions arrive at random workers. Each ends after about `lasting` others have
    arrived.
    """
    got, ends = Counter(), []
    for now in range(arrivals):
        while ends and ends[0][0] <= now:
            open_connections[heapq.heappop(ends)[1]] -= 1
        index = chance.choice(workers).pick(now.to_bytes(4, "big"), (), always)
        open_connections[index] += 1
        got[index] += 1
        heapq.heappush(ends, (now + chance.randrange(1, 2 * lasting), index))
    return got


@pytest.mark.parametrize("weights", [(1, 1, 1), (4, 2, 1)])
@pytest.mark.parametrize("kind", ["least connections", "random"])
def test_balancing_by_load_gives_every_backend_its_weight(kind, weights):
    count = [0] * len(weights)
    if kind == "random":
        workers = [
            RandomOfTwo(backends(*weights), lottery(slot), counts=count.__getitem__)
            for slot in range(3)
        ]
    else:
        workers = [
            LeastConnections(backends(*weights), count.__getitem__, slot) for slot in range(3)
        ]
    got = simulate(workers, count, 6_000, random.Random(3))
    for index, weight in enumerate(weights):
        assert abs(got[index] / 6_000 - weight / sum(weights)) < 0.03


def test_the_least_load_wins_and_equals_take_turns():
    count = [5, 3, 9]
    balancer = LeastConnections(backends(1, 1, 4), count.__getitem__)
    assert balancer.pick(b"", (), always) == 2  # 9/4 against 5 and 3
    assert balancer.pick(b"", (2,), always) == 1
    count[:] = 3, 3, 12
    assert sorted(picks(balancer, 6)) == [0, 1, 2, 2, 2, 2]
    assert [
        LeastConnections(backends(1, 1, 1), none_open, slot).pick(b"", (), always)
        for slot in range(3)
    ] == [0, 1, 2]


def test_the_less_loaded_of_two_drawn_backends_is_picked():
    count = [9, 0, 5]
    draws = iter([0.0, 0.99, 0.0, 0.0, 0.5, 0.99])
    balancer = RandomOfTwo(backends(1, 1, 1), lambda: next(draws), counts=count.__getitem__)
    assert [balancer.pick(b"", (), always) for _ in range(3)] == [
        2,
        1,
        1,
    ]  # of 0 and 2, of 0 and 1, of 1 and 2


def test_random_without_loads_is_one_draw_by_weight():
    counts = Counter(picks(RandomOfTwo(backends(3, 1), lottery()), 10_000))
    assert abs(counts[0] / 10_000 - 0.75) < 0.02


def test_the_load_factor_holds_however_uneven_the_keys_are():
    count = [0, 0, 0, 0]
    balancer = Rendezvous(
        backends(1, 1, 1, 1), why="sticky", counts=count.__getitem__, load_factor=1.25
    )
    for arrived in range(1, 401):
        index = balancer.pick(b"everyone behind one address", (), always)
        count[index] += 1
        assert count[index] <= math.ceil(1.25 * arrived / 4)
    first, second, third, _ = rank(b"everyone behind one address", backends(1, 1, 1, 1))
    assert count[first] == count[second] == 125
    assert count[third] == 125


def test_below_the_load_factor_nothing_changes():
    plain, bounded = (
        Rendezvous(backends(1, 2, 3)),
        Rendezvous(backends(1, 2, 3), counts=lambda i: (100, 200, 300)[i], load_factor=1.25),
    )
    assert picks(bounded, 500) == picks(plain, 500)


@pytest.mark.parametrize(
    "settings", [{"load_factor": 0.5, "counts": none_open}, {"load_factor": 1.25}]
)
def test_a_load_factor_below_one_or_without_loads_is_refused(settings):
    with pytest.raises(ValueError, match="a load factor is 1 or more"):
        Rendezvous(backends(1), **settings)


@pytest.mark.parametrize("balancer", every((1, 1, 1)), ids=NAMES)
def test_an_override_and_its_end_hold_for_the_next_pick(balancer):
    balancer.update(
        [CandidateStatus(mode=Mode.DISABLED), CandidateStatus(), CandidateStatus(mode=Mode.STANDBY)]
    )
    assert set(picks(balancer, 50)) == {1}
    assert set(picks(balancer, 50, lambda index: index != 1)) == {2}
    assert set(picks(balancer, 50, never)) == {1}
    assert balancer.pick(b"", (1, 2), always) is None
    balancer.update([CandidateStatus(mode=Mode.DRAIN)] * 3)
    assert set(picks(balancer, 5)) == {None}
    assert balancer.candidates.admits(0, (), always)
    balancer.update(())
    assert set(picks(balancer, 300)) == {0, 1, 2}


@pytest.mark.parametrize(
    "balancer",
    [
        RoundRobin(backends(1, 1, 1)),
        Rendezvous(backends(1, 1, 1)),
        RandomOfTwo(backends(1, 1, 1), lottery()),
    ],
    ids=["round robin", "rendezvous", "random"],
)
def test_a_weight_set_at_run_time_counts_like_a_configured_one(balancer):
    balancer.update([CandidateStatus(), CandidateStatus(weight=4), CandidateStatus()])
    counts = Counter(picks(balancer, 10_000))
    assert abs(counts[1] / 10_000 - 4 / 6) < 0.02


def test_statuses_that_change_nothing_do_not_restart_the_round():
    balancer = RoundRobin(backends(1, 1, 1))
    turns = []
    for _ in range(9):
        balancer.update(
            [CandidateStatus(), CandidateStatus(mode=Mode.ENABLED), CandidateStatus(weight=1)]
        )
        turns += picks(balancer, 1)
    assert turns == [0, 1, 2] * 3


def test_draining_moves_only_the_backends_own_clients():
    balancer = Rendezvous(backends(1, 1, 1, 1))
    before = picks(balancer, 5_000)
    balancer.update(
        [CandidateStatus(), CandidateStatus(mode=Mode.DRAIN), CandidateStatus(), CandidateStatus()]
    )
    moved = [b for b, a in zip(before, picks(balancer, 5_000), strict=True) if a != b]
    assert set(moved) == {1}
    assert len(moved) / 5_000 <= 1 / 4 + 0.02
    balancer.update(())
    assert picks(balancer, 5_000) == before


@pytest.mark.parametrize("kind", [RoundRobin, Rendezvous, LeastConnections, RandomOfTwo])
def test_a_full_backend_is_skipped_until_it_has_room_again(kind):
    count = [2, 0]
    two = [Candidate("a", max_connections=2), Candidate("b")]
    extra = {LeastConnections: (), RandomOfTwo: (lottery(),)}
    balancer = kind(two, *extra.get(kind, ()), counts=count.__getitem__)
    assert set(picks(balancer, 50)) == {1}
    assert balancer.pick(b"", (1,), always) is None
    count[:] = 1, 1
    assert set(picks(balancer, 50)) == {0, 1}


@pytest.mark.parametrize("elapsed_s", [2, 5, 8])
@pytest.mark.parametrize("name", ["round robin", "rendezvous", "random"])
def test_a_backend_in_its_slow_start_gets_part_of_its_share(name, elapsed_s):
    balancer = (
        dict(zip(NAMES, every((1, 1, 1), slow_start_s=10), strict=True))[name]
        if name != "random"
        else RandomOfTwo(backends(1, 1, 1), lottery(), slow_start_s=10)
    )
    balancer.update([CandidateStatus(returned_at=100.0), CandidateStatus(), CandidateStatus()])
    counts = Counter(balancer.pick(key, (), always, 100.0 + elapsed_s) for key in keys(6_000))
    part = elapsed_s / 10
    assert abs(counts[0] / 6_000 - part / (2 + part)) < 0.02
    after = Counter(balancer.pick(key, (), always, 110.0) for key in keys(6_000))
    assert abs(after[0] / 6_000 - 1 / 3) < 0.02


def test_a_slow_start_by_hash_only_brings_clients_back():
    balancer = Rendezvous(backends(1, 1, 1), slow_start_s=10)
    balancer.update([CandidateStatus(returned_at=0.0), CandidateStatus(), CandidateStatus()])
    back = [
        {key for key in keys(1_000) if balancer.pick(key, (), always, at) == 0}
        for at in (0.0, 2.0, 5.0, 9.0, 10.0)
    ]
    assert all(earlier <= later for earlier, later in pairwise(back))
    assert len(back[0]) < 20 < len(back[-1])


def test_a_pool_whose_backends_all_come_back_at_once_serves():
    balancer = RoundRobin(backends(1, 1), slow_start_s=10)
    balancer.update([CandidateStatus(returned_at=100.0)] * 2)
    assert Counter(balancer.pick(b"", (), always, 100.0) for _ in range(10)) == {0: 5, 1: 5}


STATUSES = st.builds(
    CandidateStatus,
    mode=st.none() | st.sampled_from(Mode),
    weight=st.none() | st.integers(1, 256),
    returned_at=st.none() | st.floats(0, 100),
)


@settings(deadline=None)
@given(
    weights=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    data=st.data(),
    down=st.sets(st.integers(0, 4)),
    key=st.binary(max_size=20),
    now_at=st.floats(0, 200),
)
def test_exactly_the_eligible_backends_are_tried_once(weights, data, down, key, now_at):
    statuses = data.draw(st.lists(STATUSES, min_size=len(weights), max_size=len(weights)))
    allowed = {
        i for i, status in enumerate(statuses) if status.mode not in {Mode.DRAIN, Mode.DISABLED}
    }
    for balancer in every(weights, slow_start_s=30):
        balancer.update(statuses)
        tried = []
        while (index := balancer.pick(key, tried, lambda m: m not in down, now_at)) is not None:
            assert index not in tried
            tried.append(index)
        assert set(tried) == allowed
        assert set(tried[: len(allowed - down)]) == allowed - down
