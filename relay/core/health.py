"""Whether a backend is up, from the results of its health checks: so many in a row make it rise, so many make it fall.

    UNKNOWN   not checked yet; it is used, for a relay that has just started should rather try than refuse
    UP        used
    DOWN      not used, unless no other is left

The first result decides at once: nobody knows better yet, and a backend that is down should not get clients for `fall` more intervals.

Never: checks anything, reads a clock, chooses a backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

# A check comes up to a tenth of the interval earlier or later, so that many relays do not check one backend in step.
JITTER = 0.1
# The first checks come this soon, whatever the interval.
FIRST_WITHIN_S = 1.0


class Verdict(StrEnum):
    """What is thought of a backend."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Rules:
    """When a verdict changes; `rise` and `fall` are numbers of equal results in a row, 1 or more."""

    interval_s: float
    rise: int
    fall: int


@dataclass(frozen=True, slots=True)
class Check:
    """One check's result. Both instants are of the same clock, which never goes back."""

    ok: bool
    detail: str
    """The result in words: "connection refused", "GET /health answered 503, not 200"."""
    began_at: float
    ended_at: float


@dataclass(frozen=True, slots=True)
class State:
    """What is known of one backend; `State()` before its first check."""

    verdict: Verdict = Verdict.UNKNOWN
    since_at: float = 0.0
    """When the verdict became what it is; 0 while it is UNKNOWN."""
    in_a_row: int = 0
    """How many of the last results were equal to the last one."""
    last: Check | None = None

    @property
    def usable(self) -> bool:
        """Whether new sessions may go there."""
        return self.verdict is not Verdict.DOWN

    @property
    def reason(self) -> str:
        """The verdict in words, for a page and a log."""
        if self.last is None:
            return "not checked yet"
        if self.last.ok == (self.verdict is Verdict.UP):
            return self.last.detail
        return f"{self.last.detail} ({self.in_a_row} in a row, still {self.verdict})"


@dataclass(frozen=True, slots=True)
class Change:
    """A verdict that is not what it was."""

    before: Verdict
    after: Verdict
    at: float
    lasted_s: float
    """How long the verdict before lasted; 0 when it was UNKNOWN."""
    reason: str

    def __str__(self) -> str:
        return f"is {self.after}: {self.reason}" + (
            f"; it was {self.before} for {self.lasted_s:.0f} s"
            if self.before is not Verdict.UNKNOWN
            else ""
        )


def next_state(state: State, check: Check, rules: Rules) -> tuple[State, Change | None]:
    """The state after one more result, and what changed; a result that began before the last one ended is as good as any."""
    in_a_row = state.in_a_row + 1 if state.last is not None and state.last.ok == check.ok else 1
    after = Verdict.UP if check.ok else Verdict.DOWN
    needed = 1 if state.verdict is Verdict.UNKNOWN else rules.rise if check.ok else rules.fall
    if after is state.verdict or in_a_row < needed:
        return State(state.verdict, state.since_at, in_a_row, check), None
    at = check.ended_at
    lasted_s = 0.0 if state.verdict is Verdict.UNKNOWN else at - state.since_at
    times = f" ({in_a_row} checks in a row)" if in_a_row > 1 else ""
    return State(after, at, in_a_row, check), Change(
        state.verdict, after, at, lasted_s, check.detail + times
    )


def next_check_at(state: State, rules: Rules, now_at: float, chance: float) -> float:
    """When to check next; `chance` is uniform in [0, 1).

    The interval is from beginning to beginning, but a check does not begin before the last one has ended, nor in the past.
    """
    if state.last is None:
        return now_at + chance * min(rules.interval_s, FIRST_WITHIN_S)
    return max(
        now_at,
        state.last.ended_at,
        state.last.began_at + rules.interval_s * (1 + JITTER * (2 * chance - 1)),
    )
