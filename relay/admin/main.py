"""The admin process: serves metrics, probes and the balancer manager over HTTP.

The supervisor starts it with exec, so that no private key is in its memory:

    python -m relay.admin.main --scoreboard-fd N --listen-fd N --lifeline-fd N
    --control-fd N

The listening socket is already bound. The process ends on SIGTERM, and when the
supervisor's end of the lifeline pipe closes, which means that the supervisor is gone.

Never: imports OpenSSL, cryptography or `relay.tls`; reads a configuration; writes the
scoreboard.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import logging
import os
import signal
import socket
from collections.abc import Iterator

import uvicorn

from relay.admin.app import make_app
from relay.admin.http_limits import KEEP_ALIVE_S, LimitedProtocol
from relay.admin.supervisor_client import SupervisorClient
from relay.logs import messages
from relay.sandbox.confinement import confine_admin, hide_memory
from relay.shared.view_channel import ViewReader

STOP_S = 1


class _Server(uvicorn.Server):
    """uvicorn, ending with status 0 on SIGTERM and when the supervisor dies."""

    def __init__(
        self, config: uvicorn.Config, lifeline_fd: int | None, supervisor: SupervisorClient | None
    ) -> None:
        super().__init__(config)
        self._lifeline_fd = lifeline_fd
        self._supervisor = supervisor
        self._heartbeat: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Replace uvicorn's signal handlers while it serves."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop)
        if self._lifeline_fd is not None:
            loop.add_reader(self._lifeline_fd, self._on_lifeline)
        if self._supervisor is not None:
            self._heartbeat = loop.create_task(self._supervisor.send_heartbeats())
        yield
        if self._heartbeat is not None:
            self._heartbeat.cancel()

    def _stop(self) -> None:
        self.should_exit = True

    def _on_lifeline(self) -> None:
        # Nothing is ever written to it: readable means end of file.
        if self._lifeline_fd is not None and not os.read(self._lifeline_fd, 64):
            asyncio.get_running_loop().remove_reader(self._lifeline_fd)
            logging.getLogger(__name__).warning(
                "the supervisor is gone; the admin process ends too"
            )
            self._stop()


def main(arguments: list[str] | None = None) -> None:
    """Serve until told to stop. Every argument is an inherited file descriptor."""
    options = _parse_arguments(arguments)
    faulthandler.enable()  # the supervisor sends SIGABRT to an admin process that hangs
    hide_memory()
    # Ctrl-C makes the supervisor drain. This process shows the drain until the
    # supervisor ends it.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    messages.setup("warning", process="admin")
    scoreboard = ViewReader(options.scoreboard_fd)
    supervisor = SupervisorClient(options.control_fd) if options.control_fd is not None else None
    config = uvicorn.Config(
        make_app(scoreboard, supervisor, options.health_fd),
        http=LimitedProtocol,
        log_config=None,
        # At "warning" every malformed request would write a line into the log.
        log_level="error",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        loop="asyncio",
        # No limit_concurrency: it would answer probes with 503. `http_limits` bounds
        # the connections, `balancer_manager` the waiting changes, `login_throttle` the
        # logins.
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_S,
    )
    confine_admin(options.health_fd)
    with socket.socket(fileno=options.listen_fd) as listener:
        _Server(config, options.lifeline_fd, supervisor).run(sockets=[listener])


def _parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="relay.admin.main",
        description="The relay's admin process. The supervisor starts it.",
    )
    parser.add_argument(
        "--scoreboard-fd",
        type=int,
        required=True,
        help="a socket that delivers the scoreboard's memory, read-only",
    )
    parser.add_argument(
        "--listen-fd", type=int, required=True, help="a listening TCP or unix socket"
    )
    parser.add_argument(
        "--lifeline-fd", type=int, help="read end of a pipe that only the supervisor holds open"
    )
    parser.add_argument(
        "--control-fd", type=int, help="this process's end of the admin channel, a socket pair"
    )
    parser.add_argument(
        "--health-fd", type=int, default=-1, help="the directory of the checker's health file"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
