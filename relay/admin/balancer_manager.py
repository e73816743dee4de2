"""The balancer-manager page and its JSON interface.

They show every pool and backend, and pass changes on to the supervisor.

    GET  /balancer-manager        the page; JavaScript only keeps it up to date
    GET  /balancer-manager/pools  the part of the page that changes
    GET  /api/pools               the same as JSON, with the CSRF token for changes
    POST /api/pools/POOL/BACKEND  {"mode", "weight", "duration_s"} as JSON, with the
                                  header X-CSRF-Token; or the page's form

Never: changes anything itself; loads anything from another site.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from relay.admin.access import Access, RefusedError, Settings
from relay.admin.filters import FILTERS
from relay.admin.supervisor_client import SupervisorClient
from relay.core.overrides import parse_change
from relay.errors import RelayError
from relay.shared.backends_view import backends_reply
from relay.shared.messages import Greeting, facts_of
from relay.shared.view_channel import ViewReader

PAGE, PART, API = "/balancer-manager", "/balancer-manager/pools", "/api/pools"
BODY_BYTES = 4096
NAME_CHARACTERS = 64  # of a pool or backend, as in the configuration
CHANGES_AT_ONCE = 8  # one is sent to the supervisor at a time, the others wait
DURATIONS = (
    (0, "until changed back"),
    (300, "5 minutes"),
    (900, "15 minutes"),
    (3600, "1 hour"),
    (4 * 3600, "4 hours"),
    (24 * 3600, "1 day"),
)
MODES = {"enabled": "Enable", "drain": "Drain", "disabled": "Disable", "standby": "Standby"}
_HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

_WITHOUT_SUPERVISOR: Greeting = {
    "listen": "127.0.0.1:0",
    "hosts": [],
    "user": "",
    "password": "",
    "state_dir": "",
}


class BalancerManager:
    """The pages over one scoreboard, read-only without a supervisor (None)."""

    def __init__(
        self, scoreboard: ViewReader, supervisor: SupervisorClient | None, health_fd: int = -1
    ) -> None:
        self._scoreboard = scoreboard
        self._supervisor = supervisor
        self._health_fd = health_fd
        greeting = supervisor.greeting if supervisor is not None else _WITHOUT_SUPERVISOR
        self._settings = Settings(
            greeting["listen"],
            tuple(greeting["hosts"]),
            greeting["user"],
            greeting["password"],
            greeting["state_dir"],
        )
        self.access = Access(self._settings)
        self._changing = 0
        self._templates = Environment(
            loader=PackageLoader("relay.admin"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=StrictUndefined,
        )
        self._templates.filters.update(FILTERS, path=lambda text: quote(str(text), safe=""))

    @property
    def routes(self) -> list[Route]:
        """For the application."""
        return [
            Route(PAGE, self._page),
            Route(PART, self._part),
            Route(API, self._list),
            Route(API + "/{pool}/{backend:path}", self._change, methods=["POST"]),
        ]

    def _view(self, who: str) -> dict[str, Any]:
        snapshot = self._scoreboard.snapshot(routes=False)
        facts = facts_of(snapshot.facts)
        why = (
            self.access.why_read_only
            if self._supervisor is not None
            else "read-only: this process was started without a supervisor"
        )
        return {
            "version": facts["version"],
            "generation": facts["generation"],
            "state": facts["state"],
            "workers": len(snapshot.workers),
            "who": who,
            "writable": not why,
            "why_read_only": why,
            "csrf": "" if why else self.access.token(),
            **backends_reply(snapshot, Path(self._settings.state_dir), self._health_fd),
        }

    async def _page(self, request: Request) -> Response:
        who = await self.access.admit(request)
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; "
            "connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; "
            "frame-ancestors 'none'"
        )
        return HTMLResponse(
            self._render("balancer_manager.html", who, nonce=nonce),
            headers={**_HEADERS, "content-security-policy": policy, "x-frame-options": "DENY"},
        )

    async def _part(self, request: Request) -> Response:
        return HTMLResponse(
            self._render("pools.html", await self.access.admit(request)), headers=_HEADERS
        )

    def _render(self, template: str, who: str, **more: Any) -> str:
        return self._templates.get_template(template).render(
            **self._view(who), modes=MODES, durations=DURATIONS, api=API, **more
        )

    async def _list(self, request: Request) -> Response:
        return JSONResponse(self._view(await self.access.admit(request)), headers=_HEADERS)

    async def _change(self, request: Request) -> Response:
        who = await self.access.admit(request)
        # curl -d sends JSON with a form's content type, but no form can send this
        # header.
        is_form = "x-csrf-token" not in request.headers and request.headers.get(
            "content-type", ""
        ).startswith("application/x-www-form-urlencoded")
        body = await _read(request)
        wanted, token = (
            _parse_form(body)
            if is_form
            else (_parse_json(body), request.headers.get("x-csrf-token", ""))
        )
        self.access.admit_change(request, token)
        if self._supervisor is None:
            raise RelayError("this process was started without a supervisor")
        reply = await self._ask(self._supervisor, _change_of(request, wanted, who))
        if reply.get("ok") is not True:
            raise RefusedError(
                400, str(reply.get("error", "the supervisor refused and gave no reason"))
            )
        if is_form:
            return RedirectResponse(PAGE, 303, headers=_HEADERS)
        return JSONResponse(reply, headers=_HEADERS)

    async def _ask(self, supervisor: SupervisorClient, change: dict[str, Any]) -> dict[str, Any]:
        """The supervisor's reply to a change. Raises RefusedError, RelayError."""
        if self._changing >= CHANGES_AT_ONCE:
            raise RefusedError(
                429,
                "too many changes are waiting for the supervisor; try again in 1 s",
                headers={"retry-after": "1"},
            )
        self._changing += 1
        try:
            reply = await supervisor.ask("override", **change)
        finally:
            self._changing -= 1
        reply.pop("id", None)
        return reply


