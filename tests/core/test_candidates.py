"""Which backends of a pool may be picked, and with which weight."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.candidates import SLOW_START_FLOOR, Candidate, Candidates, CandidateStatus, Mode

DRAIN, DISABLED, STANDBY, ENABLED = (
    CandidateStatus(mode=mode) for mode in (Mode.DRAIN, Mode.DISABLED, Mode.STANDBY, Mode.ENABLED)
)
AS_CONFIGURED = CandidateStatus()


def always(_index):
    return True


def never(_index):
    return False


def backends(*weights, **settings):
    return [Candidate(f"worker{i}", weight, **settings) for i, weight in enumerate(weights, 1)]


def test_without_statuses_all_is_as_configured():
    candidates = Candidates([Candidate("a", 2), Candidate("b", standby=True)])
    assert candidates.modes == (Mode.ENABLED, Mode.STANDBY)
    assert candidates.weights == candidates.weights_at(0.0) == (2, 1)
    assert candidates.eligible((), always) == [0]


def test_an_operators_mode_overrides_the_configuration():
    candidates = Candidates(
        [Candidate("a", 2), Candidate("b", standby=True)],
        [CandidateStatus(mode=Mode.STANDBY, weight=7), ENABLED],
    )
    assert (candidates.enabled, candidates.standby, candidates.weights) == ((1,), (0,), (7, 1))


def test_standby_is_eligible_only_without_an_enabled_backend():
    candidates = Candidates(backends(1, 1, 1), [AS_CONFIGURED, AS_CONFIGURED, STANDBY])
    assert candidates.eligible((), always) == [0, 1]
    assert candidates.eligible((0,), always) == [1]
    assert candidates.eligible((0, 1), always) == [2]
    assert candidates.eligible((), lambda i: i == 2) == [2]
    assert candidates.eligible((0, 1, 2), always) == []


def test_unusable_backends_are_tried_anyway_enabled_ones_first():
    candidates = Candidates(backends(1, 1, 1), [AS_CONFIGURED, AS_CONFIGURED, STANDBY])
    assert candidates.eligible((), never) == [0, 1]
    assert candidates.eligible((0, 1), never) == [2]


@pytest.mark.parametrize("status", [DRAIN, DISABLED])
def test_a_draining_or_disabled_backend_is_never_eligible(status):
    candidates = Candidates(backends(1, 1), [status, AS_CONFIGURED])
    assert candidates.eligible((), always) == candidates.eligible((), never) == [1]
    assert candidates.eligible((1,), always) == []
    assert Candidates(backends(1), [status]).eligible((), always) == []


def test_a_cookie_is_admitted_by_all_but_disabled_backends():
    candidates = Candidates(backends(1, 1, 1, 1), [ENABLED, DRAIN, DISABLED, STANDBY])
    assert [candidates.admits(i, (), always) for i in range(4)] == [True, True, False, True]
    assert not candidates.admits(0, (), never)
    assert not candidates.admits(0, (0,), always)


def test_a_full_backend_is_passed_over():
    counts = [0, 0, 0]
    candidates = Candidates(
        [
            Candidate("a", max_connections=2),
            Candidate("b"),
            Candidate("c", standby=True, max_connections=1),
        ],
        counts=counts.__getitem__,
    )
    assert candidates.limited
    counts[0] = 1
    assert candidates.eligible((), always) == [0, 1]
    counts[0] = 2
    assert candidates.full(0)
    assert candidates.eligible((), always) == [1]
    assert not candidates.admits(0, (), always)
    assert candidates.eligible((1,), always) == [2]
    counts[2] = 1
    assert candidates.eligible((1,), always) == candidates.eligible((1,), never) == []


def test_a_weight_grows_linearly_after_a_return():
    candidates = Candidates(
        backends(4, 8), [AS_CONFIGURED, CandidateStatus(returned_at=100.0)], slow_start_s=20
    )
    assert candidates.slow_until_at == 120
    assert [candidates.weights_at(at)[1] for at in (105.0, 110.0, 115.0, 120.0, 500.0)] == [
        2,
        4,
        6,
        8,
        8,
    ]
    assert {candidates.weights_at(at)[0] for at in (100.0, 110.0, 500.0)} == {4}
    assert candidates.weights_at(100.0)[1] == candidates.weights_at(99.0)[1] == 8 * SLOW_START_FLOOR


def test_without_slow_start_the_weight_is_whole_at_once():
    candidates = Candidates(backends(1, 1), [CandidateStatus(returned_at=100.0), AS_CONFIGURED])
    assert candidates.weights_at(100.0) == (1, 1)


def test_invalid_statuses_are_refused():
    with pytest.raises(ValueError, match="drain the backend instead"):
        Candidates(backends(1), [CandidateStatus(weight=0)])
    with pytest.raises(ValueError, match="max_connections needs"):
        Candidates(backends(1, max_connections=1))
    with pytest.raises(ValueError, match="zip"):
        Candidates(backends(1, 1), [CandidateStatus()])


@given(
    modes=st.lists(st.sampled_from(Mode), min_size=1, max_size=6),
    down=st.sets(st.integers(0, 5)),
    tried=st.sets(st.integers(0, 5)),
    full=st.sets(st.integers(0, 5)),
)
def test_eligible_backends_are_never_tried_full_or_disabled(modes, down, tried, full):
    candidates = Candidates(
        backends(*[1] * len(modes), max_connections=1),
        [CandidateStatus(mode=mode) for mode in modes],
        counts=lambda i: i in full,
    )
    found = candidates.eligible(tried, lambda i: i not in down)
    could = (
        {i for i, mode in enumerate(modes) if mode in {Mode.ENABLED, Mode.STANDBY}} - tried - full
    )
    assert set(found) <= could
    assert bool(found) == bool(could)
    if could - down:
        assert not set(found) & down
    assert len({modes[i] for i in found}) <= 1
