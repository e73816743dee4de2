"""The shares of SRV records (RFC 2782)."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.core.srv import draw, shares


def drawn(weights, times=20_000):
    """How often each entry was drawn, as a fraction."""
    chance = random.Random(2782)
    running = shares(weights)
    counted = Counter(draw(running, chance.random()) for _ in range(times))
    return [counted[number] / times for number in range(len(weights))]


@pytest.mark.parametrize(
    ("weights", "expected"),
    {
        "by weight": ([(10, 1), (30, 1)], [0.25, 0.75]),
        "all 0": ([(0, 1), (0, 1), (0, 1)], [1 / 3] * 3),
        "0 beside others": ([(0, 1), (49, 1), (50, 1)], [0.01, 0.49, 0.50]),
        "two addresses of one target": ([(10, 2), (10, 2), (10, 1)], [0.25, 0.25, 0.5]),
        "all 0, two of one target": ([(0, 2), (0, 2), (0, 1)], [0.25, 0.25, 0.5]),
        "one": ([(7, 1)], [1.0]),
    }.values(),
)
def test_each_record_gets_its_share(weights, expected):
    assert drawn(weights) == pytest.approx(expected, abs=0.015)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.integers(0, 65_535), st.integers(1, 64)), min_size=1, max_size=8),
    st.floats(0, 1, exclude_max=True),
)
def test_a_draw_is_always_one_of_the_entries(weights, chance):
    assert 0 <= draw(shares(weights), chance) < len(weights)
