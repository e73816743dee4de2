"""The values of the sticky cookie in an HTTP/1 request head: in URL and cookies.

Theory of operation. The values are found where httpd's mod_proxy_balancer finds them,
in its order: first in the URL, then in the cookies. Both names are case-sensitive
there. httpd takes the first occurrence of `NAME=` in the URL, wherever it is, after it
has decoded the path; the value ends at `?` or `&`, with `scolonpathdelim=On` also at
`;`. In a cookie the name follows a space, a semicolon or a comma. So a value that names
a backend in httpd names the same one here.

httpd looks at one value only. Here the others count too, if the first one names no
backend: other occurrences, the name in another case (Tomcat writes `;jsessionid=`), a
value without its quotes, and a value of the path that ends at `;` or `/`.

Never: changes a byte, reads a body, raises on what a peer sent, logs a value.
Next: `relay.core.cookie.CookieTable.find`
"""

from __future__ import annotations

import re

# What ends a value in a query, and in a path, where a segment may follow.
_END_IN_QUERY = re.compile(rb"[;?&# ]")
_END_IN_PATH = re.compile(rb"[;?&# /]")
_END_IN_HTTPD = re.compile(rb"[?& ]")
_ENCODED = re.compile(rb"%([0-9A-Fa-f]{2})")
_BEFORE_PARAMETER = b";?&"
# A URL has room for thousands of values; no browser sends more than a few.
_MAX_IN_URL = 32


class StickyNames:
    """The names of one pool's cookie. `in_url` is its name in the URL; "": the same.

    Raises ValueError if the cookie's name is empty.
    """

    __slots__ = ("_cookie", "_in_cookie", "_in_url", "_lower_in_url")

    def __init__(self, cookie: str, in_url: str = "") -> None:
        self._cookie = cookie.encode()
        if not self._cookie:
            raise ValueError("a cookie without a name cannot be looked for; set the pool's cookie")
        self._in_cookie = re.compile(rb"(?:^|[;,\s])%b\s*=([^;,]*)" % re.escape(self._cookie))
        self._in_url = (in_url or cookie).encode() + b"="
        self._lower_in_url = self._in_url.lower()

    def in_target(self, line: bytes) -> list[bytes]:
        """The values in a request line; not empty."""
        path, mark, query = line.partition(b"?")
        if b"%" in path:
            # A decoded "?" does not begin the query.
            path = _ENCODED.sub(_decoded, path).replace(b"?", b"%3F")
            line = path + mark + query
        lower = line.lower()
        if self._lower_in_url not in lower:
            return []
        exact: list[bytes] = []
        other: list[bytes] = []
        size, at = len(self._in_url), lower.find(self._lower_in_url)
        while at >= 0 and len(exact) + len(other) < _MAX_IN_URL:
            start = at + size
            ends = _END_IN_PATH if at < len(path) else _END_IN_QUERY
            # A value is only cut out if it counts: a URL has room for thousands of
            # names, and each value may reach to its end.
            if line.startswith(self._in_url, at):
                value = _value_at(line, start, ends)
                longer = _value_at(line, start, _END_IN_HTTPD)
                exact += [value, longer] if longer != value else [value]
            elif line[at - 1] in _BEFORE_PARAMETER:
                other.append(_value_at(line, start, ends))
            at = lower.find(self._lower_in_url, start)
        return [value for value in exact + other if value]

    def in_cookies(self, head: bytes, at: int) -> list[bytes]:
        """The values of all cookies of the name; not empty, and without quotes.

        `at` is the position of the request line's LF; the head ends with the LF of the
        last field.
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
            if self._cookie in field:
                found = (_unquoted(each) for each in self._in_cookie.findall(field))
                values += [value for value in found if value]
            at = lower.find(b"\ncookie:", end)
        return values


def _decoded(match: re.Match[bytes]) -> bytes:
    return bytes((int(match[1], 16),))


def _unquoted(value: bytes) -> bytes:
    value = value.strip()
    return value.strip(b'"') if value[:1] == b'"' else value


def _value_at(line: bytes, start: int, ends: re.Pattern[bytes]) -> bytes:
    end = ends.search(line, start)
    return line[start : end.start()] if end else line[start:]
