"""When the certificates of a route or a pool are valid, and why they are not.

Never: looks at a clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from relay.dates import minute
from relay.quick_pickle import QuickPickle

_FOREVER = float("inf")


@dataclass(frozen=True, slots=True)
class ValidityPeriod(QuickPickle):
    """When the file behind one configuration key is valid; Unix time.

    `begins` and `ends` name the certificates that set the two limits.
    """

    where: str
    from_at: float = -_FOREVER
    until_at: float = _FOREVER
    begins: str = ""
    ends: str = ""

    def why_invalid(self, now_at: float) -> str:
        """Why it is not valid at this time; "" if it is."""
        if now_at > self.until_at:
            ago = _duration(now_at - self.until_at)
            return f"{self.where}: {self.ends} expired on {minute(self.until_at)}, {ago} ago"
        if now_at < self.from_at:
            later = _duration(self.from_at - now_at)
            begin = minute(self.from_at)
            return f"{self.where}: {self.begins} is not valid before {begin}, {later} from now"
        return ""


@dataclass(frozen=True, slots=True)
class ValidityPeriods:
    """The periods of everything that a route or a pool needs; all must be valid."""

    periods: tuple[ValidityPeriod, ...] = ()
    from_at: float = -_FOREVER
    until_at: float = _FOREVER

    @classmethod
    def of(cls, periods: Iterable[ValidityPeriod]) -> ValidityPeriods:
        """Combine several periods."""
        together = tuple(periods)
        begin = max((each.from_at for each in together), default=-_FOREVER)
        end = min((each.until_at for each in together), default=_FOREVER)
        return cls(together, begin, end)

    def why_invalid(self, now_at: float) -> str:
        """The first reason why something is not valid at this time; "" if all is."""
        if self.from_at <= now_at <= self.until_at:
            return ""
        return next(filter(None, (period.why_invalid(now_at) for period in self.periods)), "")

    def next_change_after(self, now_at: float) -> float:
        """The next time at which a period begins or ends."""
        edges = [edge for period in self.periods for edge in (period.from_at, period.until_at)]
        return min((edge for edge in edges if edge > now_at), default=_FOREVER)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{int(seconds)} s"
    hours = int(seconds // 3600)
    if hours < 2:
        return f"{int(seconds // 60)} minutes"
    return f"{hours // 24} days" if hours >= 48 else f"{hours} hours"
