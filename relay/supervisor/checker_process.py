"""Keeps the checker running: one per generation, when its configuration gives it something to do.

The next one starts when the one before has ended, so that every cell has one writer; in between, and only then, the supervisor itself clears what
was found about backends and names that are no more, or are not what they were.

Never: checks a backend itself (that is `relay.checker`).
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from relay.checker.health_file import HealthFile
from relay.checker.main import CheckerSpec, is_needed, run_checker
from relay.config.model import Config
from relay.core.fleet_plan import Rules
from relay.core.respawn import respawn_delay_s
from relay.errors import StartupError
from relay.sandbox.confinement import resolver_identity
from relay.shared.addresses import write_addresses
from relay.shared.backends_view import HEALTH_FILE
from relay.shared.cell_layout import state_offset
from relay.shared.entities import (
    BACKEND,
    BACKEND_NOT_AFTER_S,
    CHECKED_BACKEND,
    HEALTH,
    HEALTH_UNKNOWN,
    HEALTH_VERSION,
    HOST,
    RELAY,
    Key,
)
from relay.shared.scoreboard import CHECKER_SLOT, HEARTBEAT_MS, PID, Scoreboard, monotonic_ms
from relay.shared.state_cells import StateCells, bump
from relay.supervisor.prepared import Prepared
from relay.supervisor.privileges import Identity
from relay.supervisor.process import ExitStatus, reap, send, start_checker
from relay.supervisor.scoreboards import Scoreboards

_LAST_WORDS_S = 2.0
_STALLED_S = 5.0
_LOOK_S = 2.0

log = logging.getLogger(__name__)


def make_health_directory(state_dir: Path, identity: Identity) -> bool:
    """Make the directory in which the checker may write; whether it was not there. Raises OSError."""
    directory = (state_dir / HEALTH_FILE).parent
    if directory.is_dir():
        return False
    directory.mkdir(mode=0o755)
    if identity.change:
        os.chown(directory, identity.uid, identity.gid, follow_symlinks=False)
    return True


def open_health_file(state_dir: Path, identity: Identity) -> Path:
    """The file in a directory in which the checker may write, and no process without the supervisor's rights anywhere else. Raises StartupError."""
    file = state_dir / HEALTH_FILE
    directory = file.parent
    try:
        directory.mkdir(mode=0o755, exist_ok=True)
        if identity.change:
            os.chown(directory, identity.uid, identity.gid, follow_symlinks=False)
        file.unlink(missing_ok=True)  # of an earlier relay
    except OSError as error:
        raise StartupError(
            f"{directory}: cannot be made ready for the checker: {error.strerror or error}",
            "remove it, or choose another relay.state_dir",
        ) from None
    return file


def _checked(config: Config) -> dict[tuple[str, str], tuple[str, str | None]]:
    """The backends that a configuration has checked: pool and backend, with address and name."""
    return {
        (name, backend.route): (backend.address, backend.name)
        for name, pool in config.pool.items()
        if pool.health is not None
        for backend in pool.backend
    }


def _forget(states: StateCells, backends: Iterable[tuple[str, str]], hosts: Iterable[Key]) -> None:
    """What a checker has found, as far as any generation can see it."""
    found: list[tuple[int, int]] = []
    for member in backends:
        for kind, name, value in (
            (BACKEND, HEALTH, HEALTH_UNKNOWN),
            (CHECKED_BACKEND, BACKEND_NOT_AFTER_S, 0),
        ):
            base = states.base(kind.name, member)
            if base is not None:
                found.append((base + state_offset(name)[1], value))
    for cell, value in found:
        states.cells[cell] = value
    version = states.base(RELAY.name, ())
    if found and version is not None:
        bump(states.cells, version + state_offset(HEALTH_VERSION)[1])
    for host in hosts:
        first = states.base(HOST.name, host)
        if first is not None:
            write_addresses(states.cells, first, ())


