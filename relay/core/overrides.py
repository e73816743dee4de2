"""What operators have changed about backends: settings with an author and perhaps an end, and what lies beneath them.

A setting for a time lies on the one without an end, and gives it back when its time is over; a setting without an end replaces all of it.

Never: reads a clock (instants are Unix seconds and come as arguments), reads or writes a file, knows the scoreboard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from relay.core.roster import Mode

Member = tuple[str, str]
"""Pool and backend, by their names."""

AS_CONFIGURED = "none"
MODE_WORDS = (*(mode.value for mode in Mode), AS_CONFIGURED)
MAX_WEIGHT = 256
LONGEST_S = 31_536_000
LAST_INSTANT_S = (
    32_503_680_000  # the year 3000; a file from disk may claim more than a date can show
)
BY_CHARACTERS = 128
# The cell of a mode in the scoreboard; 0 is as configured.
MODE_CODES = {Mode.ENABLED: 1, Mode.DRAIN: 2, Mode.DISABLED: 3, Mode.STANDBY: 4}


@dataclass(frozen=True, slots=True)
class Setting:
    """One changed value: who changed it, when, and until when."""

    value: str | int
    by: str
    since_at: float
    until_at: float | None = None
    beneath: Setting | None = None
    """What comes back at the end; without an end of its own."""


@dataclass(frozen=True, slots=True)
class Override:
    """All that is changed about one backend; `Override()` is nothing."""

    mode: Setting | None = None
    weight: Setting | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What an operator asks for. `mode` and `weight` are None where nothing is asked, AS_CONFIGURED and 0 where the configuration is to hold again."""

    member: Member
    mode: str | None
    weight: int | None
    duration_s: float | None
    by: str


def parse_change(request: Mapping[str, Any]) -> Change:
    """The change in a request of JSON types. Raises ValueError with what is wrong with it, in words."""
    pool, backend = request.get("pool"), request.get("backend")
    if not isinstance(pool, str) or not isinstance(backend, str) or not pool or not backend:
        raise ValueError("pool and backend must name one backend")
    mode, weight, duration_s, by = (
        request.get("mode"),
        request.get("weight"),
        request.get("duration_s"),
        request.get("by") or "unknown",
    )
    if mode is not None and mode not in MODE_WORDS:
        raise ValueError(f"mode must be one of {', '.join(MODE_WORDS)}")
    if weight is not None and (
        isinstance(weight, bool) or not isinstance(weight, int) or not 0 <= weight <= MAX_WEIGHT
    ):
        raise ValueError(
            f"weight must be a whole number from 1 to {MAX_WEIGHT}, or 0 for the configured one"
        )
    if mode is None and weight is None:
        raise ValueError("nothing is asked for: give mode, weight or both")
    if duration_s is not None:
        if (
            isinstance(duration_s, bool)
            or not isinstance(duration_s, int | float)
            or not 0 < duration_s <= LONGEST_S
        ):
            raise ValueError(
                f"duration_s must be a number of seconds, more than 0 and at most {LONGEST_S}"
            )
        if mode == AS_CONFIGURED or weight == 0:
            raise ValueError("what is as configured has no duration")
    if not isinstance(by, str):
        raise ValueError("by must be text: who asks")  # noqa: TRY004  one kind of error for all of a request
    return Change(
        (pool, backend),
        mode,
        weight,
        duration_s,
        "".join(c if c.isprintable() else "?" for c in by)[:BY_CHARACTERS],
    )


def apply(override: Override, change: Change, now_at: float, configured: Mode) -> Override:
    """The override after a change.

    To take the mode back takes the weight back too, unless the change names one; and what lasts and equals the configured mode is no override.
    """
    mode, weight = override.mode, override.weight
    if change.mode is not None:
        lasting = change.duration_s is None
        mode = (
            None
            if change.mode == AS_CONFIGURED or (lasting and change.mode == configured.value)
            else _lay(mode, change.mode, change, now_at)
        )
        if change.mode == AS_CONFIGURED and change.weight is None:
            weight = None
    if change.weight is not None:
        weight = None if change.weight == 0 else _lay(weight, change.weight, change, now_at)
    return Override(mode, weight)


def _lay(old: Setting | None, value: str | int, change: Change, now_at: float) -> Setting:
    new = Setting(value, change.by, now_at)
    if change.duration_s is None:
        return new
    lasting = old if old is None or old.until_at is None else old.beneath
    return replace(new, until_at=now_at + change.duration_s, beneath=lasting)


def settle(override: Override, now_at: float) -> Override:
    """The override without the settings whose time is over."""
    return Override(_settle(override.mode, now_at), _settle(override.weight, now_at))


def _settle(setting: Setting | None, now_at: float) -> Setting | None:
    over = setting is not None and setting.until_at is not None and setting.until_at <= now_at
    return setting.beneath if setting is not None and over else setting


def render(overrides: Mapping[Member, Override]) -> list[dict[str, Any]]:
    """As JSON types, in the order of the names."""
    return [
        {
            "pool": pool,
            "backend": backend,
            "mode": _render(override.mode),
            "weight": _render(override.weight),
        }
        for (pool, backend), override in sorted(overrides.items())
    ]


def _render(setting: Setting | None) -> dict[str, Any] | None:
    if setting is None:
        return None
    return {
        "value": setting.value,
        "by": setting.by,
        "since": setting.since_at,
        "until": setting.until_at,
        "beneath": _render(setting.beneath),
    }


def parse(rendered: Any) -> dict[Member, Override]:
    """What `render` made. Raises ValueError for anything else."""
    if not isinstance(rendered, list) or not all(isinstance(one, dict) for one in rendered):
        raise ValueError("not a list of overrides")
    found: dict[Member, Override] = {}
    for one in rendered:
        pool, backend = one.get("pool"), one.get("backend")
        if not isinstance(pool, str) or not isinstance(backend, str):
            raise ValueError("an override without the names of pool and backend")  # noqa: TRY004  one kind of error for all of a request
        found[pool, backend] = Override(
            _parse(one.get("mode"), str), _parse(one.get("weight"), int)
        )
    return found


def _parse(rendered: Any, kind: type) -> Setting | None:
    if rendered is None:
        return None
    if not isinstance(rendered, dict):
        raise ValueError("a setting that is no object")  # noqa: TRY004  one kind of error for all of a request
    value: Any = rendered.get("value")
    by: Any = rendered.get("by")
    since_at: Any = rendered.get("since")
    until_at: Any = rendered.get("until")
    if (
        not isinstance(value, str | int)
        or type(value) is not kind
        or value not in (MODE_WORDS[:-1] if kind is str else range(1, MAX_WEIGHT + 1))
    ):
        raise ValueError(f"a setting with the value {value!r}")
    if (
        not isinstance(by, str)
        or not _is_instant(since_at)
        or not (until_at is None or _is_instant(until_at))
    ):
        raise ValueError("a setting without who, or with a time that is none")
    beneath = _parse(rendered.get("beneath"), kind)
    if beneath is not None and (until_at is None or beneath.until_at is not None):
        raise ValueError("settings that lie on each other in the wrong order")
    return Setting(value, by, float(since_at), until_at, beneath)


def _is_instant(value: Any) -> bool:
    # By comparison alone: an integer of JSON may be too large for a float.
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and 0 <= value <= LAST_INSTANT_S
    )
