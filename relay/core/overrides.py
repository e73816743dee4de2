"""What operators have changed about backends: settings with an author and an end time.

A setting with an end covers the setting without an end, which comes back when the time
is over. A setting without an end replaces both.

Never: reads a clock (times are Unix seconds and come as arguments), reads or writes a
file, knows the scoreboard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from relay.core.candidates import Mode

BackendKey = tuple[str, str]
"""The name of a pool, and the name of a backend in it."""

AS_CONFIGURED = "none"
MODE_WORDS = (*(mode.value for mode in Mode), AS_CONFIGURED)
MAX_WEIGHT = 256
LONGEST_S = 31_536_000
# The year 3000. A file from disk may claim more than a date can show.
LAST_INSTANT_S = 32_503_680_000
BY_CHARACTERS = 128
# The scoreboard's number for each mode; 0 is as configured.
MODE_CODES = {Mode.ENABLED: 1, Mode.DRAIN: 2, Mode.DISABLED: 3, Mode.STANDBY: 4}


@dataclass(frozen=True, slots=True)
class Setting:
    """One changed value: who changed it, when, and until when."""

    value: str | int
    by: str
    since_at: float
    until_at: float | None = None
    beneath: Setting | None = None
    """The setting that comes back at `until_at`. It has no end of its own."""


@dataclass(frozen=True, slots=True)
class Override:
    """Everything that is changed about one backend; `Override()` changes nothing."""

    mode: Setting | None = None
    weight: Setting | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What an operator asks for.

    None leaves the mode or the weight as it is. AS_CONFIGURED and 0 give it back to the
    configuration.
    """

    key: BackendKey
    mode: str | None
    weight: int | None
    duration_s: float | None
    by: str


def parse_change(request: Mapping[str, Any]) -> Change:
    """The change in a request of JSON types. Raises ValueError with what is wrong."""
    pool, backend = request.get("pool"), request.get("backend")
    if not isinstance(pool, str) or not isinstance(backend, str) or not pool or not backend:
        raise ValueError("pool and backend must name one backend")
    mode, weight = request.get("mode"), request.get("weight")
    if mode is not None and mode not in MODE_WORDS:
        raise ValueError(f"mode must be one of {', '.join(MODE_WORDS)}")
    if weight is not None and (not _is_integer(weight) or not 0 <= weight <= MAX_WEIGHT):
        raise ValueError(
            f"weight must be a whole number from 1 to {MAX_WEIGHT}, or 0 for the configured one"
        )
    if mode is None and weight is None:
        raise ValueError("the request changes nothing: give mode, weight or both")
    duration_s = request.get("duration_s")
    if duration_s is not None:
        if not _is_number(duration_s) or not 0 < duration_s <= LONGEST_S:
            raise ValueError(
                f"duration_s must be a number of seconds, more than 0 and at most {LONGEST_S}"
            )
        if mode == AS_CONFIGURED or weight == 0:
            raise ValueError("a return to the configured value takes no duration_s")
    by = request.get("by") or "unknown"
    if not isinstance(by, str):
        # One kind of error for everything that is wrong with a request.
        raise ValueError("by must be text that says who asks")  # noqa: TRY004
    printable = "".join(char if char.isprintable() else "?" for char in by)
    return Change((pool, backend), mode, weight, duration_s, printable[:BY_CHARACTERS])


def apply(override: Override, change: Change, now_at: float, configured: Mode) -> Override:
    """The override after a change.

    A mode that goes back to the configured one takes the weight back too, unless the
    change names a weight. A mode without an end that equals the configured one is not
    an override.
    """
    mode, weight = override.mode, override.weight
    if change.mode is not None:
        same = change.duration_s is None and change.mode == configured.value
        if change.mode == AS_CONFIGURED or same:
            mode = None
        else:
            mode = _cover(mode, change.mode, change, now_at)
        if change.mode == AS_CONFIGURED and change.weight is None:
            weight = None
    if change.weight is not None:
        weight = None if change.weight == 0 else _cover(weight, change.weight, change, now_at)
    return Override(mode, weight)


def _cover(old: Setting | None, value: str | int, change: Change, now_at: float) -> Setting:
    """The new setting; with an end, it covers the old setting that has no end."""
    new = Setting(value, change.by, now_at)
    if change.duration_s is None:
        return new
    lasting = old if old is None or old.until_at is None else old.beneath
    return replace(new, until_at=now_at + change.duration_s, beneath=lasting)


def settle(override: Override, now_at: float) -> Override:
    """The override without the settings that have ended."""
    return Override(_settle(override.mode, now_at), _settle(override.weight, now_at))


def _settle(setting: Setting | None, now_at: float) -> Setting | None:
    if setting is None or setting.until_at is None or setting.until_at > now_at:
        return setting
    return setting.beneath


def render(overrides: Mapping[BackendKey, Override]) -> list[dict[str, Any]]:
    """The overrides as JSON types, sorted by name."""
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


def parse(rendered: Any) -> dict[BackendKey, Override]:
    """The overrides that `render` wrote. Raises ValueError for anything else."""
    if not isinstance(rendered, list) or not all(isinstance(one, dict) for one in rendered):
        raise ValueError("not a list of overrides")
    found: dict[BackendKey, Override] = {}
    for one in rendered:
        pool, backend = one.get("pool"), one.get("backend")
        if not isinstance(pool, str) or not isinstance(backend, str):
            # One kind of error for everything that is wrong with the file.
            raise ValueError("an override does not name its pool and backend")  # noqa: TRY004
        mode, weight = one.get("mode"), one.get("weight")
        found[pool, backend] = Override(_parse(mode, str), _parse(weight, int))
    return found


def _parse(rendered: Any, kind: type) -> Setting | None:
    if rendered is None:
        return None
    if not isinstance(rendered, dict):
        raise ValueError("a setting is not an object")  # noqa: TRY004  as above
    value: Any = rendered.get("value")
    by: Any = rendered.get("by")
    since_at: Any = rendered.get("since")
    until_at: Any = rendered.get("until")
    allowed = MODE_WORDS[:-1] if kind is str else range(1, MAX_WEIGHT + 1)
    if not isinstance(value, str | int) or type(value) is not kind or value not in allowed:
        raise ValueError(f"a setting has the value {value!r}")
    ends = until_at is None or _is_instant(until_at)
    if not isinstance(by, str) or not _is_instant(since_at) or not ends:
        raise ValueError("a setting has no author, or a time that is not a Unix time")
    beneath = _parse(rendered.get("beneath"), kind)
    if beneath is not None and (until_at is None or beneath.until_at is not None):
        raise ValueError("a setting covers another one, but has no end, or the other one has")
    return Setting(value, by, float(since_at), until_at, beneath)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_instant(value: Any) -> bool:
    # Compared, not converted: an integer of JSON may be too large for a float.
    return _is_number(value) and 0 <= value <= LAST_INSTANT_S
