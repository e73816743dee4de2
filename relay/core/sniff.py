"""The head of a connection's first HTTP/1 request as a value: what it says in the sticky cookie's name.

It runs once per connection of a cookie-sticky route. Measured with timeit, CPython 3.11: SNIFF_US µs for a browser's head of 507 bytes.

Theory of operation. The bytes are collected until the empty line that ends a head, or until they can be no head any more: that is known
at the first byte that no method has, at the end of a first line that is no request line (HTTP/2's preface is none), and after
64 KiB. Then the cookie is looked for, and nothing else. How the bytes were cut into pieces makes no difference to the result.

The head is read more leniently than a server would: it decides where a connection goes, not what it means, and a folded line
(RFC 9112, section 5.2), a bare LF (section 2.2) or an unknown method shall not cost a client its backend. llhttp, and so httptools,
refuses all three. What is wrong with the head is for the backend to say; it gets every byte unchanged.

Where a value is looked for is what httpd's mod_proxy_balancer does: first the URL (`;jsessionid=v`, `?jsessionid=v`; any case,
as Tomcat writes the cookie's name there in lower case), then every cookie of the name, which is case-sensitive.

Never: changes a byte, reads a body, raises on what a peer sent. Values are sessions' secrets: they are not for logs.
Next: `relay.core.cookie.CookieTable.find`
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from relay.core.hello import NEED_DATA, Need

MAX_HEAD_BYTES: Final = 65_536
MAX_VALUES: Final = 32  # a head has room for thousands of cookies of one name; no browser sends more than a few

NOT_HTTP: Final = "the client does not speak HTTP/1"
HTTP2: Final = "the client speaks HTTP/2"
TOO_LONG: Final = "the request's head is longer than 65536 bytes"

_MAX_METHOD_BYTES = 32  # the longest registered one has 17
_MAX_BLANK_BYTES = 16  # empty lines before a request, which some old clients send (RFC 9112, section 2.2)
# Not all that a token may have (RFC 9110, section 5.6.2), but all that the registered methods have: with digits and
# punctuation many another protocol would look like HTTP for longer.
_METHOD_BYTES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ-_"


@dataclass(slots=True, frozen=True)
class Sniffed:
    """What the first bytes of a connection say about its stickiness."""

    http: bool
    """Whether they are a whole HTTP/1 request head."""
    values: tuple[bytes, ...] = ()
    """Values in the cookie's name, those of the URL first, then the cookies', in the order sent; without quotes and never empty."""
    detail: str = ""
    """Why not, in words; "" when http is True."""

    @property
    def value(self) -> bytes | None:
        """The first value: the one to hash when none names a route."""
        return self.values[0] if self.values else None


Progress: TypeAlias = Sniffed | Need


class Sniffer:
    """One connection's first bytes; `name` is the cookie's, as the configuration spells it."""

    __slots__ = ("_blank", "_head", "_line_end", "_name", "_searched", "result")

    def __init__(self, name: str) -> None:
        self._name = name.encode()
        self._head: bytes | bytearray = b""
        self._blank = 0
        self._line_end = 0  # where the LF of a good request line is; 0 while there is none
        self._searched = 0
        self.result: Sniffed | None = None

    def feed(self, data: bytes | bytearray) -> Progress:
        """The result when these bytes decide it, else NEED_DATA; after the result, the result again."""
        if self.result is not None:
            return self.result
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
        found = Sniffed(http=False, detail=NOT_HTTP) if self._blank > _MAX_BLANK_BYTES else self._judge()
        if found is None:
            return NEED_DATA
        self.result = found
        self._head = b""
        return found

    def _judge(self) -> Sniffed | None:
        """What the head collected so far decides."""
        head = self._head
        if not self._line_end:
            if not _may_begin_a_request(head):
                return Sniffed(http=False, detail=NOT_HTTP)
            at = head.find(b"\n", self._searched)
            if at < 0:
                self._searched = len(head)
                return _judge_length(head)
            line = head[:at].rstrip()
            if line[-9:-1] != b" HTTP/1." or not line[-1:].isdigit():
                return Sniffed(http=False, detail=HTTP2 if line == b"PRI * HTTP/2.0" else NOT_HTTP)
            self._line_end = self._searched = at
        start = self._searched
        end = head.find(b"\n\r\n", start)
        # A head without CR; one search in what the first has looked at already.
        bare = head.find(b"\n\n", start, len(head) if end < 0 else end + 1)
        end = end if bare < 0 else bare
        if end < 0:
            self._searched = max(self._line_end, len(head) - 2)
            return _judge_length(head)
        whole = bytes(head[: end + 1])
        values = [*_of_target(whole[: self._line_end].rstrip()[:-9], self._name), *_of_cookies(whole[self._line_end :], self._name)]
        return Sniffed(http=True, values=tuple(values[:MAX_VALUES]))


def _judge_length(head: bytes | bytearray) -> Sniffed | None:
    return Sniffed(http=False, detail=TOO_LONG) if len(head) == MAX_HEAD_BYTES else None


def _may_begin_a_request(head: bytes | bytearray) -> bool:
    method, space, _ = head[: _MAX_METHOD_BYTES + 1].partition(b" ")
    if method.translate(None, _METHOD_BYTES):
        return False
    return bool(method) if space else len(method) <= _MAX_METHOD_BYTES


def _of_target(line: bytes, name: bytes) -> Iterator[bytes]:
    """The values of `;name=`, `?name=` and `&name=` in a request line without its version."""
    name = name.lower() + b"="
    lower = line.lower()
    at = lower.find(name)
    while at > 0:
        start = at + len(name)
        if lower[at - 1] in b";?&":
            value = _until(line[start:], b";?&/#")
            if value:
                yield value
        at = lower.find(name, start)


def _of_cookies(fields: bytes, name: bytes) -> Iterator[bytes]:
    """The values of all cookies of the name; `fields` begins with the LF of the request line and ends with the one of the last field."""
    lower = fields.lower()
    at = lower.find(b"\ncookie:")
    while at >= 0:
        start = at + 8
        end = fields.find(b"\n", start)
        while fields[end + 1 : end + 2] in {b" ", b"\t"}:  # the line is folded
            end = fields.find(b"\n", end + 1)
        yield from _of_cookie_field(fields[start:end], name)
        at = lower.find(b"\ncookie:", end)


def _of_cookie_field(field: bytes, name: bytes) -> Iterator[bytes]:
    """The values of the name in one Cookie field; a comma, too, ends a cookie, as in httpd and in RFC 2965."""
    at = field.find(name)
    while at >= 0:
        start = at + len(name)
        if at == 0 or field[at - 1] in b"; ,\t\r\n":
            rest = field[start : start + 1] if field[start : start + 1] == b"=" else field[start:].lstrip()[:1]
            if rest == b"=":
                value = _until(field[field.index(b"=", start) + 1 :], b";,").strip()
                if value[:1] == b'"':
                    value = value.strip(b'"')
                if value:
                    yield value
        at = field.find(name, start)


def _until(value: bytes, ends: bytes) -> bytes:
    for end in ends:
        value = value.partition(bytes((end,)))[0]
    return value
