"""What a cookie's value says about the backend, and our own cookie: its value, its line, its place in a response.

An application's cookie names its backend after the last "." (`JSESSIONID=abc.worker2`, what Tomcat's jvmRoute writes). The relay's own
says it with a keyed hash of the route: the same on every worker and machine with the same secret, and opaque to the client.

Never: keeps or changes what a backend sent; logs a value.
Next: `relay.core.candidates.Candidates.admits`
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final, Literal

SameSite = Literal["Strict", "Lax", "None"]

MIN_SECRET_BYTES: Final = 16

_TOKEN_BYTES = frozenset(
    b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)  # RFC 9110, section 5.6.2
_VALUE_BYTES = frozenset(range(0x21, 0x7F)) - frozenset(b'",;\\')  # RFC 6265, section 4.1.1
_STATUS_BYTES = 13  # "HTTP/1.1 200 ", as much of a line as tells what it is


def opaque_value(secret: bytes, pool: str, route: str) -> str:
    """The value of the relay's own cookie for a route: 32 hexadecimal digits.

    The pool's name is part of it, so that one site does not tell what a cookie of another means. Raises ValueError for a secret
    of less than 16 bytes: shorter ones can be searched for, with a cookie as the proof.
    """
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError(
            f"the cookie secret has {len(secret)} bytes; at least {MIN_SECRET_BYTES} random ones are needed"
        )
    key = blake2b(
        secret, person=b"relay secret"
    ).digest()  # a key has at most 64 bytes, a secret may have more
    name = pool.encode()
    return blake2b(
        len(name).to_bytes(4, "big") + name + route.encode(),
        key=key,
        digest_size=16,
        person=b"relay cookie",
    ).hexdigest()


class CookieTable:
    """From a cookie's value to the member it names; with a secret the values are the relay's own, else what follows their last "."."""

    __slots__ = ("_members", "_opaque", "values")

    def __init__(self, routes: Sequence[str], *, pool: str = "", secret: bytes = b"") -> None:
        self._opaque = bool(secret)
        self.values: tuple[str, ...] = (
            tuple(opaque_value(secret, pool, route) for route in routes) if secret else ()
        )
        """Each member's own value of our cookie, in the order of the routes; () without a secret."""
        self._members = {name.encode(): index for index, name in enumerate(self.values or routes)}

    def find(self, values: Iterable[bytes]) -> int | None:
        """The member that the first value with a known route names, as its index; None when there is no such value."""
        members = self._members
        for value in values:
            _, dot, route = value.rpartition(b".")
            member = members.get(value) if self._opaque else members.get(route) if dot else None
            if member is not None:
                return member
        return None


def render_set_cookie(
    name: str,
    value: str,
    *,
    path: str = "/",
    secure: bool = True,
    http_only: bool = True,
    same_site: SameSite | None = "Lax",
) -> bytes:
    """One `Set-Cookie` line with its CRLF (RFC 6265, section 4.1), for the time the browser is open.

    Raises ValueError for what would not be one line with these attributes, and for SameSite=None without Secure, which browsers refuse.
    """
    if not name or not _TOKEN_BYTES.issuperset(name.encode()):
        raise ValueError(f"{name!r} cannot be a cookie's name; use letters, digits, - and _")
    if not _VALUE_BYTES.issuperset(value.encode()):
        raise ValueError(f"{value!r} cannot be a cookie's value; use letters, digits, - and _")
    if not path.startswith("/") or ";" in path or not path.isascii() or not path.isprintable():
        raise ValueError(
            f"{path!r} cannot be a cookie's path; it begins with / and has no semicolon"
        )
    if same_site == "None" and not secure:
        raise ValueError(
            "browsers ignore a cookie with SameSite=None that is not Secure; set both, or another SameSite"
        )
    attributes = [f"{name}={value}", f"Path={path}"]
    if secure:
        attributes.append("Secure")
    if http_only:
        attributes.append("HttpOnly")
    if same_site is not None:
        attributes.append(f"SameSite={same_site}")
    return f"Set-Cookie: {'; '.join(attributes)}\r\n".encode("ascii")


class Inserter:
    """Puts one line after the status line of the first final response of a connection; every other byte passes as it is, at once.

    Interim responses (100, 103) pass with their whole head. After 101 the connection speaks another protocol, and what does not
    begin like an HTTP/1 response is left alone. Nothing is ever held back, so there is nothing to flush when the peer ends.
    """

    __slots__ = ("_interim", "_line", "_start", "done")

    def __init__(self, line: bytes) -> None:
        self._line = line
        self._start = b""  # of the line we are in, at most _STATUS_BYTES
        self._interim = (
            False  # that line is in the head of an interim response, after its status line
        )
        self.done = False
        """True when no byte from now on needs to come through `feed`."""

    def feed(self, data: bytes) -> bytes:
        """The bytes to send for these: they themselves, with the line among them or not."""
        at = 0
        while at < len(data) and not self.done:
            end = data.find(b"\n", at) + 1
            after = end or len(data)
            self._start += data[at : min(after, at + _STATUS_BYTES - len(self._start))]
            if self._interim:
                if end:
                    self._interim = self._start not in {b"\r\n", b"\n"}
                    self._start = b""
            elif not _may_be_status_line(self._start):
                self.done = True
            elif end:
                self._interim = self._start[9:10] == b"1"
                if not self._interim:
                    self.done = True
                    return data[:end] + self._line + data[end:]
                self._start = b""
            at = after
        return data


def _may_be_status_line(start: bytes) -> bool:
    """Whether this begins a status line (RFC 9112, section 4) of a response after which HTTP goes on."""
    code = start[9:12]
    return (
        b"HTTP/1.".startswith(start[:7])
        and (start[7:8].isdigit() or len(start) <= 7)
        and start[8:9] in {b"", b" "}
        and (code.isdigit() or not code)
        and code != b"101"
        and start[12:13] in {b"", b" ", b"\r", b"\n"}
    )
