"""Checks in a row make a backend rise and fall."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.health import (
    FIRST_WITHIN_S,
    JITTER,
    BackendHealth,
    CheckOutcome,
    HealthRules,
    HealthStatus,
    StatusChange,
    next_check_at,
    next_state,
)

RULES = HealthRules(interval_s=5, rise=2, fall=3)


def check(ok, at, detail=None):
    return CheckOutcome(ok, detail or ("answered" if ok else "connection refused"), at, at + 0.5)


def run(results, rules=RULES):
    """The status after every result, and the changes; checks begin at 0, 5, 10…"""
    state, statuses, changes = BackendHealth(), [], []
    for number, ok in enumerate(results):
        state, change = next_state(state, check(ok, 5.0 * number), rules)
        statuses.append(state.status)
        if change is not None:
            changes.append(change)
    return state, statuses, changes


def test_an_unchecked_backend_is_unknown():
    state = BackendHealth()
    assert (state.status, state.reason) == (HealthStatus.UNKNOWN, "not checked yet")


@pytest.mark.parametrize(("ok", "status"), [(True, HealthStatus.UP), (False, HealthStatus.DOWN)])
def test_the_first_result_decides_at_once(ok, status):
    state, _, (change,) = run([ok])
    assert (state.status, state.since_at) == (status, 0.5)
    assert (change.before, change.after, change.lasted_s) == (HealthStatus.UNKNOWN, status, 0.0)


def test_failures_in_a_row_make_it_fall_and_successes_rise():
    up, down = HealthStatus.UP, HealthStatus.DOWN
    _, statuses, changes = run(
        [True, False, False, True, False, False, False, True, False, True, True]
    )
    assert statuses == [up, up, up, up, up, up, down, down, down, down, up]
    assert [change.after for change in changes] == [up, down, up]
    assert changes[1] == StatusChange(
        up, down, 30.5, 30.0, "connection refused (3 checks in a row)"
    )
    assert changes[2] == StatusChange(down, up, 50.5, 20.0, "answered (2 checks in a row)")


def test_a_change_says_how_long_the_status_before_lasted():
    _, _, changes = run([True, False, False, False])
    assert str(changes[0]) == "is up: answered"
    assert str(changes[1]) == "is down: connection refused (3 checks in a row); it was up for 15 s"


def test_the_reason_has_the_last_result_and_the_count():
    state, _, _ = run([True, False, False])
    assert state.status is HealthStatus.UP
    assert state.reason == "connection refused (2 in a row, still up)"
    state, _, _ = run([False, True])
    assert state.status is HealthStatus.DOWN
    assert state.reason == "answered (1 in a row, still down)"
    assert run([True])[0].reason == "answered"


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 5), st.integers(1, 5))
def test_a_status_changes_only_by_equal_results_in_a_row(results, rise, fall):
    _, statuses, changes = run(results, HealthRules(5, rise, fall))
    before = HealthStatus.UNKNOWN
    for number, status in enumerate(statuses):
        if before is not HealthStatus.UNKNOWN:
            needed, wanted = (fall, False) if before is HealthStatus.UP else (rise, True)
            last = results[max(0, number + 1 - needed) : number + 1]
            assert (status is not before) == (len(last) == needed and set(last) == {wanted})
        before = status
    assert all(one.after is other.before for one, other in pairwise(changes))


def test_first_checks_are_spread_over_the_first_second():
    assert next_check_at(BackendHealth(), RULES, 100.0, 0.0) == 100.0
    assert next_check_at(BackendHealth(), RULES, 100.0, 0.5) == 100.0 + FIRST_WITHIN_S / 2
    assert next_check_at(BackendHealth(), HealthRules(0.2, 2, 3), 100.0, 0.5) == pytest.approx(
        100.1
    )


def test_the_interval_is_from_start_to_start_with_jitter():
    state = BackendHealth(HealthStatus.UP, 0.0, 1, check(True, 100.0))
    assert next_check_at(state, RULES, 101.0, 0.0) == pytest.approx(100 + 5 * (1 - JITTER))
    assert next_check_at(state, RULES, 101.0, 0.5) == pytest.approx(105)
    assert next_check_at(state, RULES, 101.0, 0.999999) == pytest.approx(
        100 + 5 * (1 + JITTER), abs=1e-3
    )


def test_a_check_longer_than_the_interval_is_followed_at_once():
    slow = BackendHealth(
        HealthStatus.UP,
        0.0,
        1,
        CheckOutcome(ok=False, detail="timed out", began_at=100.0, ended_at=110.0),
    )
    assert next_check_at(slow, RULES, 110.0, 0.5) == 110.0
    assert next_check_at(slow, RULES, 200.0, 0.5) == 200.0
