"""Dates in messages for operators.

Never: reads a clock.
"""

from __future__ import annotations

from datetime import UTC, datetime


def minute(at: float) -> str:
    """Unix time, for example "2026-11-27 10:33 UTC"."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
