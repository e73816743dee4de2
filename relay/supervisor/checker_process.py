"""Keeps the checker running: one per generation whose configuration needs checks.

The next checker starts after the one before has ended, so every cell has one writer.
Only in between does the supervisor write to these cells: it clears what was found about
backends and host names that the new configuration dropped or changed.

Never: checks a backend itself (`relay.checker` does).
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from relay.checker.health_file import HealthFile
from relay.checker.lookup import preload
from relay.checker.main import CheckerSpec, is_needed, run_checker
from relay.core.fleet_view import Rules
from relay.errors import StartupError
from relay.sandbox.confinement import resolver_identity
from relay.shared.backends_view import HEALTH_FILE
from relay.shared.entities import fetches_lists, hosts_of
from relay.shared.scoreboard import CHECKER_SLOT, HEARTBEAT_MS, PID, Scoreboard, monotonic_ms
from relay.shared.update_channel import UpdateSender
from relay.supervisor.checker_findings import forget_findings
from relay.supervisor.children import ChildProcess
from relay.supervisor.prepared import Prepared
from relay.supervisor.privileges import Identity
from relay.supervisor.process import send, start_checker
from relay.supervisor.scoreboards import Scoreboards
from relay.supervisor.taken_rows import TakenRow
from relay.supervisor.updates import Updates

STOP_PATIENCE_S = 2.0
RESOLVER_LOOK_S = 2.0  # how often the files of name resolution are compared

log = logging.getLogger(__name__)


def make_health_directory(state_dir: Path, identity: Identity) -> bool:
    """Make the directory of health.json if it is missing. True if it was.

    Raises OSError.
    """
    directory = (state_dir / HEALTH_FILE).parent
    if directory.is_dir():
        return False
    directory.mkdir(mode=0o755)
    if identity.change:
        os.chown(directory, identity.uid, identity.gid, follow_symlinks=False)
    return True


def open_health_file(state_dir: Path, identity: Identity) -> Path:
    """The path of health.json, in a directory that belongs to the checker's user.

    The checker may write nowhere else. Raises StartupError.
    """
    file = state_dir / HEALTH_FILE
    directory = file.parent
    try:
        directory.mkdir(mode=0o755, exist_ok=True)
        if identity.change:
            os.chown(directory, identity.uid, identity.gid, follow_symlinks=False)
        file.unlink(missing_ok=True)  # left by an earlier relay
    except OSError as error:
        raise StartupError(
            f"{directory}: cannot be prepared for the checker: {error.strerror or error}",
            "remove it, or choose another relay.state_dir",
        ) from None
    return file


class CheckerProcess:
    """The checker of the generation that serves.

    `close_in_child` closes, in the child, the files that only the supervisor or a
    worker needs.
    """

    def __init__(
        self,
        scoreboards: Scoreboards,
        lifeline_fd: int,
        *,
        health_file: Path,
        close_in_child: Callable[[], None],
        rules: Rules,
        updates: Updates,
    ) -> None:
        self._rules = rules
        self._updates = updates
        self._sender: UpdateSender | None = None  # while it runs
        self._scoreboards = scoreboards
        self._lifeline_fd = lifeline_fd
        self._health_file = health_file
        self._close_in_child = close_in_child
        self._prepared: Prepared | None = None  # the generation that it serves
        self._needed = False
        self._scoreboard: Scoreboard | None = None  # with `_row`, while it runs
        self._row = 0
        self._taken: TakenRow | None = None  # of the version before an upgrade
        self._resolver = resolver_identity()
        self._resolver_look_at = 0.0
        self._child = ChildProcess(
            "the checker",
            rules,
            STOP_PATIENCE_S,
            meanwhile="backends keep the state that was last found",
            on_end=self._fold_counters,
        )

    @property
    def pid(self) -> int | None:
        """Its pid while it runs."""
        return self._child.pid

    def step(self, now: float, prepared: Prepared) -> None:
        """Start, replace or end it, as the serving generation needs."""
        self._child.begin_turn(now)
        outdated = self._prepared is None or prepared.generation.number != self._number
        if self._child.pid is not None:
            if outdated or self._resolver_changed(now):
                self._child.request_stop()
            self._child.watch(now, self._heartbeat_at(), self._rules.hang_s)
            return
        if outdated:
            self._needed = is_needed(prepared.config, prepared.entities)
            self._clear_findings(prepared)
            self._prepared = prepared
            self._child.start_afresh(now)
        if self._needed and self._child.is_due(now):
            self._start(now, prepared)

    @property
    def _number(self) -> int:
        """The generation that it serves; 0 before the first."""
        return self._prepared.generation.number if self._prepared is not None else 0

    def _resolver_changed(self, now: float) -> bool:
        """Whether a file of name resolution was replaced.

        The checker is confined to the files that existed when it started, so it cannot
        read the new one.
        """
        if self._child.stop_requested or now < self._resolver_look_at:
            return False
        self._resolver_look_at = now + RESOLVER_LOOK_S
        changed = resolver_identity() != self._resolver
        if changed:
            log.info(
                "a file of name resolution was replaced (/etc/resolv.conf, /etc/hosts or the"
                " like); the checker restarts to read it"
            )
        return changed

    def _start(self, now: float, prepared: Prepared) -> None:
        if not self._child.start(now, lambda: self._launch(prepared)):
            return
        assert self._scoreboard is not None  # noqa: S101  for mypy
        self._scoreboard.row(self._row)[PID] = self._child.pid
        log.info(
            "the checker started",
            extra={"checker_pid": self._child.pid, "generation": self._number},
        )

    def _launch(self, prepared: Prepared) -> int:
        """Fork the checker; returns its pid. Raises OSError."""
        scoreboard = self._scoreboards.generation(prepared.generation.number)
        sender = UpdateSender()
        try:
            row = self._scoreboards.lease(scoreboard, CHECKER_SLOT)
        except OSError:
            sender.close_both()
            raise
        health_file = HealthFile(self._health_file)
        self._resolver = resolver_identity()
        spec = CheckerSpec(
            row,
            prepared.generation,
            scoreboard,
            scoreboard.layout,
            self._lifeline_fd,
            health_file,
            sender.child_end,
            self._updates.reports.reader(),
            self._updates.reports.writer(),
        )

        def close_in_child() -> None:
            self._close_in_child()
            sender.close()
            health_file.open()
            preload(hosts_of(prepared.config))

        self._scoreboards.share_with(scoreboard)
        try:
            with spec.reports, spec.report_end:
                pid = start_checker(prepared.identity, close_in_child, lambda: run_checker(spec))
        except OSError:
            sender.close_both()
            scoreboard.release(row)
            raise
        self._updates.started(sender, scoreboard.number)
        self._sender = sender
        self._scoreboard, self._row = scoreboard, row
        return pid

    def take(self, pid: int, taken: TakenRow) -> None:
        """Replace the checker of the version before an upgrade.

        It ends by itself, as its channel has closed, so its end is no failure.
        """
        self._child.take(pid)
        self._child.request_stop()
        self._scoreboard, self._row, self._taken = taken.scoreboard, taken.row, taken

    def described(self) -> dict[str, Any] | None:
        """The process and its row, for another version; None while none runs."""
        if self._child.pid is None or self._scoreboard is None:
            return None
        row = self._row if self._taken is None else self._taken.row_there
        return {"pid": self._child.pid, "generation": self._scoreboard.number, "row": row}

    def fetch_lists(self) -> None:
        """Let it ask for newer revocation lists at once: an operator wants a reload."""
        prepared = self._prepared
        if self._child.pid is not None and prepared and fetches_lists(prepared.config):
            send(self._child.pid, signal.SIGHUP)

    def renew(self) -> None:
        """Replace it: its directory was made again, and it has the old one open."""
        self._child.request_stop()

    def _heartbeat_at(self) -> float:
        """Its last heartbeat; 0 if the value cannot be true."""
        assert self._scoreboard is not None  # noqa: S101  for mypy
        beat_ms: int = self._scoreboard.row(self._row)[HEARTBEAT_MS]
        return beat_ms / 1000 if beat_ms <= monotonic_ms() + 1000 else 0.0

    def _fold_counters(self) -> None:
        """After its end: add its counters to the totals."""
        assert self._scoreboard is not None  # noqa: S101  for mypy
        if self._taken is not None:
            self._taken.end()
            self._taken = None
        self._scoreboards.fold(self._scoreboard, self._row)
        self._scoreboard = None
        if self._sender is not None:
            self._updates.ended(self._sender)
            self._sender = None

    def _clear_findings(self, prepared: Prepared) -> None:
        """Forget findings about what the new configuration dropped or changed."""
        before = self._prepared
        if before is None:
            return
        for states in self._scoreboards.states():
            forget_findings(states, before.config, prepared.config)
        if not self._needed:
            try:
                self._health_file.unlink(missing_ok=True)
            except OSError as error:  # the checker's user may put anything there
                log.warning(
                    "%s: cannot be removed: %s; the admin page shows old health results",
                    self._health_file,
                    error.strerror or error,
                )

    def close(self) -> None:
        """End it."""
        self._child.close()
