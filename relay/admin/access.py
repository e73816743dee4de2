"""Who may read the admin pages, and who may change a backend.

To read, a browser must use a host name that the relay knows. Otherwise a foreign web
page could point its own name at this address and read everything (DNS rebinding). To
change, the request must also come from the relay's own page: the same Origin, and a
CSRF token that only this page has. With `admin.user` set, both also need the login.
Without a login, changes are possible only when `admin.listen` is a loopback address or
a unix socket. /healthz and /readyz are open to everybody.

Never: reads the password file; lets the response time show how wrong a password was.
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

from relay.admin.login_throttle import LoginThrottle, TooManyLoginsError
from relay.shared.password import verify

TOKEN_S = 12 * 3600
_SECRET_BYTES = 32


class RefusedError(HTTPException):
    """A refused request. `detail` is the text for the client."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The `[admin]` table, as the supervisor sends it.

    `listen` is "HOST:PORT" or "unix:PATH", `password` the line of the password file.
    """

    listen: str
    hosts: tuple[str, ...] = ()
    user: str = ""
    password: str = ""
    state_dir: str = ""

    @property
    def host(self) -> str:
        """The listen address without port and brackets; "" for a unix socket."""
        return "" if self.is_unix else self.listen.rpartition(":")[0].strip("[]")

    @property
    def is_unix(self) -> bool:
        """Whether the admin process listens on a unix socket."""
        return self.listen.startswith("unix:")

    @property
    def is_private(self) -> bool:
        """Whether only users of this machine can connect."""
        return self.is_unix or ipaddress.ip_address(self.host).is_loopback


class Access:
    """Checks every request. Its CSRF tokens are valid as long as this process lives."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._secret = os.urandom(_SECRET_BYTES)
        # A digest of the last correct credentials. Verifying a password is slow on
        # purpose, and an open page asks every two seconds.
        self._known: bytes | None = None
        self._throttle = LoginThrottle()

    @property
    def why_read_only(self) -> str:
        """Why every change is refused, or "" when changes are possible."""
        if self._settings.user or self._settings.is_private:
            return ""
        return (
            f"read-only: {self._settings.listen} can be reached from other machines and no login "
            "is configured; to change backends here, set admin.user and admin.password_file, or "
            "set admin.listen to 127.0.0.1 or to a unix socket; the command relay backend works "
            "in any case"
        )

    def admit_reader(self, request: Request) -> None:
        """Check the host name for /metrics and the index. Raises RefusedError.

        These pages need no login. Every address literal passes: scrapers call a pod or
        a published port by any of its addresses, and DNS rebinding needs a name. On
        loopback and unix sockets any name passes as long as `admin.hosts` is empty,
        because proxies in front use names of their own.
        """
        unlisted = self._settings.is_private and not self._settings.hosts
        header = request.headers.get("host")
        if unlisted or self._settings.is_unix or header is None:  # browsers always send a Host
            return
        host = _host_of(header)
        if not _is_literal(host) and not self._is_known(host):
            raise _unknown_name(host)

    async def admit(self, request: Request) -> str:
        """Check host name and login; returns the client's name for the log.

        Raises RefusedError.
        """
        host = _host_of(request.headers.get("host", ""))
        if not self._is_known(host):
            raise _unknown_name(host)
        where = request.client.host if request.client and request.client.host else "unix socket"
        if not self._settings.user:
            return where
        try:
            right = await self._is_right(where, request.headers.get("authorization", ""))
        except TooManyLoginsError as error:
            raise RefusedError(
                429,
                f"too many login attempts; try again in {error.wait_s} s",
                headers={"retry-after": str(error.wait_s)},
            ) from None
        if not right:
            raise RefusedError(
                401,
                "log in with admin.user and its password",
                headers={"www-authenticate": 'Basic realm="relay", charset="UTF-8"'},
            )
        return f"{self._settings.user} at {where}"

    def token(self, now_at: float | None = None) -> str:
        """A CSRF token, valid for TOKEN_S seconds."""
        issued = str(int(time.time() if now_at is None else now_at))
        return f"{issued}.{self._sign(issued)}"

    def admit_change(self, request: Request, token: str) -> None:
        """After `admit`: may the request change something? Raises RefusedError."""
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
                f"the request comes from a page of {origin!a}, not from the relay's own page; "
                "nothing was changed",
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
                "the request has no valid CSRF token; take it from GET /api/pools and send it as "
                "X-CSRF-Token, or reload the page; nothing was changed",
            )
        if not -60 <= time.time() - int(issued) <= TOKEN_S:
            raise RefusedError(
                403,
                "the page was loaded too long ago; reload it and try again; nothing was changed",
            )

    def _sign(self, issued: str) -> str:
        return hmac.new(
            self._secret, f"csrf {issued} {self._settings.user}".encode(), hashlib.sha256
        ).hexdigest()

    def _is_known(self, host: str) -> bool:
        if host == "localhost" or host in self._settings.hosts:
            return True
        try:
            address = ipaddress.ip_address(host)
            listen = ipaddress.ip_address(self._settings.host or "127.0.0.1")
        except ValueError:
            return False
        # A listener on 0.0.0.0 or [::] may have any address, and DNS cannot rebind a
        # literal.
        return listen.is_unspecified or address == listen

    async def _is_right(self, where: str, header: str) -> bool:
        """Whether the Authorization header is correct. Raises TooManyLoginsError."""
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
            # Always compare both: the time must not show which of them was wrong.
            right = verify(password, settings.password)
            return hmac.compare_digest(user.encode(), settings.user.encode()) & right

        if not await self._throttle.check(where, is_right):
            return False
        self._known = seen
        return True


def _unknown_name(host: str) -> RefusedError:
    return RefusedError(
        403,
        f"the host name {host[:255]!a} is unknown here; use the address or localhost, or add the "
        "name to admin.hosts",
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
