"""A TLS client on the standard library's ssl module for tests of whole relays."""

from __future__ import annotations

import socket
import ssl

PATIENCE_S = 20


def context_of(pki, certificate=None) -> ssl.SSLContext:
    """A context that trusts the test CA and presents a certificate.

    By default it presents the good client's.
    """
    context = ssl.create_default_context(cafile=str(pki.ca))
    shown = certificate or pki.client
    context.load_cert_chain(shown.certificate, shown.key)
    return context


def talk(
    pki,
    port: int,
    said: bytes = b"hello",
    raw: socket.socket | None = None,
    context: ssl.SSLContext | None = None,
    patience_s: float = PATIENCE_S,
) -> bytes:
    """Do a handshake, send `said`, and return the first data that comes back.

    `raw` is a connected socket to use instead of a new one.
    """
    connected = raw or socket.create_connection(("127.0.0.1", port), patience_s)
    connected.settimeout(patience_s)
    # The request follows the handshake without a delay.
    if connected.family != socket.AF_UNIX:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with (context or context_of(pki)).wrap_socket(
        connected, server_hostname="app.example.com"
    ) as tls:
        tls.sendall(said)
        return tls.recv(65536)


def echoes(client: ssl.SSLSocket) -> bool:
    """Whether the backend of this open session sends back what it gets."""
    client.sendall(b"hello")
    return client.recv(5) == b"hello"
