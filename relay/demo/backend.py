"""A backend of the demonstration: an HTTP/1.1 server with mutual TLS.

    python -m relay.demo.backend --name worker1 --subject CN=worker1 --certificate FILE
        --private-key FILE --client-ca FILE [--port N] [--stay]

Each answer has the backend's name and both certificates. The process writes its port to
stdout when it listens. It ends when its stdin ends, so it never outlives the
demonstration; with --stay it ends at a signal.

Never: serves anything but this text; listens on anything but 127.0.0.1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import ssl
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_IDLE_S = 300
_SHORT_NAMES = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU"}


def main() -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser()
    for option in ("--name", "--subject", "--certificate", "--private-key", "--client-ca"):
        parser.add_argument(option, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--stay", action="store_true")
    options = parser.parse_args()
    # Ctrl-C reaches every process of the terminal. The demonstration ends them in
    # order.
    signal.signal(signal.SIGINT, signal.SIG_DFL if options.stay else signal.SIG_IGN)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options.certificate, options.private_key)
    context.load_verify_locations(options.client_ca)
    context.verify_mode = ssl.CERT_REQUIRED
    with Backend(options.name, options.subject, options.port, context) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdout.write(f"{server.server_port}\n")
        sys.stdout.flush()
        while options.stay:
            signal.pause()
        while os.read(sys.stdin.fileno(), 4096):
            pass
    # sys.exit would wait for the threads of open connections.
    os._exit(0)


class Backend(ThreadingHTTPServer):
    """The server. A handshake runs in its connection's thread and delays no other."""

    def __init__(self, name: str, subject: str, port: int, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.name = name
        self.subject = subject
        self.context = context

    def get_request(self) -> tuple[ssl.SSLSocket, Any]:
        """Accept one connection, without its handshake."""
        raw, address = self.socket.accept()
        raw.settimeout(_IDLE_S)
        return self.context.wrap_socket(
            raw, server_side=True, do_handshake_on_connect=False
        ), address

    def finish_request(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: Any
    ) -> None:
        """Do the handshake, then serve requests."""
        if isinstance(request, ssl.SSLSocket):
            request.do_handshake()
            super().finish_request(request, client_address)
            with contextlib.suppress(OSError):
                request.unwrap()  # http.server closes without close_notify

    def handle_error(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: Any
    ) -> None:
        """Write nothing: the relay reports what failed."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes
    server: Backend

    def do_GET(self) -> None:
        seen = self.connection.getpeercert() if isinstance(self.connection, ssl.SSLSocket) else None
        body = (
            f"backend: {self.server.name}\n"
            f"its certificate: {self.server.subject}\n"
            f"client certificate it saw: {_subject(seen)}\n"
            f"request: GET {self.path}\n"
        ).encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class names it)
        pass


def _subject(certificate: Any) -> str:
    """The subject of a `getpeercert` result, as an RFC 4514 string."""
    if not certificate:
        return "none"
    parts = [
        f"{_SHORT_NAMES.get(key, key)}={value}"
        for relative in reversed(certificate["subject"])
        for key, value in relative
    ]
    return ",".join(parts)


if __name__ == "__main__":
    main()
