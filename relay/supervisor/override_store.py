"""Operators' overrides: kept in state_dir/overrides.json, written to the scoreboard for the workers, undone when their time is over.

An override of a backend that the configuration does not have (any more) is kept, has no effect, and is said to be so.

Never: picks a backend, or waits for anybody.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from relay.config.model import Config
from relay.core.candidates import Mode
from relay.core.overrides import (
    MODE_CODES,
    BackendKey,
    Change,
    Override,
    Setting,
    apply,
    parse,
    parse_change,
    render,
    settle,
)
from relay.core.untrusted import clip, clip_names
from relay.shared.backends_view import backends_reply
from relay.shared.cell_layout import state_offset
from relay.shared.entities import (
    BACKEND,
    MODE_OVERRIDE,
    OVERRIDE_VERSION,
    RELAY,
    WEIGHT_OVERRIDE,
)
from relay.shared.state_cells import bump
from relay.supervisor.control import EXIT_USAGE
from relay.supervisor.scoreboards import Scoreboards
from relay.supervisor.state_dir import replace_file

FILE = "overrides.json"
FILE_BYTES = 16 * 1024 * 1024
VERSION = 1

Reply = dict[str, Any]
_MODE, _WEIGHT, _VERSION = (
    state_offset(name)[1] for name in (MODE_OVERRIDE, WEIGHT_OVERRIDE, OVERRIDE_VERSION)
)

log = logging.getLogger(__name__)


class OverrideStore:
    """All overrides of one relay; the only writer of their cells. `on_change` is called when readers should be told."""

    def __init__(
        self,
        state_dir: Path,
        scoreboards: Scoreboards,
        config: Config,
        on_change: Callable[[], None],
    ) -> None:
        self._state_dir = state_dir
        self._scoreboards = scoreboards
        self._on_change = on_change
        self._members: dict[BackendKey, Mode] = {}
        self._overrides = _load(state_dir / FILE)
        self._stale = False
        self.use(config)

    # What the supervisor's loop does.

    def use(self, config: Config) -> None:
        """Another configuration holds: say which overrides have an effect in it."""
        self._members = {
            (name, one.route): Mode.STANDBY if one.standby else Mode.ENABLED
            for name, pool in config.pool.items()
            for one in pool.backend
        }
        self.write_cells()
        for member, override in sorted(self._overrides.items()):
            if member in self._members:
                log.warning(
                    "backend %s is overridden: %s",
                    "/".join(member),
                    _words(override),
                    extra={"pool": member[0], "backend": member[1]},
                )
            else:
                log.warning(
                    "backend %s is overridden (%s), but the configuration has no such backend; this is kept until it is cleared",
                    "/".join(member),
                    _words(override),
                )

    def write_cells(self) -> None:
        """Bring the scoreboard up to date, whatever is there; also for backends of a configuration that is about to hold."""
        codes = {member: _codes(override) for member, override in self._overrides.items()}
        for states in self._scoreboards.states():
            states.fill(BACKEND.name, _MODE, {member: mode for member, (mode, _) in codes.items()})
            states.fill(
                BACKEND.name, _WEIGHT, {member: weight for member, (_, weight) in codes.items()}
            )
        self._tell_workers()

    def step(self, now_at: float) -> None:
        """Undo what has come to its end. `now_at` is Unix time: an end is kept across restarts."""
        changed = False
        for member, override in list(self._overrides.items()):
            settled = settle(override, now_at)
            if settled != override:
                changed = True
                self._keep(member, settled)
                was = _words(
                    Override(
                        *(
                            old if old != new else None
                            for old, new in (
                                (override.mode, settled.mode),
                                (override.weight, settled.weight),
                            )
                        )
                    )
                )
                log.warning(
                    "backend %s: the time of this override is over: %s; now %s",
                    "/".join(member),
                    was,
                    _words(settled),
                    extra={"pool": member[0], "backend": member[1]},
                )
        if changed:
            self._tell_everybody()

    def restore(self) -> bool:
        """Write the file again when it is gone, or could not be written. Raises OSError."""
        if not self._stale and (not self._overrides or (self._state_dir / FILE).exists()):
            return False
        self._save()
        return True

    def _save(self) -> None:
        self._stale = True
        text = json.dumps({"version": VERSION, "overrides": render(self._overrides)}) + "\n"
        replace_file(self._state_dir / FILE, text, 0o600)
        self._stale = False

    def _write(self, member: BackendKey) -> None:
        mode, weight = _codes(self._overrides.get(member, Override()))
        for states in self._scoreboards.states():
            base = states.base(BACKEND.name, member)
            if base is not None:  # some generation has it
                states.cells[base + _MODE], states.cells[base + _WEIGHT] = mode, weight

    def _tell_workers(self) -> None:
        for states in self._scoreboards.states():
            base = states.base(RELAY.name, ())
            if base is not None:
                bump(states.cells, base + _VERSION)

    def _keep(self, member: BackendKey, override: Override) -> None:
        if override == Override():
            self._overrides.pop(member, None)
        else:
            self._overrides[member] = override
        self._write(member)

    def _tell_everybody(self) -> str:
        """What went wrong with the file, "" when nothing did: the change holds all the same, for a disk may be full when a backend must be drained."""
        self._tell_workers()
        self._on_change()
        path = self._state_dir / FILE
        try:
            self._save()
        except OSError as error:
            what = f"{path}: cannot be written: {error.strerror or error}; the overrides hold, but a restart would forget the last change"
            log.error("%s", what)
            return what
        return ""

    # What operators ask.

    def facts(self) -> list[dict[str, Any]]:
        """Every override as JSON types, for the page."""
        return render(self._overrides)

    def answer(self, request: dict[str, Any]) -> Reply:
        """The reply to `backends` and to `override`."""
        if request["command"] == "backends":
            return {"ok": True, **backends_reply(self._scoreboards.snapshot(), self._state_dir)}
        try:
            change = parse_change(request)
        except ValueError as error:
            return _refused(str(error))
        configured = self._members.get(change.key)
        if configured is None and change.key not in self._overrides:
            return _refused(_unknown(change.key, self._members))
        if configured is None and (change.mode not in (None, "none") or change.weight):
            return _refused(
                f"the configuration has no backend {'/'.join(change.key)} any more; its override can only be cleared"
            )
        return self._change(change, configured or Mode.ENABLED)

    def _change(self, change: Change, configured: Mode) -> Reply:
        now_at = time.time()
        before = self._overrides.get(change.key, Override())
        after = apply(settle(before, now_at), change, now_at, configured)
        warning = ""
        if after != before:
            self._keep(change.key, after)
            extra = {"pool": change.key[0], "backend": change.key[1], "by": change.by}
            log.warning(
                "backend %s is changed by %s: %s",
                "/".join(change.key),
                change.by,
                _words(after),
                extra=extra,
            )
            warning = self._tell_everybody()
        return {
            "ok": True,
            **dict(zip(("pool", "backend"), change.key, strict=True)),
            "now": _words(after),
            **({"warning": warning} if warning else {}),
        }


def _refused(why: str) -> Reply:
    return {"ok": False, "code": EXIT_USAGE, "error": why}


def _unknown(member: BackendKey, members: Iterable[BackendKey]) -> str:
    """That there is no such backend, and which there are."""
    pool, name = member
    backends = [backend for each, backend in members if each == pool]
    pools = clip_names(dict.fromkeys(each for each, _ in members))
    nowhere = f"there is no pool {clip(pool)} either; pools: {pools}"
    there_are = f"pool {clip(pool)} has {clip_names(backends)}" if backends else nowhere
    return f"there is no backend {clip(pool)}/{clip(name)}: {there_are}; see: relay backend list"


def _codes(override: Override) -> tuple[int, int]:
    """The values of its two cells."""
    mode = MODE_CODES[Mode(str(override.mode.value))] if override.mode else 0
    return mode, int(override.weight.value) if override.weight else 0


def _words(override: Override) -> str:
    parts = [_setting_words("", override.mode), _setting_words("weight ", override.weight)]
    return ", ".join(filter(None, parts)) or "as configured"


def _setting_words(what: str, setting: Setting | None) -> str:
    if setting is None:
        return ""
    until = (
        f" until {datetime.fromtimestamp(setting.until_at, UTC):%Y-%m-%dT%H:%M:%SZ}"
        if setting.until_at is not None
        else ""
    )
    return f"{what}{setting.value}{until}"


def _load(path: Path) -> dict[BackendKey, Override]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            data = json.loads(file.read(FILE_BYTES))
        if not isinstance(data, dict) or data.get("version") != VERSION:
            raise ValueError(f"it is not of version {VERSION}")
        return parse(data.get("overrides"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        aside = path.with_suffix(".broken")
        why = error.strerror if isinstance(error, OSError) else error
        log.error(
            "%s: cannot be used: %s; no backend is overridden now, and the file is kept as %s",
            path,
            why,
            aside.name,
        )
        try:
            path.replace(aside)
        except OSError:
            log.warning("%s: cannot be renamed; the next change replaces it", path)
        return {}
