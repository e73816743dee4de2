"""The dates of what the relay reads beside certificates: lists and OCSP responses.

Never: decides who is refused.
"""

from __future__ import annotations

from collections.abc import Callable

from relay.supervisor.list_dates import ListDates
from relay.supervisor.prepared import Prepared
from relay.supervisor.staple_dates import StapleDates


class FileDates:
    """Both, of the serving generation. `on_change`: their facts have changed."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.lists = ListDates(on_change)
        self.staples = StapleDates(on_change)

    def step(self, now: float, now_at: float, prepared: Prepared) -> None:
        """Check once a second."""
        self.lists.step(now, now_at, prepared)
        self.staples.step(now, now_at, prepared)
