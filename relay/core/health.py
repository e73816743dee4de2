"""Whether a backend is up, computed from the results of its health checks.

    UNKNOWN   not checked yet; used, because a relay that has just started should try a
              backend rather than refuse clients
    UP        used
    DOWN      not used, unless the pool has no other backend

`rise` good results in a row bring a backend UP, `fall` failed ones take it DOWN. The
very first result decides alone: otherwise a backend that is down at the start would get
clients for `fall` more intervals.

Never: runs a check, reads a clock, chooses a backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

# Each interval varies by up to a tenth, so that several relays do not check a backend
# at the same moments.
JITTER = 0.1
# The first check of every backend comes within this time, whatever the interval.
FIRST_WITHIN_S = 1.0


class HealthStatus(StrEnum):
    """What the health checks say about a backend."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class HealthRules:
    """The status changes after `rise` or `fall` equal results in a row (1 or more)."""

    interval_s: float
    rise: int
    fall: int


@dataclass(frozen=True, slots=True)
class CheckOutcome:
    """The result of one check. Both times are of the same monotonic clock."""

    ok: bool
    detail: str
    """In words: "connection refused", "GET /health answered 503, not 200"."""
    began_at: float
    ended_at: float


@dataclass(frozen=True, slots=True)
class BackendHealth:
    """The health of a backend; `BackendHealth()` before its first check."""

    status: HealthStatus = HealthStatus.UNKNOWN
    since_at: float = 0.0
    """When the status last changed; 0 while it is UNKNOWN."""
    in_a_row: int = 0
    """How many results in a row, counted from the last one, were equal to it."""
    last: CheckOutcome | None = None

    @property
    def reason(self) -> str:
        """Why the status is what it is, in words for the page and the log."""
        if self.last is None:
            return "not checked yet"
        if self.last.ok == (self.status is HealthStatus.UP):
            return self.last.detail
        return f"{self.last.detail} ({self.in_a_row} in a row, still {self.status})"


@dataclass(frozen=True, slots=True)
class StatusChange:
    """A change of a backend's health status."""

    before: HealthStatus
    after: HealthStatus
    at: float
    lasted_s: float
    """How long the status before lasted; 0 when it was UNKNOWN."""
    reason: str

    def __str__(self) -> str:
        lasted = f"; it was {self.before} for {self.lasted_s:.0f} s"
        known = self.before is not HealthStatus.UNKNOWN
        return f"is {self.after}: {self.reason}" + (lasted if known else "")


def next_state(
    state: BackendHealth, check: CheckOutcome, rules: HealthRules
) -> tuple[BackendHealth, StatusChange | None]:
    """The health after one more result, and the change of status, if any.

    A result counts even if its check began before the previous one ended.
    """
    repeated = state.last is not None and state.last.ok == check.ok
    in_a_row = state.in_a_row + 1 if repeated else 1
    after = HealthStatus.UP if check.ok else HealthStatus.DOWN
    first = state.status is HealthStatus.UNKNOWN
    needed = 1 if first else rules.rise if check.ok else rules.fall
    if after is state.status or in_a_row < needed:
        return BackendHealth(state.status, state.since_at, in_a_row, check), None
    at = check.ended_at
    lasted_s = 0.0 if first else at - state.since_at
    times = f" ({in_a_row} checks in a row)" if in_a_row > 1 else ""
    change = StatusChange(state.status, after, at, lasted_s, check.detail + times)
    return BackendHealth(after, at, in_a_row, check), change


def next_check_at(state: BackendHealth, rules: HealthRules, now_at: float, chance: float) -> float:
    """When to check next; `chance` is uniform in [0, 1).

    The interval runs from the start of one check to the start of the next. A check
    never starts before the previous one has ended, and the returned time is never in
    the past.
    """
    if state.last is None:
        return now_at + chance * min(rules.interval_s, FIRST_WITHIN_S)
    return max(
        now_at,
        state.last.ended_at,
        state.last.began_at + rules.interval_s * (1 + JITTER * (2 * chance - 1)),
    )
