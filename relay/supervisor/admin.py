"""Keeps the admin process running, on a socket that outlives it.

Never: serves a page itself (that is `observe.admin`).
"""

from __future__ import annotations

import logging
import signal
import socket
import time
from pathlib import Path
from typing import Any

from relay.config.address import compete
from relay.config.model import Admin
from relay.core.fleet import Rules
from relay.core.respawn import respawn_delay_s
from relay.errors import StartupError
from relay.observe.scoreboards import Scoreboards
from relay.sockets import RESTART_OR_MOVE, bound_address, open_single_listener
from relay.supervisor.channel import Channel
from relay.supervisor.privileges import Identity
from relay.supervisor.process import Ended, reap, send, start_admin

_RULES = Rules()
_LAST_WORDS_S = 2.0

log = logging.getLogger(__name__)


class AdminProcess:
    """The admin process and its listening socket; with an empty address neither exists. Raises StartupError when it cannot listen."""

    def __init__(self, settings: Admin, password: str, state_dir: Path) -> None:
        self._settings = settings
        self._state_dir = state_dir
        self._password = password
        self._listener = _open(settings.listen)
        self._next: tuple[Admin, str, socket.socket | None] | None = None
        self._pid: int | None = None
        self._started_at = 0.0
        self._young_deaths = 0
        self._start_at = 0.0
        self._replaced = False

    @property
    def address(self) -> str:
        """Where it listens, with the port the kernel chose; "" when it is off."""
        return bound_address(self._listener) if self._listener is not None else ""

    @property
    def pid(self) -> int | None:
        """Its pid while it runs."""
        return self._pid

    def step(self, now: float, identity: Identity, boards: Scoreboards, lifeline_fd: int, channel: Channel) -> None:
        """Start it when it should run and does not; a new one gets a channel of its own."""
        if channel.broken and self._pid is not None:
            send(self._pid, signal.SIGKILL)
            channel.broken = False
        self._notice_death(now)
        if self._pid is None and self._listener is not None and now >= self._start_at:
            try:
                with channel.open(self._greeting()) as theirs, boards.subscribe() as views:
                    self._pid = start_admin(identity, views.fileno(), self._listener, lifeline_fd, theirs)
            except OSError as error:
                log.error("the admin process cannot be started: %s; tried again in %g s", error, _RULES.longest_delay_s)  # noqa: TRY400  for operators, no traceback
                self._start_at = now + _RULES.longest_delay_s
            self._started_at = now

    def _greeting(self) -> dict[str, Any]:
        """What it must know of the configuration, which it cannot read."""
        settings = self._settings
        return {"listen": self.address, "hosts": list(settings.hosts), "user": settings.user, "password": self._password, "state_dir": str(self._state_dir)}

    def _notice_death(self, now: float) -> None:
        ended = self._reap()
        if ended is None:
            return
        if self._replaced:
            self._replaced = False
            self._start_at = now
            return
        self._young_deaths = self._young_deaths + 1 if now - self._started_at < _RULES.young_s else 0
        delay_s = respawn_delay_s(self._young_deaths, _RULES)
        self._start_at = now + delay_s
        log.error("the admin process %s after %.1f s; it is replaced %s", ended, now - self._started_at, f"in {delay_s:g} s" if delay_s else "at once")

    def _reap(self) -> Ended | None:
        ended = reap(self._pid) if self._pid is not None else None
        if ended is not None:
            self._pid = None
        return ended

    def prepare(self, settings: Admin, password: str) -> None:
        """Open the socket of another configuration when its address differs. Raises StartupError; then nothing has changed."""
        if settings != self._settings or password != self._password:
            moves = settings.listen not in (self._settings.listen, self.address)
            if moves and compete(settings.listen, self.address):
                raise StartupError(f"admin.listen: cannot listen on {settings.listen} while the relay's own admin process listens on {self.address}", RESTART_OR_MOVE)
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
        if self._pid is not None:
            self._replaced = True
            send(self._pid, signal.SIGTERM)

    def discard(self) -> None:
        """Forget what was prepared."""
        if self._next is not None and self._next[2] is not None and self._next[2] is not self._listener:
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
