"""What a backend answers to a GET, for `TlsBackend`."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable


def answer(
    *responses: bytes, requests: list[bytes] | None = None
) -> Callable[[ssl.SSLSocket], None]:
    """Read a request's head, then send these bytes, one record each, and hang up."""

    def serve(connection: ssl.SSLSocket) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            more = connection.recv(65536)
            if not more:
                return
            received += more
        if requests is not None:
            requests.append(received)
        for each in responses:
            connection.sendall(each)
        with contextlib.suppress(OSError, ssl.SSLError):
            connection.unwrap()

    return serve


def status(number: int) -> bytes:
    """A response with an empty body."""
    return b"HTTP/1.1 %d Whatever\r\nContent-Length: 0\r\n\r\n" % number


def silent(connection: ssl.SSLSocket) -> None:
    """Read whatever comes, and never answer."""
    while connection.recv(65536):
        pass
