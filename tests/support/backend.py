"""A TLS backend on the standard library's ssl module.

It uses the system's OpenSSL, so relay meets a second implementation of TLS.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

Serve = Callable[[ssl.SSLSocket], None]
PATIENCE_S = 20


def echo(connection: ssl.SSLSocket) -> None:
    """Send back what the client sends, until the client ends the connection."""
    while data := connection.recv(65536):
        connection.sendall(data)
    with contextlib.suppress(OSError, ssl.SSLError):
        connection.unwrap()


def name_itself(name: str) -> Serve:
    """Answer every line with the backend's name."""

    def serve(connection: ssl.SSLSocket) -> None:
        while connection.recv(65536):
            connection.sendall(name.encode() + b"\n")
        with contextlib.suppress(OSError, ssl.SSLError):
            connection.unwrap()

    return serve


class TlsBackend:
    """A listening mTLS backend, one thread per connection.

    `errors` lists what its handshakes raised.
    """

    def __init__(
        self,
        certificate: Path,
        key: Path,
        client_ca: Path,
        serve: Serve = echo,
        *,
        version: ssl.TLSVersion | None = None,
        alpn: tuple[str, ...] = (),
        port: int = 0,
        host: str = "127.0.0.1",
    ) -> None:
        self.context = context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
        if version is not None:
            context.minimum_version = context.maximum_version = version
        if alpn:
            context.set_alpn_protocols(list(alpn))
        self.serve = serve
        self.errors: list[str] = []
        self.accepted = 0
        self.resumed = 0
        self.peers: list[dict[str, object]] = []
        self.alpn: list[str | None] = []
        self._open: list[socket.socket] = []
        self._listener = socket.create_server((host, port), backlog=512)
        # Accepted sockets inherit this. Without it every test waits for delayed ACKs.
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port: int = self._listener.getsockname()[1]
        self.address = f"{host}:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._open.append(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE_S)
        try:
            sock.getpeername()  # a socket that was reset is left open by wrap_socket
            with self.context.wrap_socket(
                sock, server_side=True, suppress_ragged_eofs=False
            ) as connection:
                self._open.append(connection)
                self.resumed += bool(connection.session_reused)
                self.peers.append(connection.getpeercert() or {})
                self.alpn.append(connection.selected_alpn_protocol())
                self.serve(connection)
        except (OSError, ssl.SSLError, ValueError) as error:
            self.errors.append(str(error))
            sock.close()  # after wrap_socket this does nothing

    def close(self) -> None:
        """Stop listening and reset every connection."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
