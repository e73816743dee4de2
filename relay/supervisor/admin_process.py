"""Keeps the admin process running, on a listening socket that outlives it.

Never: serves a page itself (`relay.admin.main` does).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from relay.config.address import conflict
from relay.config.model import Admin
from relay.core.fleet_view import Rules
from relay.errors import StartupError
from relay.shared.backends_view import HEALTH_FILE
from relay.shared.messages import Greeting
from relay.supervisor.admin_channel import AdminChannel
from relay.supervisor.children import ChildProcess
from relay.supervisor.listening import RESTART_OR_MOVE, bound_address, open_single_listener
from relay.supervisor.prepared import Prepared
from relay.supervisor.privileges import find_admin_identity
from relay.supervisor.process import start_admin
from relay.supervisor.scoreboards import Scoreboards

STOP_PATIENCE_S = 3.0  # a request that it answers at the moment may take a second


@dataclass(frozen=True, slots=True)
class _Service:
    """What one configuration wants of the admin process, with its listening socket."""

    settings: Admin
    password: str = field(repr=False)
    listener: socket.socket | None


class AdminProcess:
    """The admin process and its listening socket; neither exists if the address is
    empty.

    Raises StartupError when the address cannot be bound.
    """

    def __init__(
        self,
        settings: Admin,
        password: str,
        state_dir: Path,
        rules: Rules | None = None,
        taken: Mapping[str, Any] | None = None,
    ) -> None:
        """Open the socket. `taken`: what `described` said in the version before."""
        self._rules = rules or Rules()
        self._state_dir = state_dir
        listener = _take(settings.listen, taken) if taken is not None else _open(settings.listen)
        self._current = _Service(settings, password, listener)
        self._next: _Service | None = None
        self._child = ChildProcess("the admin process", self._rules, STOP_PATIENCE_S)
        if taken is not None:
            self._child.take(taken["pid"])

    def described(self) -> dict[str, Any] | None:
        """The socket and the process, for another version; None if it is off."""
        current = self._current
        if current.listener is None:
            return None
        return {
            "listen": current.settings.listen,
            "fd": current.listener.fileno(),
            "pid": self._child.pid,
        }

    @property
    def address(self) -> str:
        """Where it listens, with the port the kernel chose; empty when it is off."""
        listener = self._current.listener
        return bound_address(listener) if listener is not None else ""

    @property
    def pid(self) -> int | None:
        """Its pid while it runs."""
        return self._child.pid

    @property
    def ending(self) -> bool:
        """Whether the process was told to end, and runs still."""
        return self._child.pid is not None and self._child.stop_requested

    def step(
        self,
        now: float,
        prepared: Prepared,
        scoreboards: Scoreboards,
        lifeline_fd: int,
        channel: AdminChannel,
    ) -> None:
        """Start the process if it should run and does not; end it if it hangs.

        Each new process gets a new channel.
        """
        if channel.broken and self._child.pid is not None:
            self._child.kill()
            channel.broken = False
        self._child.begin_turn(now)
        # Before its first message it imports modules, perhaps on a busy machine.
        speaks = channel.heard_at > self._child.started_at
        silence_limit_s = self._rules.hang_s if speaks else self._rules.start_timeout_s
        self._child.watch(now, channel.heard_at, silence_limit_s)
        listener = self._current.listener
        if listener is None or not self._child.is_due(now):
            return

        def launch() -> int:
            with (
                channel.open(self._greeting()) as channel_end,
                scoreboards.subscribe() as views,
                self._open_health_directory() as health,
            ):
                descriptors = {
                    "--scoreboard-fd": views.fileno(),
                    "--listen-fd": listener.fileno(),
                    "--lifeline-fd": lifeline_fd,
                    "--control-fd": channel_end.fileno(),
                    **health,
                }
                identity = find_admin_identity(prepared.config.relay, prepared.identity)
                return start_admin(identity, descriptors)

        self._child.start(now, launch)

    @contextmanager
    def _open_health_directory(self) -> Iterator[dict[str, int]]:
        """The option that passes the directory of health.json; no option if it is gone.

        The admin process gets a descriptor, because its user may have no access to the
        path.
        """
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

    def _greeting(self) -> Greeting:
        """The first message to the process: its part of the configuration.

        The process has no right to read the configuration file.
        """
        settings = self._current.settings
        return {
            "listen": self.address,
            "hosts": list(settings.hosts),
            "user": settings.user,
            "password": self._current.password,
            "state_dir": str(self._state_dir),
        }

    def renew(self) -> None:
        """Replace the process: a file that it has open is out of date."""
        self._child.request_stop()

    def restore(self) -> bool:
        """Make the unix socket again if its file is gone. True if it was.

        Raises StartupError.
        """
        listener = self._current.listener
        if (
            listener is None
            or listener.family != socket.AF_UNIX
            or Path(listener.getsockname()).exists()
        ):
            return False
        restored = _open(f"unix:{listener.getsockname()}")
        self._current = replace(self._current, listener=restored)
        if self._next is not None and self._next.listener is listener:
            self._next = replace(self._next, listener=restored)
        listener.close()
        self.renew()
        return True

    def prepare(self, settings: Admin, password: str) -> None:
        """Open the socket for another configuration, if its address differs.

        Raises StartupError; then nothing has changed.
        """
        current = self._current
        if settings == current.settings and password == current.password:
            return
        listener = current.listener
        if settings.listen not in (current.settings.listen, self.address):
            if conflict(settings.listen, self.address):
                raise StartupError(
                    f"admin.listen: cannot listen on {settings.listen} while the relay's own"
                    f" admin process listens on {self.address}",
                    RESTART_OR_MOVE,
                )
            listener = _open(settings.listen)
        self._next = _Service(settings, password, listener)

    def commit(self) -> None:
        """Switch to what was prepared, and replace the process."""
        if self._next is None:
            return
        before, self._current, self._next = self._current.listener, self._next, None
        if before is not None and before is not self._current.listener:
            _close(before)
        self.renew()

    def discard(self) -> None:
        """Forget what was prepared."""
        prepared, self._next = self._next, None
        if (
            prepared is not None
            and prepared.listener is not None
            and prepared.listener is not self._current.listener
        ):
            _close(prepared.listener)

    def close_files(self) -> None:
        """Close the descriptors of the sockets: for a forked child."""
        for service in (self._current, self._next):
            if service is not None and service.listener is not None:
                service.listener.close()

    def close(self) -> None:
        """End the process and close its sockets."""
        self._child.close()
        self.discard()
        if self._current.listener is not None:
            _close(self._current.listener)


def _open(listen: str) -> socket.socket | None:
    return open_single_listener("admin.listen", listen) if listen else None


def _take(listen: str, taken: Mapping[str, Any]) -> socket.socket | None:
    """The socket of the version before, if the address is still the same."""
    listener = socket.socket(fileno=taken["fd"])
    if listen in (taken["listen"], bound_address(listener)):
        return listener
    _close(listener)
    return _open(listen)


def _close(listener: socket.socket) -> None:
    if listener.family == socket.AF_UNIX:
        Path(listener.getsockname()).unlink(missing_ok=True)
    listener.close()
