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
from collections.abc import Callable
from pathlib import Path

from relay.checker.main import CheckerSpec, is_needed, run_checker
from relay.checker.report import ReportFile
from relay.config.model import Config
from relay.core.fleet import Rules
from relay.core.respawn import respawn_delay_s
from relay.errors import StartupError
from relay.observe.addresses import cell_of, write_addresses
from relay.observe.names import BACKEND_NOT_AFTER_S, HEALTH, HEALTH_UNKNOWN, HEALTH_VERSION, hosts_of
from relay.observe.pools import HEALTH_FILE
from relay.observe.scoreboard import CHECKER_SLOT, HEARTBEAT_MS, PID, SHARED_ROW, Layout, Scoreboard, ScoreboardFullError
from relay.supervisor.prepare import Prepared
from relay.supervisor.privileges import Identity
from relay.supervisor.process import Ended, reap, send, start_checker

_LAST_WORDS_S = 2.0
_STALLED_S = 5.0

log = logging.getLogger(__name__)


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
        raise StartupError(f"{directory}: cannot be made ready for the checker: {error.strerror or error}", "remove it, or choose another relay.state_dir") from None
    return file


class CheckerProcess:
    """The checker of the generation that serves. `let_go` closes in the child what is the supervisor's or a worker's."""

    def __init__(self, board: Scoreboard, layout: Layout, lifeline_fd: int, *, health_file: Path, let_go: Callable[[], None], rules: Rules) -> None:
        self._rules = rules
        self._board = board
        self._layout = layout
        self._lifeline_fd = lifeline_fd
        self._health_file = health_file
        self._let_go = let_go
        self._config: Config | None = None  # of the generation it is for
        self._number = 0
        self._pid: int | None = None
        self._row = 0
        self._started_at = 0.0
        self._start_at = 0.0
        self._told_at: float | None = None
        self._aborted_at: float | None = None
        self._young_deaths = 0
        self._stepped_at = 0.0
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
            self._push(now, outdated=outdated)
            return
        if outdated:
            self._clear(prepared.config)
            self._config, self._number, self._start_at, self._young_deaths = prepared.config, prepared.generation.number, now, 0
        if is_needed(prepared.config) and now >= self._start_at:
            self._start(now, prepared)

    def _start(self, now: float, prepared: Prepared) -> None:
        try:
            self._row = self._board.lease(CHECKER_SLOT, prepared.generation.number)
            report = ReportFile(self._health_file)
            spec = CheckerSpec(self._row, prepared.generation, self._board, self._layout, self._lifeline_fd, report)

            def let_go() -> None:
                self._let_go()
                report.open()

            try:
                self._pid = start_checker(prepared.identity, let_go, lambda: run_checker(spec))
            except OSError:
                self._board.fold(self._row, self._layout)
                raise
        except (OSError, ScoreboardFullError) as error:
            log.error("the checker cannot be started: %s; backends stay as they were; tried again in %g s", error, self._rules.longest_delay_s)  # noqa: TRY400  for operators, no traceback
            self._start_at = now + self._rules.longest_delay_s
            return
        self._board.row(self._row)[PID] = self._pid
        self._started_at = now
        self._told_at = self._aborted_at = None
        log.info("the checker started", extra={"checker_pid": self._pid, "generation": self._number})

    def _push(self, now: float, *, outdated: bool) -> None:
        assert self._pid is not None  # noqa: S101  for mypy
        if outdated and self._told_at is None:
            self._told_at = now
            send(self._pid, signal.SIGTERM)
        silent_s = now - max(self._board.row(self._row)[HEARTBEAT_MS] / 1000, self._started_at, self._trusted_from_at)
        if self._aborted_at is not None:
            if now >= self._aborted_at + self._rules.abort_grace_s:
                send(self._pid, signal.SIGKILL)
        elif (self._told_at is not None and now >= self._told_at + _LAST_WORDS_S) or silent_s > self._rules.hang_s:
            log.error("the checker (pid %d) hangs: no heartbeat for %.1f s; it gets SIGABRT, which prints where", self._pid, silent_s)
            self._aborted_at = now
            send(self._pid, signal.SIGABRT)

    def _notice_death(self, now: float) -> None:
        ended = self._reap()
        if ended is None or self._told_at is not None:
            return
        self._young_deaths = self._young_deaths + 1 if now - self._started_at < self._rules.young_s else 0
        delay_s = respawn_delay_s(self._young_deaths, self._rules)
        self._start_at = now + delay_s
        log.error(
            "the checker %s after %.1f s; backends stay as they were found; it is replaced %s", ended, now - self._started_at, f"in {delay_s:g} s" if delay_s else "at once"
        )

    def _reap(self) -> Ended | None:
        ended = reap(self._pid) if self._pid is not None else None
        if ended is not None:
            self._pid = None
            self._board.fold(self._row, self._layout)
        return ended

    def _clear(self, config: Config) -> None:
        """Forget what was found about whatever the new configuration does not have, or has changed."""
        if self._config is None:
            return
        shared, changed = self._board.row(SHARED_ROW), False
        for name, pool in self._config.pool.items():
            if pool.health is None:
                continue
            then = config.pool.get(name)
            kept = {backend.route: (backend.address, backend.name) for backend in then.backend} if then is not None and then.health is not None else {}
            for backend in pool.backend:
                if kept.get(backend.route) != (backend.address, backend.name):
                    shared[self._layout.cell(HEALTH, name, backend.route)] = HEALTH_UNKNOWN
                    shared[self._layout.cell(BACKEND_NOT_AFTER_S, name, backend.route)] = 0
                    changed = True
        if changed:
            shared[self._layout.cell(HEALTH_VERSION)] += 1
        for host in hosts_of(self._config).keys() - hosts_of(config).keys():
            write_addresses(shared, cell_of(self._layout, host), ())
        if not is_needed(config):
            self._health_file.unlink(missing_ok=True)

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
