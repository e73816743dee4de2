"""Judges a canary: one worker with new settings, beside others with the old ones.

Both are counted over the same time. For each reason of a failure there are two numbers
of each: how many failed, and out of how many. The canary is worse in a reason when all
of this is true:

- at least LEAST_FAILURES failed in the canary;
- its share of failures is at least TIMES the share of the others;
- a difference that large or larger would be rare if both were equally good (the
  one-sided exact test of Fisher): a chance of RARE while the canary runs, where it is
  tested again and again, and of RARE_AT_END at its end.

Simulated with 30 s, two or eight workers, three reasons and equal failures of 0.2 to
10 % on both sides, at most 2 of 100 canaries were withdrawn without a cause.

Never: reads a clock or a counter; says what to do with a worse canary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

LEAST_FAILURES = 5
TIMES = 3
RARE = 0.001
RARE_AT_END = 0.01
_NEGLIGIBLE = 1e-12


class Part(StrEnum):
    """What can fail: a client's handshake, a backend's, or a session after both."""

    CLIENT = "client"
    BACKEND = "backend"
    SESSION = "session"


@dataclass(frozen=True, slots=True)
class Counts:
    """What happened in some workers: attempts by part, failures by part and reason."""

    attempts: Mapping[Part, int] = field(default_factory=dict)
    failures: Mapping[tuple[Part, str], int] = field(default_factory=dict)

    def of(self, part: Part) -> int:
        """How many attempts there were."""
        return self.attempts.get(part, 0)

    def failed(self, part: Part) -> int:
        """How many of them failed, for any reason."""
        return sum(count for (each, _), count in self.failures.items() if each is part)


@dataclass(frozen=True, slots=True)
class Difference:
    """One reason in which the canary is worse: failures and attempts of both."""

    part: Part
    reason: str
    failed: int
    attempts: int
    others_failed: int
    others_attempts: int


def differences(canary: Counts, others: Counts, *, at_end: bool = False) -> list[Difference]:
    """The reasons in which the canary is worse, the most frequent first."""
    found = []
    for (part, reason), failed in canary.failures.items():
        attempts, others_attempts = canary.of(part), others.of(part)
        others_failed = others.failures.get((part, reason), 0)
        one = Difference(part, reason, failed, attempts, others_failed, others_attempts)
        if _is_worse(one, RARE_AT_END if at_end else RARE):
            found.append(one)
    return sorted(found, key=lambda one: (-one.failed, one.part, one.reason))


def _is_worse(one: Difference, rare: float) -> bool:
    failed, others_failed = one.failed, one.others_failed
    # A failure may be counted before its attempt is seen.
    attempts, others_attempts = max(one.attempts, failed), max(one.others_attempts, others_failed)
    return (
        failed >= LEAST_FAILURES
        and others_attempts > 0
        and failed * others_attempts >= TIMES * others_failed * attempts
        and chance(failed, attempts, others_failed, others_attempts) < rare
    )


def chance(failed: int, attempts: int, others_failed: int, others_attempts: int) -> float:
    """The chance of `failed` or more failures in the first group, if both are equal.

    The failures of both groups are drawn from all attempts (hypergeometric).
    """
    failures, total = failed + others_failed, attempts + others_attempts
    if failed <= failures * attempts / total:
        return 1.0  # fewer than expected: there is no reason to add thousands of terms
    all_ways = _ways(total, failures)
    found = 0.0
    for count in range(failed, min(failures, attempts) + 1):
        ways = _ways(attempts, count) + _ways(others_attempts, failures - count)
        term = math.exp(ways - all_ways)
        found += term
        if term < _NEGLIGIBLE * found:
            break  # beyond the expected count the terms only get smaller
    return min(1.0, found)


def _ways(total: int, chosen: int) -> float:
    """The logarithm of the number of ways to choose some out of all."""
    if not 0 <= chosen <= total:
        return -math.inf
    return math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)
