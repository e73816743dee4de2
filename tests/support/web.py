"""An HTTP/1 backend of a pool; it sends its name and keeps all that it received."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable

from tests.support.peer import Peer


class Site:
    """Serves the requests of one connection in order.

    `answer(name, head)` makes a response. `heard` has the received bytes of each
    connection.
    """

    def __init__(self, name: str, answer: Callable[[str, bytes], bytes] | None = None) -> None:
        self.name = name
        self.answer = answer or plain
        self.heard: list[bytes] = []

    def __call__(self, connection: ssl.SSLSocket) -> None:
        data = b""
        number = len(self.heard)
        self.heard.append(b"")
        while chunk := connection.recv(65536):
            self.heard[number] += chunk
            data += chunk
            while b"\r\n\r\n" in data:
                head, _, data = data.partition(b"\r\n\r\n")
                for line in head.split(b"\r\n"):
                    if line.lower().startswith(b"content-length:"):
                        left = int(line.partition(b":")[2])
                        while len(data) < left:
                            more = connection.recv(65536)
                            self.heard[number] += more
                            data += more
                        data = data[left:]
                connection.sendall(self.answer(self.name, head))
        with contextlib.suppress(OSError, ssl.SSLError):
            connection.unwrap()


def plain(name: str, head: bytes) -> bytes:
    """A 200 whose body is the backend's name."""
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(name), name.encode())


def request(cookie: str = "", *, target: str = "/", field: str = "Cookie") -> bytes:
    """A GET with this Cookie field, or without one."""
    line = f"{field}: {cookie}\r\n" if cookie else ""
    return (
        f"GET {target} HTTP/1.1\r\nHost: app.example.com\r\nUser-Agent: test\r\n"
        f"{line}Accept: */*\r\n\r\n"
    ).encode()


def response(peer: Peer) -> tuple[bytes, bytes]:
    """One response with a Content-Length: its head and its body."""
    data = b""
    while True:
        head, end, body = data.partition(b"\r\n\r\n")
        if end:
            size = next(
                (
                    int(line.partition(b":")[2])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length:")
                ),
                0,
            )
            if len(body) >= size:
                assert len(body) == size
                return head + end, body
        chunk = peer.receive_some()
        assert chunk, f"the connection ended after {data!r}"
        data += chunk
