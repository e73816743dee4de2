"""An HTTP server of revocation lists: real, and as bad as a test asks for.

Each path has a `Page`, which the test may replace at any time.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

_PATIENCE_S = 60.0


@dataclass
class Page:
    """What the server answers.

    `declared`: the Content-Length to send, if it is not the true one; "" for none.
    `portion_s`: a pause after each byte of head and body. `raw`: these bytes instead of
    HTTP. `hang`: read the request and never answer.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    etag: str = ""
    last_modified: str = ""
    declared: str | None = None
    portion_s: float = 0.0
    raw: bytes | None = None
    hang: bool = False
    endless: bool = False


class CrlServer:
    """Serves on a free port of 127.0.0.1; a context manager."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        """Path and headers, names in lower case, of each request."""
        self.answers: list[int] = []
        self.stopped = threading.Event()
        self.port = 0
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Serve, on the port of an earlier start if there was one."""
        self.stopped.clear()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self._server.socket.listen(64)  # with the usual 5, the sixth client waits a second
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Refuse connections, and end those that hang."""
        self.stopped.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def url(self, path: str = "/ca.crl", host: str = "127.0.0.1") -> str:
        """The URL of a path here."""
        return f"http://{host}:{self.port}{path}"

    def put(self, body: bytes = b"", path: str = "/ca.crl", **keywords: object) -> str:
        """Serve this from now on; returns its URL."""
        self.pages[path] = Page(body, **keywords)
        return self.url(path)

    def count(self, path: str = "/ca.crl") -> int:
        """How many requests there were for a path."""
        return sum(1 for asked, _ in self.requests if asked == path)


class _Handler(BaseHTTPRequestHandler):
    owner: CrlServer

    def do_GET(self) -> None:
        owner = self.owner
        owner.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
        page = owner.pages.get(self.path, Page(b"not here", 404))
        with contextlib.suppress(OSError):
            self._answer(page)

    def _answer(self, page: Page) -> None:
        if page.hang:
            self.owner.stopped.wait(_PATIENCE_S)
        elif page.raw is not None:
            self._write(page, page.raw)
        else:
            self._write(page, self._head(page) + self._body(page))
        while page.endless and not self.owner.stopped.is_set():
            self.connection.sendall(bytes(1 << 16))

    def _is_known(self, page: Page) -> bool:
        if "If-None-Match" in self.headers:  # it goes first (RFC 9110, 13.2.2)
            return bool(page.etag) and self.headers["If-None-Match"] == page.etag
        return bool(page.last_modified) and (
            self.headers.get("If-Modified-Since") == page.last_modified
        )

    def _body(self, page: Page) -> bytes:
        return b"" if self._is_known(page) else page.body

    def _head(self, page: Page) -> bytes:
        known = self._is_known(page)
        status = 304 if known else page.status
        self.owner.answers.append(status)
        headers = dict(page.headers)
        if page.etag:
            headers["ETag"] = page.etag
        if page.last_modified:
            headers["Last-Modified"] = page.last_modified
        headers.setdefault("Connection", "close")
        length = str(len(page.body)) if page.declared is None else page.declared
        if length and not known and "Transfer-Encoding" not in headers:
            headers["Content-Length"] = length
        lines = [f"HTTP/1.1 {status} Whatever", *(f"{k}: {v}" for k, v in headers.items())]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _write(self, page: Page, data: bytes) -> None:
        if not page.portion_s:
            self.connection.sendall(data)
            return
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in data:
            self.connection.sendall(bytes((byte,)))
            time.sleep(page.portion_s)
            if self.owner.stopped.is_set():
                return

    def log_message(self, *_arguments: object) -> None:
        pass
