"""When a revocation list is fetched again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.crl_schedule import (
    JITTER,
    LEAST_S,
    MOST_RETRY_S,
    MOST_S,
    Freshness,
    wait_after_failure,
    wait_after_success,
)

NOW = 1_800_000_000.0
DAY = 86_400.0

SUCCESSES = {
    "nothing known": (Freshness(), DAY),
    "half of what is left": (Freshness(next_update_at=NOW + 3600), 1800),
    "a list of a week, once a day": (Freshness(next_update_at=NOW + 7 * DAY), DAY),
    "max-age": (Freshness(next_update_at=NOW + 7 * DAY, max_age_s=900), 900),
    "max-age 0": (Freshness(next_update_at=NOW + 7 * DAY, max_age_s=0), 60),
    "max-age beyond the end": (Freshness(next_update_at=NOW + 1000, max_age_s=DAY), 500),
    "about to end": (Freshness(next_update_at=NOW + 3), LEAST_S),
    "ended": (Freshness(next_update_at=NOW - 3), 60),
    "next publish": (Freshness(NOW + 7 * DAY, NOW + 2000, None), 2000),
    "next publish in days": (Freshness(NOW + 7 * DAY, NOW + 3 * DAY, None), DAY),
    "not published in time": (Freshness(NOW + 7 * DAY, NOW - 100, None), MOST_RETRY_S),
}


@pytest.mark.parametrize("case", SUCCESSES)
def test_the_next_fetch_is_at_the_earliest_of_all_hints(case):
    fresh, wait_s = SUCCESSES[case]
    assert wait_after_success(NOW, fresh, 0.0) == wait_s


def test_a_published_list_is_fetched_after_it_is_published():
    fresh = Freshness(NOW + 7 * DAY, NOW + 2000, None)
    assert wait_after_success(NOW, fresh, 1.0) == pytest.approx(2200)


def test_after_failures_the_waits_grow_up_to_ten_minutes():
    waits = [wait_after_failure(NOW, failures, None, 0.0) for failures in range(1, 10)]
    assert waits == [10, 20, 40, 80, 160, 320, 600, 600, 600]


def test_a_list_that_is_about_to_end_is_tried_before_its_end():
    assert wait_after_failure(NOW, 9, NOW + 100, 0.0) == 50
    assert wait_after_failure(NOW, 9, NOW + 1, 0.0) == LEAST_S
    assert wait_after_failure(NOW, 9, NOW - 1, 0.0) == 600


instants = st.one_of(st.none(), st.floats(-1e11, 1e11))


@given(
    now=st.floats(0, 1e11),
    fresh=st.builds(Freshness, instants, instants, st.one_of(st.none(), st.floats(0, 1e10))),
    chance=st.floats(0, 1),
    failures=st.integers(1, 10**9),
)
def test_no_clock_stops_the_fetches_or_makes_them_frequent(now, fresh, chance, failures):
    assert LEAST_S <= wait_after_success(now, fresh, chance) <= MOST_S * (1 + JITTER)
    wait_s = wait_after_failure(now, failures, fresh.next_update_at, chance)
    assert LEAST_S <= wait_s <= MOST_RETRY_S
