"""Who may see the balancer-manager page, and who may change something there.

To see it a browser must call the relay by a name it knows: else a stranger's web page could point its own name at our address and read everything
(DNS rebinding). To change something, a request must in addition come from our own page: same Origin, and a token that only our page has.
With `admin.user` set both need the login; without it nobody beyond this machine can change anything.
Probes (/healthz, /readyz) are outside of all this.

Never: reads the password from its file, or lets the time of an answer tell how wrong a password was.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import os
import time
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request

from relay.admin.password_guesses import Guesses, TooManyGuessesError
from relay.shared.password import verify

TOKEN_S = 12 * 3600
_SECRET_BYTES = 32


class RefusedError(HTTPException):
    """A request that is not let in; its detail is meant for the client."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the supervisor says about `[admin]`: `listen` is "HOST:PORT" or "unix:PATH", `password` the line of the password file."""

    listen: str
    hosts: tuple[str, ...] = ()
    user: str = ""
    password: str = ""
    state_dir: str = ""

    @property
    def host(self) -> str:
        """The address listened on, without port and brackets; "" for a unix socket."""
        return "" if self.is_unix else self.listen.rpartition(":")[0].strip("[]")

    @property
    def is_unix(self) -> bool:
        """Whether it listens on a unix socket."""
        return self.listen.startswith("unix:")

    @property
    def is_private(self) -> bool:
        """Whether only users of this machine can connect."""
        return self.is_unix or ipaddress.ip_address(self.host).is_loopback


class Access:
    """The rules over one process's secret: its tokens end with it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._secret = os.urandom(_SECRET_BYTES)
        self._known: bytes | None = (
            None  # the credentials that were right; a hash is expensive on purpose, and pages ask every two seconds
        )
        self._guesses = Guesses()

    @property
    def why_read_only(self) -> str:
        """Why nobody may change anything, "" when some may."""
        if self._settings.user or self._settings.is_private:
            return ""
        return (
            f"read-only: {self._settings.listen} can be reached from other machines and there is no login; to change backends here, set admin.user and "
            "admin.password_file, or let admin.listen be 127.0.0.1 or a unix socket; relay backend works meanwhile"
        )

    def admit_reader(self, request: Request) -> None:
        """For /metrics and the index, which need no login: refuse a name that a stranger made
        lead here. Raises RefusedError.

        Scrapers call a pod or a published port by any of its addresses, and no browser
        can be made to do so for a stranger's page, so every address literal may pass. On
        loopback and unix sockets proxies in front may use names of their own, as long as
        the operator lists none.
        """
        unlisted = self._settings.is_private and not self._settings.hosts
        header = request.headers.get("host")
        if unlisted or self._settings.is_unix or header is None:  # browsers always send a Host
            return
        host = _host_of(header)
        if not _is_literal(host) and not self._is_ours(host):
            raise _unknown_name(host)

    async def admit(self, request: Request) -> str:
        """Who asks, for the log. Raises RefusedError."""
        host = _host_of(request.headers.get("host", ""))
        if not self._is_ours(host):
            raise _unknown_name(host)
        where = request.client.host if request.client and request.client.host else "unix socket"
        if not self._settings.user:
            return where
        try:
            right = await self._is_right(where, request.headers.get("authorization", ""))
        except TooManyGuessesError as error:
            raise RefusedError(
                429,
                f"too many passwords are tried; try again in {error.wait_s} s",
                headers={"retry-after": str(error.wait_s)},
            ) from None
        if not right:
            raise RefusedError(
                401,
                "log in as admin.user",
                headers={"www-authenticate": 'Basic realm="relay", charset="UTF-8"'},
            )
        return f"{self._settings.user} at {where}"

    def token(self, now_at: float | None = None) -> str:
        """What a page must send back with a change, for TOKEN_S seconds."""
        issued = str(int(time.time() if now_at is None else now_at))
        return f"{issued}.{self._sign(issued)}"

    def admit_change(self, request: Request, token: str) -> None:
        """After `admit`: may this request change something? Raises RefusedError."""
        if self.why_read_only:
            raise RefusedError(403, self.why_read_only)
        origin, site = (
            request.headers.get("origin"),
            request.headers.get("sec-fetch-site", "same-origin"),
        )
        if (
            origin is not None
            and origin.lower().removeprefix("https://").removeprefix("http://")
            != request.headers.get("host", "").lower()
        ):
            raise RefusedError(
                403,
                f"the request comes from a page of {origin!a}, not from this one; nothing was changed",
            )
        if site not in {"same-origin", "none"}:
            raise RefusedError(
                403, "the request comes from a page of another site; nothing was changed"
            )
        issued, _, signature = token.partition(".")
        if (
            not issued.isascii()
            or not issued.isdigit()
            or len(issued) > 12
            or not hmac.compare_digest(signature.encode(), self._sign(issued).encode())
        ):
            raise RefusedError(
                403,
                "the request has no valid csrf token: take it from GET /api/pools and send it as X-CSRF-Token, or reload the page; nothing was changed",
            )
        if not -60 <= time.time() - int(issued) <= TOKEN_S:
            raise RefusedError(
                403, "the page is too old; reload it and try again; nothing was changed"
            )

    def _sign(self, issued: str) -> str:
        return hmac.new(
            self._secret, f"csrf {issued} {self._settings.user}".encode(), hashlib.sha256
        ).hexdigest()

    def _is_ours(self, host: str) -> bool:
        if host == "localhost" or host in self._settings.hosts:
            return True
        try:
            address = ipaddress.ip_address(host)
            listen = ipaddress.ip_address(self._settings.host or "127.0.0.1")
        except ValueError:
            return False
        # On all addresses of the machine every address may be one of them, and none is a name that a stranger can point at us.
        return listen.is_unspecified or address == listen

    async def _is_right(self, where: str, header: str) -> bool:
        """Raises TooManyGuessesError."""
        kind, _, encoded = header.partition(" ")
        try:
            user, colon, password = (
                base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
            )
        except (ValueError, binascii.Error):
            return False
        if kind.lower() != "basic" or not colon:
            return False
        seen = hmac.new(self._secret, f"{user}:{password}".encode(), hashlib.sha256).digest()
        if self._known is not None and hmac.compare_digest(seen, self._known):
            return True
        settings = self._settings

        def is_right() -> bool:
            # Both are always compared: the time must not tell which of them was wrong.
            right = verify(password, settings.password)
            return hmac.compare_digest(user.encode(), settings.user.encode()) & right

        if not await self._guesses.judge(where, is_right):
            return False
        self._known = seen
        return True


def _unknown_name(host: str) -> RefusedError:
    return RefusedError(
        403,
        f"this page is not called {host[:255]!a}; use its address or localhost, or add the name to admin.hosts",
    )


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _host_of(header: str) -> str:
    """The host of a Host header, without port and brackets, in lower case."""
    host = header.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
