"""The admin process: /metrics, /healthz, /readyz and /balancer-manager over HTTP, from the scoreboard alone.

Started with exec, so that it has no key in its memory: `python -m relay.admin.main --scoreboard-fd N --listen-fd N --lifeline-fd N --control-fd N`.
The listening socket is bound and listening already. It ends on SIGTERM, and when the other end of the lifeline pipe is closed: its supervisor is gone.

Never: imports OpenSSL, cryptography or `relay.tls`; reads a configuration; writes the scoreboard.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import html
import logging
import os
import signal
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from relay.admin.access import RefusedError
from relay.admin.balancer_manager import API, BalancerManager
from relay.admin.metrics import RelayCollector, read_facts, routes_disabled
from relay.admin.supervisor_client import SupervisorClient
from relay.errors import RelayError
from relay.logs import messages
from relay.sandbox.confinement import confine_admin, hide_memory
from relay.shared.scoreboard import PHASE_SERVING, monotonic_ms
from relay.shared.snapshot import Snapshot
from relay.shared.view_channel import ViewReader

STALE_MS = 10_000
# Scrapers and probes are few; more connections than this are a mistake or an attack: the one that has been silent longest makes room.
CONNECTIONS = 64
KEEP_ALIVE_S = 15
REQUEST_S = 5
REQUEST_BYTES = 65_536
STOP_S = 1

_PAGES = {
    "/metrics": "all counters and states, for Prometheus",
    "/healthz": "is the supervisor alive: 200, or 503 and why",
    "/readyz": "are connections accepted: 200, or 503 and why",
    "/balancer-manager": "pools and backends, and changing them",
}


def why_unhealthy(snapshot: Snapshot, now_ms: int) -> str:
    """Why the supervisor is taken for dead, empty when it is well. `now_ms` is CLOCK_MONOTONIC."""
    if not snapshot.supervisor_beat_ms:
        return "the supervisor has not given a sign of life yet; it is still starting"
    age_ms = now_ms - snapshot.supervisor_beat_ms
    if age_ms >= STALE_MS:
        return f"the supervisor has given no sign of life for {age_ms // 1000} s; look at its log"
    return ""


def why_unready(snapshot: Snapshot, now_ms: int) -> str:
    """Why no connection should be sent here, empty when it may. `now_ms` is CLOCK_MONOTONIC."""
    state = read_facts(snapshot)["state"]
    if state != "serving":
        return {
            "starting": "the relay is starting",
            "draining": "the relay is draining; it takes no new connections",
        }.get(state, f"the relay is {state}")
    serving = [worker.heartbeat_ms for worker in snapshot.workers if worker.phase == PHASE_SERVING]
    if not serving:
        return f"none of {len(snapshot.workers)} workers is serving; look at the relay's log for why they end"
    age_ms = now_ms - max(serving)
    if age_ms >= STALE_MS:
        return f"none of {len(serving)} serving workers has given a sign of life for {age_ms // 1000} s; look at the relay's log"
    routes = list(routes_disabled(read_facts(snapshot)).values())
    if routes and all(routes):
        return f"every route is disabled: {routes[0]}"
    return ""


def make_app(
    scoreboard: ViewReader, link: SupervisorClient | None = None, health_fd: int = -1
) -> Starlette:
    """The web application over one scoreboard; changes go through the link."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RelayCollector(scoreboard))
    manager = BalancerManager(scoreboard, link, health_fd)

    async def metrics(request: Request) -> Response:
        manager.gate.admit_reader(request)
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), media_type=None, headers={"content-type": content_type})

    def probe(why_not: Callable[[Snapshot, int], str]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(_: Request) -> Response:
            why = why_not(scoreboard.snapshot(), monotonic_ms())
            return PlainTextResponse(f"{why or 'ok'}\n", 503 if why else 200)

        return answer

    async def index(request: Request) -> Response:
        manager.gate.admit_reader(request)
        snapshot = scoreboard.snapshot()
        facts = read_facts(snapshot)
        links = "".join(
            f'<li><a href="{path}">{path}</a>: {html.escape(what)}</li>'
            for path, what in _PAGES.items()
        )
        state = f"version {facts['version']}, {facts['openssl']}, configuration {facts['generation']}, {len(snapshot.workers)} workers, {facts['state']}"
        return HTMLResponse(
            f'<!doctype html><html lang="en"><title>relay</title><h1>relay</h1><p>{html.escape(state)}</p><ul>{links}</ul></html>\n'
        )

    async def refused(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = dict(error.headers or {}) if isinstance(error, HTTPException) else None
        path = ascii(request.scope["path"])
        text = error.detail if isinstance(error, RefusedError) else _words(status, path)
        if request.scope["path"].startswith(API):
            return JSONResponse({"ok": False, "error": text}, status, headers=headers)
        return PlainTextResponse(f"{text}\n", status, headers=headers)

    async def gone(_request: Request, _error: Exception) -> Response:
        return Response(
            status_code=400
        )  # nobody reads it, and it is no fault of ours that belongs in the log

    async def unreadable(request: Request, error: Exception) -> Response:
        if request.scope["path"].startswith(API):
            return JSONResponse({"ok": False, "error": str(error)}, 503)
        return PlainTextResponse(f"{error}\n", 503)

    app = Starlette(
        routes=[
            Route("/", index),
            Route("/metrics", metrics),
            Route("/healthz", probe(why_unhealthy)),
            Route("/readyz", probe(why_unready)),
            *manager.routes,
        ],
        exception_handlers={HTTPException: refused, RelayError: unreadable, ClientDisconnect: gone},
    )
    app.router.redirect_slashes = False
    return app


def _words(status: int, path: str) -> str:
    return {
        404: f"there is no page {path}; try {' '.join(_PAGES)}",
        405: f"{path} can only be read, with GET or HEAD",
    }.get(status, "the request was not understood")


class _Guarded(HttpToolsProtocol):
    """With what uvicorn leaves to a proxy in front of it: a deadline and a size for a request, and room for the next client."""

    asked_at: float
    unanswered_bytes: int
    _deadline: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_request(REQUEST_S)
        if len(self.connections) >= CONNECTIONS:
            victim = self._victim()
            self.connections.discard(
                victim
            )  # now, not when the loop comes to it: many may knock in one turn
            victim.transport.abort()

    def _victim(self) -> _Guarded:
        """The connection that has been silent longest, of the address that has the most."""
        guarded = [one for one in self.connections if isinstance(one, _Guarded)]
        count = Counter(one.address for one in guarded)
        return min(guarded, key=lambda one: (-count[one.address], one.asked_at))

    @property
    def address(self) -> str:
        """The client's address; all clients of a unix socket have none."""
        return self.client[0] if self.client else ""

    def _wait_for_request(self, patience_s: float) -> None:
        self.asked_at = self.loop.time()
        self.unanswered_bytes = 0
        self._deadline = self.loop.call_later(patience_s, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        self.unanswered_bytes += len(data)
        if self.unanswered_bytes > REQUEST_BYTES:
            self.transport.abort()
        else:
            super().data_received(data)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._deadline.cancel()
        if not self.transport.is_closing():
            self._wait_for_request(KEEP_ALIVE_S + REQUEST_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)


class _Server(uvicorn.Server):
    """uvicorn, ending with status 0 on SIGTERM and on the supervisor's death."""

    def __init__(
        self, config: uvicorn.Config, lifeline_fd: int | None, link: SupervisorClient | None
    ) -> None:
        super().__init__(config)
        self._lifeline_fd = lifeline_fd
        self._link = link
        self._beat: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals of this process, while it serves."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop)
        if self._lifeline_fd is not None:
            loop.add_reader(self._lifeline_fd, self._on_lifeline)
        if self._link is not None:
            self._beat = loop.create_task(self._link.beat())
        yield
        if self._beat is not None:
            self._beat.cancel()

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
    """Serve until told to stop. All arguments are file descriptors that were passed on."""
    parser = argparse.ArgumentParser(
        prog="relay.admin.main", description="The relay's admin process; started by its supervisor."
    )
    parser.add_argument(
        "--scoreboard-fd",
        type=int,
        required=True,
        help="a socket from which views of the scoreboard come",
    )
    parser.add_argument(
        "--listen-fd", type=int, required=True, help="a bound and listening TCP or Unix socket"
    )
    parser.add_argument(
        "--lifeline-fd",
        type=int,
        help="read end of a pipe whose other end only the supervisor holds",
    )
    parser.add_argument(
        "--control-fd", type=int, help="one end of a socket pair, the other is the supervisor's"
    )
    parser.add_argument(
        "--health-fd", type=int, default=-1, help="the directory of the checker's findings"
    )
    options = parser.parse_args(arguments)
    faulthandler.enable()  # the supervisor sends ABRT to an admin process that hangs
    hide_memory()
    # Ctrl-C makes the supervisor drain; until it says stop, the drain can be watched here.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    messages.setup("warning", process="admin")
    scoreboard = ViewReader(options.scoreboard_fd)
    link = SupervisorClient(options.control_fd) if options.control_fd is not None else None
    config = uvicorn.Config(
        # uvicorn warns of every request it cannot read: strangers would write our log.
        make_app(scoreboard, link, options.health_fd),
        http=_Guarded,
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        loop="asyncio",
        # No limit_concurrency: it would answer 503 to probes. Connections are bounded above, waiting changes and passwords where they wait.
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_S,
    )
    confine_admin(options.health_fd)
    with socket.socket(fileno=options.listen_fd) as listener:
        _Server(config, options.lifeline_fd, link).run(sockets=[listener])


if __name__ == "__main__":
    main()
