"""Keeps the admin process running, on a socket that outlives it.

Never: serves a page itself (that is `admin.main`).
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from relay.config.address import compete
from relay.config.model import Admin
from relay.core.fleet_plan import Rules
from relay.core.respawn import respawn_delay_s
from relay.errors import StartupError
from relay.shared.backends_view import HEALTH_FILE
from relay.supervisor.admin_channel import AdminChannel
from relay.supervisor.listening import RESTART_OR_MOVE, bound_address, open_single_listener
from relay.supervisor.prepared import Prepared
from relay.supervisor.privileges import find_admin_identity
from relay.supervisor.process import ExitStatus, reap, send, start_admin
from relay.supervisor.scoreboards import Scoreboards

_LAST_WORDS_S = 3.0  # an answer that it is giving may take a second
_STALLED_S = 5.0

log = logging.getLogger(__name__)


class AdminProcess:
    """The admin process and its listening socket; with an empty address neither exists. Raises StartupError when it cannot listen."""

    def __init__(
        self, settings: Admin, password: str, state_dir: Path, rules: Rules | None = None
    ) -> None:
        self._settings = settings
        self._rules = rules or Rules()
        self._state_dir = state_dir
        self._password = password
        self._listener = _open(settings.listen)
        self._next: tuple[Admin, str, socket.socket | None] | None = None
        self._pid: int | None = None
        self._started_at = 0.0
        self._early_deaths = 0
        self._start_at = 0.0
        self._told_at: float | None = None
        self._aborted_at: float | None = None
        self._stepped_at = 0.0
        self._trusted_from_at = 0.0

    @property
    def address(self) -> str:
        """Where it listens, with the port the kernel chose; "" when it is off."""
        return bound_address(self._listener) if self._listener is not None else ""

    @property
    def pid(self) -> int | None:
        """Its pid while it runs."""
        return self._pid

    def step(
        self,
        now: float,
        prepared: Prepared,
        scoreboards: Scoreboards,
        lifeline_fd: int,
        channel: AdminChannel,
    ) -> None:
        """Start it when it should run and does not; a new one gets a channel of its own."""
        if channel.broken and self._pid is not None:
            send(self._pid, signal.SIGKILL)
            channel.broken = False
        if now - self._stepped_at > _STALLED_S:
            self._trusted_from_at = now  # it was us who did not run
        self._stepped_at = now
        self._notice_death(now)
        if self._pid is not None:
            self._notice_hang(now, channel.heard_at)
        if self._pid is None and self._listener is not None and now >= self._start_at:
            try:
                with (
                    channel.open(self._greeting()) as theirs,
                    scoreboards.subscribe() as views,
                    self._open_health() as health,
                ):
                    descriptors = {
                        "--scoreboard-fd": views.fileno(),
                        "--listen-fd": self._listener.fileno(),
                        "--lifeline-fd": lifeline_fd,
                        "--control-fd": theirs.fileno(),
                        **health,
                    }
                    self._pid = start_admin(
                        find_admin_identity(prepared.config.relay, prepared.identity), descriptors
                    )
            except OSError as error:
                self._early_deaths += 1
                delay_s = max(
                    respawn_delay_s(self._early_deaths, self._rules), self._rules.first_delay_s
                )
                log.error(
                    "the admin process cannot be started: %s; tried again in %g s", error, delay_s
                )
                self._start_at = now + delay_s
            self._started_at = now
            self._told_at = self._aborted_at = None

    @contextmanager
    def _open_health(self) -> Iterator[dict[str, int]]:
        """The checker's directory: the admin process may not be able to walk there. Nothing where it is gone."""
        try:
            descriptor = os.open(
                (self._state_dir / HEALTH_FILE).parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            )
        except OSError:
            yield {}
            return
        try:
            yield {"--health-fd": descriptor}
        finally:
            os.close(descriptor)

    def _greeting(self) -> dict[str, Any]:
        """What it must know of the configuration, which it cannot read."""
        settings = self._settings
        return {
            "listen": self.address,
            "hosts": list(settings.hosts),
            "user": settings.user,
            "password": self._password,
            "state_dir": str(self._state_dir),
        }

    def _notice_death(self, now: float) -> None:
        ended = self._reap()
        if ended is None:
            return
        if self._told_at is not None:
            self._start_at = now
            return
        self._early_deaths = (
            self._early_deaths + 1 if now - self._started_at < self._rules.early_death_s else 0
        )
        delay_s = respawn_delay_s(self._early_deaths, self._rules)
        self._start_at = now + delay_s
        log.error(
            "the admin process %s after %.1f s; it is replaced %s",
            ended,
            now - self._started_at,
            f"in {delay_s:g} s" if delay_s else "at once",
        )

    def renew(self) -> None:
        """Replace the process: what it has open is out of date."""
        if self._pid is not None and self._told_at is None:
            self._told_at = time.monotonic()
            send(self._pid, signal.SIGTERM)

    def restore(self) -> bool:
        """Make a unix socket again whose file is gone; whether it was. Raises StartupError."""
        listener = self._listener
        if (
            listener is None
            or listener.family != socket.AF_UNIX
            or Path(listener.getsockname()).exists()
        ):
            return False
        self._listener = _open(f"unix:{listener.getsockname()}")
        if self._next is not None and self._next[2] is listener:
            self._next = (*self._next[:2], self._listener)
        listener.close()
        self.renew()
        return True

    def _notice_hang(self, now: float, heard_at: float) -> None:
        """It says something once a second; silence gets SIGABRT, which prints where it hangs, then SIGKILL."""
        assert self._pid is not None  # noqa: S101  for mypy
        if self._aborted_at is not None:
            if now >= self._aborted_at + self._rules.abort_grace_s:
                send(self._pid, signal.SIGKILL)
            return
        silent_s = now - max(heard_at, self._started_at, self._trusted_from_at)
        # Until it has said something it is still importing, on a machine that may be busy.
        patience_s = (
            self._rules.hang_s if heard_at > self._started_at else self._rules.start_timeout_s
        )
        stays = self._told_at is not None and now >= self._told_at + _LAST_WORDS_S
        if silent_s > patience_s or stays:
            why = (
                "it was told to end and does not"
                if stays
                else f"no sign of life for {silent_s:.1f} s"
            )
            log.error(
                "the admin process (pid %d) hangs: %s; it gets SIGABRT, which prints where",
                self._pid,
                why,
            )
            self._aborted_at = now
            send(self._pid, signal.SIGABRT)

    def _reap(self) -> ExitStatus | None:
        ended = reap(self._pid) if self._pid is not None else None
        if ended is not None:
            self._pid = None
        return ended

    def prepare(self, settings: Admin, password: str) -> None:
        """Open the socket of another configuration when its address differs. Raises StartupError; then nothing has changed."""
        if settings != self._settings or password != self._password:
            moves = settings.listen not in (self._settings.listen, self.address)
            if moves and compete(settings.listen, self.address):
                raise StartupError(
                    f"admin.listen: cannot listen on {settings.listen} while the relay's own admin process listens on {self.address}",
                    RESTART_OR_MOVE,
                )
            self._next = (settings, password, _open(settings.listen) if moves else self._listener)

    def commit(self) -> None:
        """Go over to what was prepared: the next process has it."""
        if self._next is None:
            return
        before, self._listener = self._listener, self._next[2]
        if before is not None and before is not self._listener:
            _close(before)
        self._settings, self._password, _ = self._next
        self._next = None
        self.renew()

    def discard(self) -> None:
        """Forget what was prepared."""
        if (
            self._next is not None
            and self._next[2] is not None
            and self._next[2] is not self._listener
        ):
            _close(self._next[2])
        self._next = None

    def close_files(self) -> None:
        """Let go of the sockets: what a child does."""
        for listener in (self._listener, self._next[2] if self._next is not None else None):
            if listener is not None:
                listener.close()

    def close(self) -> None:
        """End the process, politely first."""
        if self._pid is not None and self._reap() is None:
            send(self._pid, signal.SIGTERM)
            deadline = time.monotonic() + _LAST_WORDS_S
            while self._reap() is None and self._pid is not None:
                if time.monotonic() > deadline:
                    send(self._pid, signal.SIGKILL)
                    deadline = float("inf")
                time.sleep(0.005)
        self.discard()
        if self._listener is not None:
            _close(self._listener)


def _open(listen: str) -> socket.socket | None:
    return open_single_listener("admin.listen", listen) if listen else None


def _close(listener: socket.socket) -> None:
    if listener.family == socket.AF_UNIX:
        Path(listener.getsockname()).unlink(missing_ok=True)
    listener.close()