class CheckerProcess:
    """The checker of the generation that serves. `let_go` closes in the child what is the supervisor's or a worker's."""

    def __init__(
        self,
        scoreboards: Scoreboards,
        lifeline_fd: int,
        *,
        health_file: Path,
        let_go: Callable[[], None],
        rules: Rules,
    ) -> None:
        self._rules = rules
        self._scoreboards = scoreboards
        self._scoreboard: Scoreboard | None = None
        self._lifeline_fd = lifeline_fd
        self._health_file = health_file
        self._let_go = let_go
        self._prepared: Prepared | None = None  # the generation it is for
        self._needed = False
        self._number = 0
        self._pid: int | None = None
        self._row = 0
        self._started_at = 0.0
        self._start_at = 0.0
        self._told_at: float | None = None
        self._aborted_at: float | None = None
        self._early_deaths = 0
        self._stepped_at = 0.0
        self._resolver = resolver_identity()
        self._look_at = 0.0
        self._trusted_from_at = 0.0

    @property
    def pid(self) -> int | None:
        """Its pid while it runs."""
        return self._pid

    def step(self, now: float, prepared: Prepared) -> None:
        """Start, replace or end it, as the generation that serves wants it."""
        if now - self._stepped_at > _STALLED_S:
            self._trusted_from_at = now  # it was us who did not run
        self._stepped_at = now
        self._notice_death(now)
        outdated = prepared.generation.number != self._number
        if self._pid is not None:
            self._push(now, outdated=outdated or self._resolver_changed(now))
            return
        if outdated:
            self._needed = is_needed(prepared.entities)
            self._clear(prepared)
            self._prepared, self._number, self._start_at, self._early_deaths = (
                prepared,
                prepared.generation.number,
                now,
                0,
            )
        if self._needed and now >= self._start_at:
            self._start(now, prepared)

    def _resolver_changed(self, now: float) -> bool:
        """Whether a file of name resolution was replaced: the checker may read the old one alone."""
        if self._told_at is not None or now < self._look_at:
            return False
        self._look_at = now + _LOOK_S
        changed = resolver_identity() != self._resolver
        if changed:
            log.info(
                "a file of name resolution was replaced (/etc/resolv.conf, /etc/hosts or the like); the checker starts again to read it"
            )
        return changed

    def _start(self, now: float, prepared: Prepared) -> None:
        try:
            scoreboard = self._scoreboards.generation(prepared.generation.number)
            self._row, self._scoreboard = (
                self._scoreboards.lease(scoreboard, CHECKER_SLOT),
                scoreboard,
            )
            report = HealthFile(self._health_file)
            self._resolver = resolver_identity()
            spec = CheckerSpec(
                self._row,
                prepared.generation,
                scoreboard,
                scoreboard.layout,
                self._lifeline_fd,
                report,
            )

            def let_go() -> None:
                self._let_go()
                report.open()

            self._scoreboards.share_with(scoreboard)
            try:
                self._pid = start_checker(prepared.identity, let_go, lambda: run_checker(spec))
            except OSError:
                scoreboard.release(self._row)
                raise
        except OSError as error:
            self._early_deaths += 1
            delay_s = max(
                respawn_delay_s(self._early_deaths, self._rules), self._rules.first_delay_s
            )
            log.error(
                "the checker cannot be started: %s; backends stay as they were; tried again in %g s",
                error,
                delay_s,
            )
            self._start_at = now + delay_s
            return
        scoreboard.row(self._row)[PID] = self._pid
        self._started_at = now
        self._told_at = self._aborted_at = None
        log.info(
            "the checker started", extra={"checker_pid": self._pid, "generation": self._number}
        )

    def renew(self) -> None:
        """Replace it: its directory was made again, and it has the old one open."""
        if self._pid is not None and self._told_at is None:
            self._told_at = time.monotonic()
            send(self._pid, signal.SIGTERM)

    def _push(self, now: float, *, outdated: bool) -> None:
        assert self._pid is not None  # noqa: S101  for mypy
        if outdated and self._told_at is None:
            self._told_at = now
            send(self._pid, signal.SIGTERM)
        silent_s = now - max(self._beat_at(), self._started_at, self._trusted_from_at)
        if self._aborted_at is not None:
            if now >= self._aborted_at + self._rules.abort_grace_s:
                send(self._pid, signal.SIGKILL)
        elif (
            self._told_at is not None and now >= self._told_at + _LAST_WORDS_S
        ) or silent_s > self._rules.hang_s:
            log.error(
                "the checker (pid %d) hangs: no heartbeat for %.1f s; it gets SIGABRT, which prints where",
                self._pid,
                silent_s,
            )
            self._aborted_at = now
            send(self._pid, signal.SIGABRT)

    def _beat_at(self) -> float:
        assert self._scoreboard is not None  # noqa: S101  for mypy
        beat_ms: int = self._scoreboard.row(self._row)[HEARTBEAT_MS]
        return beat_ms / 1000 if beat_ms <= monotonic_ms() + 1000 else 0.0

    def _notice_death(self, now: float) -> None:
        ended = self._reap()
        if ended is None or self._told_at is not None:
            return
        self._early_deaths = (
            self._early_deaths + 1 if now - self._started_at < self._rules.early_death_s else 0
        )
        delay_s = respawn_delay_s(self._early_deaths, self._rules)
        self._start_at = now + delay_s
        log.error(
            "the checker %s after %.1f s; backends stay as they were found; it is replaced %s",
            ended,
            now - self._started_at,
            f"in {delay_s:g} s" if delay_s else "at once",
        )

    def _reap(self) -> ExitStatus | None:
        ended = reap(self._pid) if self._pid is not None else None
        if ended is not None:
            self._pid = None
            assert self._scoreboard is not None  # noqa: S101  for mypy
            self._scoreboards.fold(self._scoreboard, self._row)
            self._scoreboard = None
        return ended

    def _clear(self, prepared: Prepared) -> None:
        """Forget what was found about whatever the new configuration does not have, or has changed."""
        before = self._prepared
        if before is None:
            return
        kept = _checked(prepared.config)
        changed = [
            member for member, where in _checked(before.config).items() if kept.get(member) != where
        ]
        hosts = set(before.entities[HOST.name]) - set(prepared.entities[HOST.name])
        for states in self._scoreboards.states():
            _forget(states, changed, hosts)
        if not self._needed:
            try:
                self._health_file.unlink(missing_ok=True)
            except OSError as error:  # the directory is the checker's: anything may be there
                log.warning(
                    "%s: cannot be removed: %s; the page shows what it says",
                    self._health_file,
                    error.strerror or error,
                )

    def close(self) -> None:
        """End it, politely first."""
        if self._pid is None or self._reap() is not None:
            return
        send(self._pid, signal.SIGTERM)
        deadline = time.monotonic() + _LAST_WORDS_S
        while self._pid is not None and self._reap() is None:
            if time.monotonic() > deadline:
                send(self._pid, signal.SIGKILL)
                deadline = float("inf")
            time.sleep(0.002)
