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

The values are those of `relay.core.sticky_names`.

Never: changes a byte, reads a body, raises on what a peer sent, logs a value (values
are secrets of sessions).
Next: `relay.core.cookie.CookieTable.find`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from relay.core.hello import NEED_DATA, Need
from relay.core.sticky_names import StickyNames

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

    `names` are those of its pool.
    """

    __slots__ = ("_blank", "_head", "_line_end", "_names", "_searched", "result")

    def __init__(self, names: StickyNames) -> None:
        self._names = names
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
        names, line = self._names, head[: self._line_end]
        values = names.in_target(line) + names.in_cookies(head, self._line_end)
        return SniffResult(http=True, values=tuple(values[:MAX_VALUES]))


def _too_long(head: bytes | bytearray) -> SniffResult | None:
    return SniffResult(http=False, detail=TOO_LONG) if len(head) == MAX_HEAD_BYTES else None


def _may_begin_a_request(head: bytes | bytearray) -> bool:
    method, space, _ = head[: _MAX_METHOD_BYTES + 1].partition(b" ")
    if method.translate(None, _METHOD_BYTES):
        return False
    return bool(method) if space else len(method) <= _MAX_METHOD_BYTES
