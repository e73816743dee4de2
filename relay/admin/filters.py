"""Template filters: numbers and times of the balancer-manager page as text.

Never: makes HTML; the templates escape the results.
"""

from __future__ import annotations

from datetime import UTC, datetime

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_DAY_S = 86_400


def format_bytes(count: int) -> str:
    """`1.2 MB`, in powers of 1000."""
    value = float(count)
    for unit in _UNITS:
        if value < 999.5 or unit == _UNITS[-1]:
            return (
                f"{count} B"
                if unit == "B"
                else f"{value:.1f} {unit}"
                if value < 9.95
                else f"{value:.0f} {unit}"
            )
        value /= 1000
    return ""


def format_count(count: int) -> str:
    """`1 234 567`, with thin spaces."""
    return f"{count:,}".replace(",", "\u2009")


def format_span(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h`, `5 days`."""
    if seconds < 100:
        return f"{max(0.0, seconds):.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 2 * _DAY_S:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / _DAY_S:.0f} days"


def format_time(at: float) -> str:
    """`2026-11-23 14:02:11 UTC`."""
    try:
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return "?"


def format_day(at: float) -> str:
    """`2026-11-23`."""
    return format_time(at)[:10]


FILTERS = {
    "bytes": format_bytes,
    "count": format_count,
    "span": format_span,
    "time": format_time,
    "day": format_day,
}
