"""Decides whether the relay has started, or cannot start.

Never: ends a relay that has served once.
"""

from __future__ import annotations

from relay.core.fleet_view import Rules
from relay.errors import StartupError

ATTEMPTS = 3  # early deaths on one slot before the start is refused


class FirstStart:
    """The start of the first generation, until it serves."""

    def __init__(self, rules: Rules) -> None:
        self.done = False
        self.fork_error: Exception | None = None  # the last one
        self._rules = rules
        self._since_at: float | None = None

    def check(self, now: float, *, complete: bool, failing_slot: int | None) -> None:
        """Once a turn, until `done`. `complete`: every slot serves.

        Raises StartupError if it takes too long, or if the workers of a slot keep
        dying.
        """
        self._since_at = self._since_at if self._since_at is not None else now
        self.done = complete
        if failing_slot is not None:
            if self.fork_error is not None:
                raise StartupError(
                    f"worker {failing_slot} cannot be started: {self.fork_error}",
                    "raise TasksMax= or the memory limit of the relay, or lower relay.workers",
                )
            raise StartupError(
                f"worker {failing_slot} died {ATTEMPTS} times before the relay served",
                "the cause is in the worker's own messages above",
            )
        if not self.done and now - self._since_at > self._rules.start_timeout_s:
            raise StartupError(
                f"the workers did not serve within {self._rules.start_timeout_s:g} s",
                "the cause is in the workers' own messages above",
            )
