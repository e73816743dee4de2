"""Which backend a cookie's value names, and how the relay sets a cookie of its own.

An application's cookie names its backend after a separator (`JSESSIONID=abc.worker2`,
as Tomcat's jvmRoute writes it), or with its whole value (`SRV=worker2`). The value of
the relay's own cookie is a keyed hash of
the backend's route: opaque to the client, and the same on every worker and machine with
the same secret.

Never: holds back or changes what a backend sent; logs a value.
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
_STATUS_BYTES = 13  # "HTTP/1.1 200 ": enough to recognize a status line


def opaque_value(secret: bytes, pool: str, route: str) -> str:
    """The value of the relay's own cookie for a backend: 32 hexadecimal digits.

    The pool's name is part of the hash, so that the cookie of one site reveals nothing
    about that of another. Raises ValueError for a secret of less than 16 bytes: with a
    cookie at hand, a shorter one can be found by brute force.
    """
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError(
            f"the cookie secret has {len(secret)} bytes; it needs at least"
            f" {MIN_SECRET_BYTES} random bytes"
        )
    # A key of blake2b has at most 64 bytes, a secret may have more.
    key = blake2b(secret, person=b"relay secret").digest()
    name = pool.encode()
    return blake2b(
        len(name).to_bytes(4, "big") + name + route.encode(),
        key=key,
        digest_size=16,
        person=b"relay cookie",
    ).hexdigest()


class CookieTable:
    """From a cookie's value to the backend it names.

    With a secret the values are the relay's own. Without one, the part of a value after
    a `separator` is the backend's route, or the whole value if `separator` is "".

    httpd takes what follows the first separator. Here the longest part that is a route
    counts, so that both a session id and a route may have separators in them.
    """

    __slots__ = ("_depths", "_indices", "_separator", "values")

    def __init__(
        self, routes: Sequence[str], *, pool: str = "", secret: bytes = b"", separator: str = "."
    ) -> None:
        self._separator = b"" if secret else separator.encode()
        self.values: tuple[str, ...] = (
            tuple(opaque_value(secret, pool, route) for route in routes) if secret else ()
        )
        """The relay's value for each backend, in order; () without a secret."""
        self._indices = {name.encode(): index for index, name in enumerate(self.values or routes)}
        # How many separators the routes have in them: with most first, the longest
        # part is found first. Usually this is (0,).
        counts = {each.count(self._separator or b".") for each in self._indices}
        self._depths = tuple(sorted(counts, reverse=True))

    def find(self, values: Iterable[bytes]) -> int | None:
        """The backend that the first valid value names; None if none is valid."""
        indices, separator = self._indices, self._separator
        for value in values:
            if not separator:
                index = indices.get(value)
                if index is not None:
                    return index
                continue
            for depth in self._depths:
                parts = value.rsplit(separator, depth + 1)
                if len(parts) == depth + 2:
                    index = indices.get(value[len(parts[0]) + 1 :])
                    if index is not None:
                        return index
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
    """One `Set-Cookie` line with its CRLF (RFC 6265, section 4.1).

    The browser keeps the cookie until it closes. Raises ValueError if the values do not
    give one line with these attributes, and for SameSite=None without Secure, which
    browsers refuse.
    """
    if not name or not _TOKEN_BYTES.issuperset(name.encode()):
        raise ValueError(f"{name!r} cannot be a cookie's name; use letters, digits, - and _")
    if not _VALUE_BYTES.issuperset(value.encode()):
        raise ValueError(f"{value!r} cannot be a cookie's value; use letters, digits, - and _")
    if not path.startswith("/") or ";" in path or not path.isascii() or not path.isprintable():
        raise ValueError(f"{path!r} cannot be a cookie's path; write / first and no semicolon")
    if same_site == "None" and not secure:
        raise ValueError(
            "browsers ignore a cookie with SameSite=None that is not Secure; set both, or"
            " another SameSite"
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
    """Inserts one line after the status line of a connection's first final response.

    Every other byte passes unchanged and immediately, so nothing needs to be flushed
    when the peer closes. Interim responses (100, 103) pass with their whole head.
    Nothing is inserted after a 101, because the connection then speaks another
    protocol, nor into bytes that do not start like an HTTP/1 response.
    """

    __slots__ = ("_interim", "_line", "_start", "done")

    def __init__(self, line: bytes) -> None:
        self._line = line
        self._start = b""  # of the current line, at most _STATUS_BYTES
        # Whether the current line is in an interim response, after its status line.
        self._interim = False
        self.done = False
        """True once no further byte needs to pass through `feed`."""

    def feed(self, data: bytes) -> bytes:
        """The bytes to send: the same bytes, perhaps with the line inserted."""
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
    """Whether this may start a status line (RFC 9112, 4) other than that of a 101."""
    code = start[9:12]
    return (
        b"HTTP/1.".startswith(start[:7])
        and (start[7:8].isdigit() or len(start) <= 7)
        and start[8:9] in {b"", b" "}
        and (code.isdigit() or not code)
        and code != b"101"
        and start[12:13] in {b"", b" ", b"\r", b"\n"}
    )
