"""The admin process's web application: metrics, probes, index, balancer manager.

Never: reads a configuration; writes the scoreboard.
"""

from __future__ import annotations

import html
from collections.abc import Awaitable, Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from relay.admin.access import Access, RefusedError
from relay.admin.balancer_manager import API, BalancerManager
from relay.admin.metrics import RelayCollector
from relay.admin.probes import why_not_ready, why_unhealthy
from relay.admin.supervisor_client import SupervisorClient
from relay.errors import RelayError
from relay.shared.messages import facts_of
from relay.shared.scoreboard import monotonic_ms
from relay.shared.snapshot import Snapshot
from relay.shared.view_channel import ViewReader

PAGES = {
    "/metrics": "metrics for Prometheus",
    "/healthz": "liveness: 200 while the supervisor runs, otherwise 503 with the reason",
    "/readyz": "readiness: 200 while connections are accepted, otherwise 503 with the reason",
    "/balancer-manager": "pools and backends, to watch and to change",
}

Handler = Callable[[Request], Awaitable[Response]]


def make_app(
    scoreboard: ViewReader, supervisor: SupervisorClient | None = None, health_fd: int = -1
) -> Starlette:
    """The web application over one scoreboard. Changes go to the supervisor."""
    manager = BalancerManager(scoreboard, supervisor, health_fd)
    app = Starlette(
        routes=[
            Route("/", _index(scoreboard, manager.access)),
            Route("/metrics", _metrics(scoreboard, manager.access)),
            Route("/healthz", _probe(scoreboard, why_unhealthy)),
            Route("/readyz", _probe(scoreboard, why_not_ready)),
            *manager.routes,
        ],
        exception_handlers={
            HTTPException: _on_refused,
            RelayError: _on_relay_error,
            ClientDisconnect: _on_disconnect,
        },
    )
    app.router.redirect_slashes = False
    return app


def _metrics(scoreboard: ViewReader, access: Access) -> Handler:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RelayCollector(scoreboard))

    async def metrics(request: Request) -> Response:
        access.admit_reader(request)
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), media_type=None, headers={"content-type": content_type})

    return metrics


def _probe(scoreboard: ViewReader, why_not: Callable[[Snapshot, int], str]) -> Handler:
    async def probe(_: Request) -> Response:
        why = why_not(scoreboard.snapshot(routes=False), monotonic_ms())
        return PlainTextResponse(f"{why or 'ok'}\n", 503 if why else 200)

    return probe


def _index(scoreboard: ViewReader, access: Access) -> Handler:
    links = "".join(
        f'<li><a href="{path}">{path}</a>: {html.escape(meaning)}</li>'
        for path, meaning in PAGES.items()
    )

    async def index(request: Request) -> Response:
        access.admit_reader(request)
        snapshot = scoreboard.snapshot(routes=False)
        facts = facts_of(snapshot.facts)
        state = (
            f"version {facts['version']}, {facts['openssl']}, "
            f"generation {facts['generation']}, {len(snapshot.workers)} workers, "
            f"{facts['state']}"
        )
        return HTMLResponse(
            '<!doctype html><html lang="en"><title>relay</title><h1>relay</h1>'
            f"<p>{html.escape(state)}</p><ul>{links}</ul></html>\n"
        )

    return index


async def _on_refused(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else None
    path = ascii(request.scope["path"])
    text = error.detail if isinstance(error, RefusedError) else _status_text(status, path)
    return _error_response(request, text, status, headers)


async def _on_relay_error(request: Request, error: Exception) -> Response:
    return _error_response(request, str(error), 503)


async def _on_disconnect(_request: Request, _error: Exception) -> Response:
    # The client has gone. Without this handler the log would have a traceback for it.
    return Response(status_code=400)


def _error_response(
    request: Request, text: str, status: int, headers: dict[str, str] | None = None
) -> Response:
    if request.scope["path"].startswith(API):
        return JSONResponse({"ok": False, "error": text}, status, headers=headers)
    return PlainTextResponse(f"{text}\n", status, headers=headers)


def _status_text(status: int, path: str) -> str:
    return {
        404: f"there is no page {path}; try {' '.join(PAGES)}",
        405: f"{path} can only be read, with GET or HEAD",
    }.get(status, "the request was not understood")
