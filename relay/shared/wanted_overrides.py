"""The overrides that a file asks for: `relay apply` reads them, for any machine.

The file is what `relay backend list --json` prints, or is written by hand. An end is an
instant, not a duration, so the file means the same whenever and wherever it is applied.

Never: reads a file or a clock (times are Unix seconds), knows which backends exist.
Next: `relay.supervisor.applying.Applying.answer`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from relay.core.overrides import (
    AS_CONFIGURED,
    BY_CHARACTERS,
    LAST_INSTANT_S,
    MAX_WEIGHT,
    MODE_WORDS,
    BackendKey,
    Override,
    Setting,
    settle,
)
from relay.core.untrusted import clip

VERSION = 1
NAME_CHARACTERS = 512
_ENTRY_KEYS = ("pool", "backend", "mode", "weight", "until")
_SETTING_KEYS = ("value", "by", "since", "until", "beneath")
_UNTIL = 'a time such as "2026-11-28T03:00:00Z", or Unix seconds'


@dataclass
class Wanted:
    """What the file asks for, and everything that is wrong with it.

    An override that has ended already, or that gives all back to the configuration, is
    `Override()`. `ended` are the backends with a setting that has ended.
    """

    overrides: dict[BackendKey, Override] = field(default_factory=dict)
    ended: list[BackendKey] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def parse_wanted(document: Any, by: str, now_at: float) -> Wanted:
    """Read a document of JSON types. `by` is the author of settings without one."""
    wanted = Wanted()
    if not isinstance(document, dict) or not isinstance(document.get("overrides"), list):
        wanted.problems.append(
            'it is not an object with a list "overrides"; for the form see:'
            " relay backend list --json"
        )
        return wanted
    version = document.get("version", VERSION)
    if version != VERSION or isinstance(version, bool):
        what = f"version is {clip(repr(version), 40)}, and this relay knows version {VERSION}"
        wanted.problems.append(f"{what}; apply the file with the relay that wrote it")
        return wanted
    for index, entry in enumerate(document["overrides"]):
        try:
            _read_entry(entry, wanted, by, now_at)
        except ValueError as error:
            wanted.problems.append(f"overrides[{index}]{error}")
    return wanted


def _read_entry(entry: Any, wanted: Wanted, by: str, now_at: float) -> None:
    """Raises ValueError: the key, a colon, and what is wrong with it."""
    if not isinstance(entry, dict):
        # One kind of error for everything that is wrong with an entry.
        what = ': it is not an object such as {"pool": …, "backend": …, "mode": …}'
        raise ValueError(what)  # noqa: TRY004
    _refuse_others(entry, _ENTRY_KEYS)
    key = (_name(entry, "pool"), _name(entry, "backend"))
    if key in wanted.overrides:
        raise ValueError(f": {clip('/'.join(key))} has an entry already; give each backend one")
    if not any(name in entry for name in ("mode", "weight")):
        raise ValueError(": it changes nothing; give mode, weight or both")
    until_at = _instant(entry.get("until"), ".until")
    given = Override(
        _setting(entry.get("mode"), ".mode", str, by, now_at, until_at),
        _setting(entry.get("weight"), ".weight", int, by, now_at, until_at),
    )
    override = wanted.overrides[key] = settle(given, now_at)
    if override != given:
        wanted.ended.append(key)


def _refuse_others(given: Mapping[str, Any], known: tuple[str, ...], where: str = "") -> None:
    for name in given:
        if name not in known:
            hint = "an end is an instant, so use until" if name in {"for", "duration_s"} else ""
            remedy = hint or f"known are {', '.join(known)}"
            raise ValueError(f"{where}.{clip(name, 40)}: there is no such key; {remedy}")


def _name(entry: Mapping[str, Any], key: str) -> str:
    name = entry.get(key)
    if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARACTERS:
        raise ValueError(f".{key}: give the name of a {key} as text")
    return name


def _setting(
    given: Any, where: str, kind: type, by: str, now_at: float, until_at: float | None
) -> Setting | None:
    """A value alone, or an object with its author, its times, and what it covers."""
    if not isinstance(given, dict):
        value = _value(given, where, kind)
        return None if value is None else Setting(value, by, now_at, until_at)
    _refuse_others(given, _SETTING_KEYS, where)
    value = _value(given.get("value"), f"{where}.value", kind)
    if value is None:
        raise ValueError(f"{where}.value: it is missing; for the configured one write null")
    since_at = _instant(given.get("since"), f"{where}.since")
    own_until_at = _instant(given.get("until"), f"{where}.until")
    ends_at = until_at if own_until_at is None else own_until_at
    beneath = _setting(given.get("beneath"), f"{where}.beneath", kind, by, now_at, None)
    if beneath is not None and (ends_at is None or beneath.until_at is not None):
        raise ValueError(f"{where}.beneath: only a setting without an end is under one with an end")
    author = given.get("by", by)
    if not isinstance(author, str):
        raise ValueError(f"{where}.by: say in text who asks")  # noqa: TRY004  as above
    printable = "".join(char if char.isprintable() else "?" for char in author)[:BY_CHARACTERS]
    return Setting(
        value, printable or by, now_at if since_at is None else since_at, ends_at, beneath
    )


def _value(given: Any, where: str, kind: type) -> str | int | None:
    """None: as configured."""
    if given is None or (kind is str and given == AS_CONFIGURED):
        return None
    if kind is str:
        if isinstance(given, str) and given in MODE_WORDS:
            return given
        words = ", ".join(MODE_WORDS)
        raise ValueError(f"{where}: {clip(repr(given), 40)} is not a mode; modes are {words}")
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given <= MAX_WEIGHT:
        return given or None
    raise ValueError(
        f"{where}: {clip(repr(given), 40)} is not a whole number from 1 to {MAX_WEIGHT},"
        " or 0 for the configured one"
    )


def _instant(given: Any, where: str) -> float | None:
    if given is None:
        return None
    if isinstance(given, str):
        try:
            parsed = datetime.fromisoformat(given)
        except ValueError:
            parsed = None
        if parsed is not None and parsed.tzinfo is None:
            raise ValueError(f"{where}: {clip(given, 40)} has no time zone; add Z for UTC")
        given = None if parsed is None else parsed.timestamp()
    # Compared, not converted: an integer of JSON may be too large for a float.
    number = isinstance(given, int | float) and not isinstance(given, bool)
    if not number or not 0 <= given <= LAST_INSTANT_S:
        raise ValueError(f"{where}: give {_UNTIL}")
    return float(given)


def merge_setting(old: Setting | None, new: Setting | None) -> Setting | None:
    """The old setting if the new one says the same: its author and date stay."""
    return old if _meaning(old) == _meaning(new) else new


def _meaning(setting: Setting | None) -> Any:
    if setting is None:
        return None
    return (setting.value, setting.until_at, _meaning(setting.beneath))
