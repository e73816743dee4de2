"""The judgement of a canary, from counts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.canary import Counts, Part, chance, differences


def counts(attempts: int, **failures: int) -> Counts:
    """Clients' handshakes, and how many of them failed for each reason."""
    return Counts(
        {Part.CLIENT: attempts},
        {(Part.CLIENT, reason): count for reason, count in failures.items()},
    )


@pytest.mark.parametrize(
    ("canary", "others", "worse"),
    [
        ((40, 20), (40, 0), True),
        ((10, 10), (10, 0), True),
        ((5, 5), (100, 0), True),
        ((4, 4), (1000, 0), False),  # too few
        ((6, 6), (6, 0), False),
        ((100, 5), (100, 0), False),  # may be chance
        ((100, 20), (100, 10), False),  # not three times as many
        ((100, 30), (700, 70), True),
        ((1000, 30), (7000, 70), True),
        ((1000, 29), (7000, 70), False),
        ((100_000, 1000), (700_000, 700), True),
        ((100, 0), (100, 50), False),  # better
        ((50, 50), (0, 0), False),  # there is nothing to compare with
        ((50, 50), (50, 50), False),  # a backend that is down for all
    ],
)
def test_the_rule_by_example(canary, others, worse):
    found = differences(
        counts(canary[0], unknown_ca=canary[1]), counts(*others[:1], unknown_ca=others[1])
    )
    assert bool(found) is worse


def test_at_the_end_a_smaller_difference_counts():
    canary, others = counts(7, unknown_ca=7), counts(70, expired=7)
    assert differences(counts(20, x=8), counts(20, x=0)) == []
    assert [one.reason for one in differences(counts(20, x=8), counts(20), at_end=True)] == ["x"]
    assert [one.reason for one in differences(canary, others)] == ["unknown_ca"]


def test_each_reason_is_judged_by_itself():
    """A canary that refuses other clients is worse, although it refuses no more."""
    found = differences(counts(100, unknown_ca=30, no_sni=2), counts(100, expired=30, no_sni=2))
    assert [(one.reason, one.failed, one.others_failed) for one in found] == [("unknown_ca", 30, 0)]


def test_parts_are_not_mixed():
    canary = Counts(
        {Part.CLIENT: 100, Part.BACKEND: 20},
        {(Part.BACKEND, "backend_refused"): 20, (Part.CLIENT, "unknown_ca"): 1},
    )
    others = Counts({Part.CLIENT: 100, Part.BACKEND: 20}, {(Part.CLIENT, "unknown_ca"): 1})
    assert [(one.part, one.failed, one.attempts) for one in differences(canary, others)] == [
        (Part.BACKEND, 20, 20)
    ]


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 60), st.integers(1, 60))
def test_the_chance_is_the_exact_one(failed, others_failed, more, others_more):
    attempts, others_attempts = failed + more, others_failed + others_more
    failures, total = failed + others_failed, attempts + others_attempts
    expected = sum(
        math.comb(attempts, count) * math.comb(others_attempts, failures - count)
        for count in range(failed, min(failures, attempts) + 1)
    ) / math.comb(total, failures)
    found = chance(failed, attempts, others_failed, others_attempts)
    if failed > failures * attempts / total:
        assert found == pytest.approx(expected, rel=1e-6)
    else:
        assert found == 1.0