def _change_of(request: Request, wanted: dict[str, Any], who: str) -> dict[str, Any]:
    """The change as the supervisor takes it. Raises RefusedError.

    Invalid or oversized values are refused here, so they never reach the supervisor.
    """
    asked = {
        key: wanted[key] for key in ("mode", "weight", "duration_s") if wanted.get(key) is not None
    }
    pool, backend = request.path_params["pool"], request.path_params["backend"]
    if len(pool) > NAME_CHARACTERS or len(backend) > NAME_CHARACTERS:
        raise RefusedError(400, "the name is too long for a backend; GET /api/pools lists them")
    try:
        change = parse_change({"pool": pool, "backend": backend, **asked, "by": who})
    except ValueError as error:
        raise RefusedError(400, str(error)) from None
    return {"pool": pool, "backend": backend, **asked, "by": change.by}


async def _read(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES:
            raise RefusedError(413, f"a change has at most {BODY_BYTES} bytes")
    return bytes(body)


def _parse_json(body: bytes) -> dict[str, Any]:
    try:
        wanted = json.loads(body)
    except (ValueError, RecursionError):
        wanted = None
    if not isinstance(wanted, dict):
        raise RefusedError(
            400, 'expected a JSON object, for example {"mode": "drain", "duration_s": 600}'
        )
    return wanted


def _parse_form(body: bytes) -> tuple[dict[str, Any], str]:
    """The change and the CSRF token.

    The page sends every field. The pressed button, `mode` or `set`, says which one to
    use.
    """
    try:
        fields = {
            key: values[-1]
            for key, values in parse_qs(body.decode("ascii"), max_num_fields=16).items()
        }
        wanted: dict[str, Any] = (
            {"mode": fields["mode"]} if "mode" in fields else {"weight": int(fields["weight"])}
        )
        if wanted.get("mode") != "none" and int(fields.get("duration_s", "0")):
            wanted["duration_s"] = int(fields["duration_s"])
    except (ValueError, KeyError):
        raise RefusedError(400, "the form is not from this page") from None
    return wanted, fields.get("csrf", "")
