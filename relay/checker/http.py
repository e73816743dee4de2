"""The HTTP/1.1 of a health check: one GET, and the head of its response.

Never: reads a body, or follows a redirect.
"""

from __future__ import annotations

import httptools

from relay.core.untrusted import clip

MAX_HEAD_BYTES = 65_536


def render_get(path: str, name: str) -> bytes:
    """The request, to a host of this name."""
    host = f"[{name}]" if ":" in name else name
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: relay-health-check\r\n"
        "Accept: */*\r\nConnection: close\r\n\r\n"
    ).encode("ascii")


class ResponseHead:
    """Parses an HTTP/1 response up to the end of its head."""

    def __init__(self) -> None:
        self._status: int | None = None
        self._received = 0
        self._parser = httptools.HttpResponseParser(self)

    def on_headers_complete(self) -> None:
        """Called by httptools at the end of a head."""
        status = self._parser.get_status_code()
        if self._status is None and status >= 200:  # 1xx is not final (RFC 9110, 15.2)
            self._status = status

    def feed(self, data: bytes) -> int | str | None:
        """The final status, why this is not HTTP, or None before the head's end."""
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self._status is None:
                return clip(str(error)) or type(error).__name__
        if self._status is None and self._received > MAX_HEAD_BYTES:
            return f"its head is longer than {MAX_HEAD_BYTES} bytes"
        return self._status
