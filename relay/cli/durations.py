"""Durations on the command line: 90, 90s, 10m, 2h or 1d."""

from __future__ import annotations

import re
from typing import Any

import click

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "": 1}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)")


# click.ParamType is generic only in new versions of click.
class Duration(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """Seconds. 0 is allowed where it has a meaning."""

    name = "duration"

    def __init__(self, *, zero: bool = False) -> None:
        self._zero = zero

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Seconds of "90", "90s", "10m", "2h" or "1d"."""
        match = _DURATION.fullmatch(str(value))
        if match is None or (float(match[1]) == 0 and not self._zero):
            self.fail(
                f"{value!r} is not a duration; write for example 90s, 10m, 2h or 1d", param, ctx
            )
        return float(match[1]) * _UNITS_S[match[2]]
