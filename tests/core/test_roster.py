"""Who of a pool may be picked, and with which weight."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.roster import SLOW_START_FLOOR, Candidate, Mode, Roster, Status

DRAIN, DISABLED, STANDBY, ENABLED = (
    Status(mode=mode) for mode in (Mode.DRAIN, Mode.DISABLED, Mode.STANDBY, Mode.ENABLED)
)
AS_CONFIGURED = Status()


def always(_member):
    return True


def never(_member):
    return False


def members(*weights, **settings):
    return [Candidate(f"worker{i}", weight, **settings) for i, weight in enumerate(weights, 1)]


def test_without_statuses_everyone_is_as_configured():
    roster = Roster([Candidate("a", 2), Candidate("b", standby=True)])
    assert roster.modes == (Mode.ENABLED, Mode.STANDBY)
    assert roster.weights == roster.weights_at(0.0) == (2, 1)
    assert roster.candidates((), always) == [0]


def test_an_operators_word_overrides_the_configuration_both_ways():
    roster = Roster(
        [Candidate("a", 2), Candidate("b", standby=True)],
        [Status(mode=Mode.STANDBY, weight=7), ENABLED],
    )
    assert (roster.enabled, roster.standby, roster.weights) == ((1,), (0,), (7, 1))


def test_standby_members_are_candidates_only_when_no_enabled_one_is_left():
    roster = Roster(members(1, 1, 1), [AS_CONFIGURED, AS_CONFIGURED, STANDBY])
    assert roster.candidates((), always) == [0, 1]
    assert roster.candidates((0,), always) == [1]
    assert roster.candidates((0, 1), always) == [2]
    assert roster.candidates((), lambda i: i == 2) == [2]
    assert roster.candidates((0, 1, 2), always) == []


def test_when_nobody_is_usable_the_enabled_ones_are_tried_anyway_then_the_standbys():
    roster = Roster(members(1, 1, 1), [AS_CONFIGURED, AS_CONFIGURED, STANDBY])
    assert roster.candidates((), never) == [0, 1]
    assert roster.candidates((0, 1), never) == [2]


@pytest.mark.parametrize("status", [DRAIN, DISABLED])
def test_a_draining_or_disabled_member_is_no_candidate_even_when_it_is_the_last(status):
    roster = Roster(members(1, 1), [status, AS_CONFIGURED])
    assert roster.candidates((), always) == roster.candidates((), never) == [1]
    assert roster.candidates((1,), always) == []
    assert Roster(members(1), [status]).candidates((), always) == []


def test_a_client_that_a_cookie_sends_is_admitted_by_all_but_disabled_members():
    roster = Roster(members(1, 1, 1, 1), [ENABLED, DRAIN, DISABLED, STANDBY])
    assert [roster.admits(i, (), always) for i in range(4)] == [True, True, False, True]
    assert not roster.admits(0, (), never)
    assert not roster.admits(0, (0,), always)


def test_a_full_member_gets_nobody_and_the_next_one_is_tried():
    counts = [0, 0, 0]
    roster = Roster(
        [
            Candidate("a", max_connections=2),
            Candidate("b"),
            Candidate("c", standby=True, max_connections=1),
        ],
        counts=counts.__getitem__,
    )
    assert roster.limited
    counts[0] = 1
    assert roster.candidates((), always) == [0, 1]
    counts[0] = 2
    assert roster.full(0)
    assert roster.candidates((), always) == [1]
    assert not roster.admits(0, (), always)
    assert roster.candidates((1,), always) == [2]
    counts[2] = 1
    assert roster.candidates((1,), always) == roster.candidates((1,), never) == []


def test_the_weight_of_a_member_that_came_back_grows_in_a_straight_line():
    roster = Roster(members(4, 8), [AS_CONFIGURED, Status(returned_at=100.0)], slow_start_s=20)
    assert roster.slow_until_at == 120
    assert [roster.weights_at(at)[1] for at in (105.0, 110.0, 115.0, 120.0, 500.0)] == [
        2,
        4,
        6,
        8,
        8,
    ]
    assert {roster.weights_at(at)[0] for at in (100.0, 110.0, 500.0)} == {4}
    assert roster.weights_at(100.0)[1] == roster.weights_at(99.0)[1] == 8 * SLOW_START_FLOOR


def test_without_a_slow_start_a_member_that_came_back_has_its_whole_weight():
    roster = Roster(members(1, 1), [Status(returned_at=100.0), AS_CONFIGURED])
    assert roster.weights_at(100.0) == (1, 1)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="drain the member instead"):
        Roster(members(1), [Status(weight=0)])
    with pytest.raises(ValueError, match="max_connections needs"):
        Roster(members(1, max_connections=1))
    with pytest.raises(ValueError, match="zip"):
        Roster(members(1, 1), [Status()])


@given(
    modes=st.lists(st.sampled_from(Mode), min_size=1, max_size=6),
    down=st.sets(st.integers(0, 5)),
    tried=st.sets(st.integers(0, 5)),
    full=st.sets(st.integers(0, 5)),
)
def test_candidates_are_never_tried_full_draining_or_disabled_and_none_is_missed_when_someone_could_be_had(
    modes, down, tried, full
):
    roster = Roster(
        members(*[1] * len(modes), max_connections=1),
        [Status(mode=mode) for mode in modes],
        counts=lambda i: i in full,
    )
    found = roster.candidates(tried, lambda i: i not in down)
    could = (
        {i for i, mode in enumerate(modes) if mode in {Mode.ENABLED, Mode.STANDBY}} - tried - full
    )
    assert set(found) <= could
    assert bool(found) == bool(could)
    if could - down:
        assert not set(found) & down
    assert len({modes[i] for i in found}) <= 1
