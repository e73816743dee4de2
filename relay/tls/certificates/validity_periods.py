"""When the certificates behind a route or a pool are valid, and what to say when they are not.

Never: looks at a clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

_FOREVER = float("inf")


@dataclass(frozen=True, slots=True)
class ValidityPeriod:
    """From when until when one key of the configuration names something valid; Unix time.

    `what` names the certificate whose dates these are: the one that begins last, or ends first.
    """

    where: str
    from_at: float = -_FOREVER
    until_at: float = _FOREVER
    begins: str = ""
    ends: str = ""

    def why_invalid(self, now_at: float) -> str:
        """What is wrong now; "" when nothing is."""
        if now_at > self.until_at:
            ago = _words(now_at - self.until_at)
            return f"{self.where}: {self.ends} expired on {_day(self.until_at)}, {ago} ago"
        if now_at < self.from_at:
            later = _words(self.from_at - now_at)
            return f"{self.where}: {self.begins} is not valid before {_day(self.from_at)}, {later} from now"
        return ""


@dataclass(frozen=True, slots=True)
class ValidityPeriods:
    """Everything that a route or a pool needs; all of it has to be valid."""

    periods: tuple[ValidityPeriod, ...] = ()
    from_at: float = -_FOREVER
    until_at: float = _FOREVER

    @classmethod
    def of(cls, periods: Iterable[ValidityPeriod]) -> ValidityPeriods:
        """Of several."""
        all_ = tuple(periods)
        begin = max((period.from_at for period in all_), default=-_FOREVER)
        return cls(all_, begin, min((period.until_at for period in all_), default=_FOREVER))

    def why_invalid(self, now_at: float) -> str:
        """What is wrong now, the first thing; "" when nothing is."""
        if self.from_at <= now_at <= self.until_at:
            return ""
        return next(filter(None, (period.why_invalid(now_at) for period in self.periods)), "")

    def next_change_after(self, now_at: float) -> float:
        """When something begins or ends next."""
        edges = [edge for period in self.periods for edge in (period.from_at, period.until_at)]
        return min((edge for edge in edges if edge > now_at), default=_FOREVER)


def _day(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"


def _words(seconds: float) -> str:
    if seconds < 120:
        return f"{int(seconds)} s"
    hours = int(seconds // 3600)
    if hours < 2:
        return f"{int(seconds // 60)} minutes"
    return f"{hours // 24} days" if hours >= 48 else f"{hours} hours"
