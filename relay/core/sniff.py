"""The sticky cookie's values in the head of a connection's first HTTP/1 request.

This runs once per connection of a route that is sticky by cookie. Measured with timeit,
CPython 3.11: 6 µs for a browser's head of 507 bytes.

Theory of operation. Bytes are collected until the empty line that ends a head, or until
they cannot be a head: at the first byte that no method has, at the end of a first line
that is not a request line (such as the HTTP/2 preface), or after 64 KiB. Then only the
cookie is looked for. The result does not depend on how the bytes were cut into pieces.

The head is parsed more leniently than a server would: it only decides where the
connection goes. A folded line (RFC 9112, section 5.2), a bare LF (section 2.2) or an
unknown method should not cost a client its backend; llhttp, and so httptools, refuses
all three. The backend gets every byte unchanged and can refuse the request.

The values are found where httpd's mod_proxy_balancer finds them: first in the URL
(`;jsessionid=v`, `?jsessionid=v`, in any case, because Tomcat writes the cookie's name
in lower case there), then in every cookie of the name, which is case-sensitive.

Never: changes a byte, reads a body, raises on what a peer sent, logs a value (values
are secrets of sessions).
Next: `relay.core.cookie.CookieTable.find`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from relay.core.hello import NEED_DATA, Need

MAX_HEAD_BYTES: Final = 65_536
# A head has room for thousands of cookies of one name; no browser sends more than a
# few.
MAX_VALUES: Final = 32

NOT_HTTP: Final = "the client does not speak HTTP/1"
HTTP2: Final = "the client speaks HTTP/2"
TOO_LONG: Final = "the request's head is longer than 65536 bytes"

_MAX_METHOD_BYTES = 32  # the longest registered one has 17
# Empty lines before a request, which some old clients send (RFC 9112, section 2.2).
_MAX_BLANK_BYTES = 16
# The characters of the registered methods. A token may have more (RFC 9110, section
# 5.6.2), but with digits and punctuation it would take more bytes to see that many
# other protocols are not HTTP.
_METHOD_BYTES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ-_"
_ONE_SEPARATOR = bytes.maketrans(b"?&", b";;")


@dataclass(slots=True, frozen=True)
class SniffResult:
    """What the first bytes of a connection say about its backend."""

    http: bool
    """Whether they are a complete HTTP/1 request head."""
    values: tuple[bytes, ...] = ()
    """The values in the order sent, those in the URL first; no quotes, not empty."""
    detail: str = ""
    """Why the bytes are not a request head; "" if http is True."""


class Sniffer:
    """One connection's first bytes.

    `name` is the cookie's name as the configuration spells it. Raises ValueError if it
    is empty.
    """

    __slots__ = ("_blank", "_head", "_line_end", "_lower_name", "_name", "_searched", "result")

    def __init__(self, name: str) -> None:
        self._name = name.encode()
        if not self._name:
            raise ValueError("a cookie without a name cannot be looked for; set the pool's cookie")
        self._lower_name = self._name.lower() + b"="
        self._head: bytes | bytearray = b""
        self._blank = 0
        self._line_end = 0  # position of the request line's LF; 0 before it has come
        self._searched = 0
        self.result: SniffResult | None = None

    def feed(self, data: bytes | bytearray | memoryview) -> SniffResult | Need:
        """The result, or NEED_DATA. Once there is a result, it stays the same."""
        if self.result is not None:
            return self.result
        data = bytes(data)
        if not self._head:
            if data[:1] in {b"\r", b"\n"}:
                size = len(data)
                data = data.lstrip(b"\r\n")
                self._blank += size - len(data)
            self._head = data[:MAX_HEAD_BYTES]
        else:
            if isinstance(self._head, bytes):
                self._head = bytearray(self._head)
            self._head += data[: MAX_HEAD_BYTES - len(self._head)]
        found = (
            SniffResult(http=False, detail=NOT_HTTP)
            if self._blank > _MAX_BLANK_BYTES
            else self._parse()
        )
        if found is None:
            return NEED_DATA
        self.result = found
        self._head = b""
        return found

    def _parse(self) -> SniffResult | None:
        """The result for the bytes collected so far; None if more are needed."""
        head = self._head
        if not self._line_end:
            if not _may_begin_a_request(head):
                return SniffResult(http=False, detail=NOT_HTTP)
            at = head.find(b"\n", self._searched)
            if at < 0:
                self._searched = len(head)
                return _too_long(head)
            line = head[:at].rstrip()
            if line[-9:-1] != b" HTTP/1." or not line[-1:].isdigit():
                return SniffResult(
                    http=False, detail=HTTP2 if line == b"PRI * HTTP/2.0" else NOT_HTTP
                )
            self._line_end = self._searched = at
        start = self._searched
        end = head.find(b"\n\r\n", start)
        # A head without CR. This searches only the bytes before the first result.
        bare = head.find(b"\n\n", start, len(head) if end < 0 else end + 1)
        end = end if bare < 0 else bare
        if end < 0:
            self._searched = max(self._line_end, len(head) - 2)
            return _too_long(head)
        head = bytes(head[: end + 1])
        values = _values_of_target(head[: self._line_end], self._lower_name) + _values_of_cookies(
            head, self._line_end, self._name
        )
        return SniffResult(http=True, values=tuple(values[:MAX_VALUES]))


def _too_long(head: bytes | bytearray) -> SniffResult | None:
    return SniffResult(http=False, detail=TOO_LONG) if len(head) == MAX_HEAD_BYTES else None


def _may_begin_a_request(head: bytes | bytearray) -> bool:
    method, space, _ = head[: _MAX_METHOD_BYTES + 1].partition(b" ")
    if method.translate(None, _METHOD_BYTES):
        return False
    return bool(method) if space else len(method) <= _MAX_METHOD_BYTES


def _values_of_target(line: bytes, lower_name: bytes) -> list[bytes]:
    """The values of `;name=`, `?name=` and `&name=` in a request line.

    `lower_name` includes the equals sign.
    """
    if lower_name not in line.lower():
        return []
    size = len(lower_name)
    values = []
    for part in line.translate(_ONE_SEPARATOR).split(b";")[1:]:
        if part[:size].lower() == lower_name:
            value = part[size:].partition(b"/")[0].partition(b"#")[0].partition(b" ")[0]
            if value:
                values.append(value)
    return values


def _values_of_cookies(head: bytes, at: int, name: bytes) -> list[bytes]:
    """The values of all cookies of this name.

    `at` is the position of the request line's LF; the head ends with the LF of the last
    field.
    """
    lower = head.lower()
    values: list[bytes] = []
    at = lower.find(b"\ncookie:", at)
    while at >= 0:
        start = at + 8
        end = head.find(b"\n", start)
        while head[end + 1 : end + 2] in {b" ", b"\t"}:  # the line is folded
            end = head.find(b"\n", end + 1)
        field = head[start:end]
        if name in field:
            _add_cookies(values, field, name)
        at = lower.find(b"\ncookie:", end)
    return values


def _add_cookies(values: list[bytes], field: bytes, name: bytes) -> None:
    """Add this name's values in one Cookie field.

    A comma also ends a cookie, as in httpd and in RFC 2965.
    """
    for cookie in field.replace(b",", b";").split(b";"):
        if name in cookie:
            before, _, value = cookie.partition(b"=")
            value = value.strip()
            if value[:1] == b'"':
                value = value.strip(b'"')
            if value and before.strip() == name:
                values.append(value)
