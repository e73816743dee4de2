"""Operators' overrides of backends: stores, publishes and expires them.

Workers read overrides from the scoreboard. An override of a backend that the
configuration does not have is kept without effect, and reported.

Never: picks a backend, or waits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from relay.config.model import Config
from relay.core.candidates import Mode
from relay.core.overrides import (
    MODE_CODES,
    BackendKey,
    Change,
    Override,
    apply,
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
from relay.shared.messages import OverrideFact
from relay.shared.override_text import describe
from relay.shared.replies import BackendsReply, FailureReply, OverrideReply
from relay.shared.state_cells import bump
from relay.supervisor.control import refused
from relay.supervisor.override_file import FILE, VERSION, load, save
from relay.supervisor.scoreboards import Scoreboards

_MODE, _WEIGHT, _VERSION = (
    state_offset(name)[1] for name in (MODE_OVERRIDE, WEIGHT_OVERRIDE, OVERRIDE_VERSION)
)

log = logging.getLogger(__name__)


class OverrideStore:
    """All overrides of one relay, and the only writer of their cells.

    Calls `on_change` after each change, so that the admin process learns of it.
    """

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
        self.backends: dict[BackendKey, Mode] = {}
        self.overrides = load(state_dir / FILE)
        self._stale = False
        self.use(config)

    # Called by the supervisor's loop.

    def use(self, config: Config) -> None:
        """Use another configuration, and log which overrides have an effect in it."""
        self.backends = {
            (name, one.route): Mode.STANDBY if one.standby else Mode.ENABLED
            for name, pool in config.pool.items()
            for one in pool.backend
        }
        self.write_cells()
        for key, override in sorted(self.overrides.items()):
            name = "/".join(key)
            if key in self.backends:
                extra = {"pool": key[0], "backend": key[1]}
                log.warning("backend %s is overridden: %s", name, describe(override), extra=extra)
            else:
                log.warning(
                    "backend %s is overridden (%s), but the configuration has no such backend;"
                    " remove the override with: relay backend clear %s",
                    name,
                    describe(override),
                    name,
                )

    def write_cells(self) -> None:
        """Write the cells of all generations, also of one that is starting."""
        codes = {key: _codes(override) for key, override in self.overrides.items()}
        for states in self._scoreboards.states():
            states.fill(BACKEND.name, _MODE, {key: mode for key, (mode, _) in codes.items()})
            states.fill(BACKEND.name, _WEIGHT, {key: weight for key, (_, weight) in codes.items()})
        self._notify_workers()

    def step(self, now_at: float) -> None:
        """Undo expired overrides. `now_at` is Unix time: expiry survives restarts."""
        changed = False
        for key, override in list(self.overrides.items()):
            settled = settle(override, now_at)
            if settled != override:
                changed = True
                self._set(key, settled)
                log.warning(
                    "backend %s: an override has expired: %s; now %s",
                    "/".join(key),
                    describe(_removed(override, settled)),
                    describe(settled),
                    extra={"pool": key[0], "backend": key[1]},
                )
        if changed:
            self._publish()

    def restore(self) -> bool:
        """Write the file if it is missing or out of date. Raises OSError."""
        if not self._stale and (not self.overrides or (self._state_dir / FILE).exists()):
            return False
        self._save()
        return True

    def _save(self) -> None:
        self._stale = True
        save(self._state_dir / FILE, self.overrides)
        self._stale = False

    def _write(self, key: BackendKey) -> None:
        mode, weight = _codes(self.overrides.get(key, Override()))
        for states in self._scoreboards.states():
            base = states.base(BACKEND.name, key)
            if base is not None:  # this generation has the backend
                states.cells[base + _MODE], states.cells[base + _WEIGHT] = mode, weight

    def _notify_workers(self) -> None:
        for states in self._scoreboards.states():
            base = states.base(RELAY.name, ())
            if base is not None:
                bump(states.cells, base + _VERSION)

    def _set(self, key: BackendKey, override: Override) -> None:
        if override == Override():
            self.overrides.pop(key, None)
        else:
            self.overrides[key] = override
        self._write(key)

    def _publish(self) -> str:
        """Tell workers and admin process, write the file; return a warning or "".

        The change holds even if the file cannot be written: an operator must be able to
        drain a backend while the disk is full.
        """
        self._notify_workers()
        self._on_change()
        path = self._state_dir / FILE
        try:
            self._save()
        except OSError as error:
            what = (
                f"{path}: cannot be written: {error.strerror or error};"
                " the change holds, but it would be lost at a restart"
            )
            log.error("%s", what)
            return what
        return ""

    # Called for operators.

    def facts(self) -> list[OverrideFact]:
        """Every override as JSON types, for the admin page."""
        return cast("list[OverrideFact]", render(self.overrides))

    def answer(self, request: dict[str, Any]) -> BackendsReply | OverrideReply | FailureReply:
        """The reply to `backends` and to `override`."""
        if request["command"] == "backends":
            reply = backends_reply(self._scoreboards.snapshot(routes=False), self._state_dir)
            return {"ok": True, **reply, "version": VERSION, "overrides": self.facts()}
        try:
            change = parse_change(request)
        except ValueError as error:
            return refused(str(error))
        configured = self.backends.get(change.key)
        if configured is None and change.key not in self.overrides:
            return refused(_unknown(change.key, self.backends))
        if configured is None and (change.mode not in (None, "none") or change.weight):
            return refused(
                f"the configuration has no backend {'/'.join(change.key)};"
                " its override can only be cleared"
            )
        return self._change(change, configured or Mode.ENABLED)

    def change_all(self, changed: Mapping[BackendKey, Override], by: str) -> str:
        """Replace these overrides at once; returns a warning or ""."""
        for key, override in changed.items():
            self._set(key, override)
            name = "/".join(key)
            extra = {"pool": key[0], "backend": key[1], "by": by}
            log.warning(
                "backend %s is changed by %s: %s", name, by, describe(override), extra=extra
            )
        return self._publish()

    def _change(self, change: Change, configured: Mode) -> OverrideReply:
        now_at = time.time()
        before = self.overrides.get(change.key, Override())
        after = apply(settle(before, now_at), change, now_at, configured)
        warning = ""
        if after != before:
            self._set(change.key, after)
            extra = {"pool": change.key[0], "backend": change.key[1], "by": change.by}
            log.warning(
                "backend %s is changed by %s: %s",
                "/".join(change.key),
                change.by,
                describe(after),
                extra=extra,
            )
            warning = self._publish()
        pool, backend = change.key
        reply: OverrideReply = {
            "ok": True,
            "pool": pool,
            "backend": backend,
            "now": describe(after),
        }
        if warning:
            reply["warning"] = warning
        return reply


def _unknown(key: BackendKey, known: Iterable[BackendKey]) -> str:
    """Why a request for this backend is refused, with the names that exist."""
    pool, name = key
    backends = [backend for each, backend in known if each == pool]
    pools = clip_names(dict.fromkeys(each for each, _ in known))
    exists = f"there is no pool {clip(pool)} either; pools: {pools}"
    if backends:
        exists = f"pool {clip(pool)} has {clip_names(backends)}"
    return f"there is no backend {clip(pool)}/{clip(name)}: {exists}; see: relay backend list"


def _removed(before: Override, after: Override) -> Override:
    """The settings of `before` that `after` no longer has."""
    return Override(
        before.mode if before.mode != after.mode else None,
        before.weight if before.weight != after.weight else None,
    )


def _codes(override: Override) -> tuple[int, int]:
    """The values of an override's two cells."""
    mode = MODE_CODES[Mode(str(override.mode.value))] if override.mode else 0
    return mode, int(override.weight.value) if override.weight else 0
