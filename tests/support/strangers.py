"""Clients that stop somewhere between their connect and their last handshake byte."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable

from bench.hellos import make_hello
from tests.support.fragments import split_records
from tests.support.peer import PATIENCE_S
from tests.support.pki import Pki
from tests.support.worker import client_context

NAME = "app.example.com"


def knock(port: int, data: bytes = b"", host: str = "127.0.0.1") -> socket.socket:
    """A TCP connection from this loopback address that has sent these bytes."""
    sock = socket.create_connection(("127.0.0.1", port), PATIENCE_S, source_address=(host, 0))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if data:
        sock.sendall(data)
    return sock


def last_flight(sock: socket.socket, pki: Pki, version: ssl.TLSVersion) -> list[bytes]:
    """Send a hello and read the answer.

    Returns the records of the client's last flight, which is not sent yet.
    """
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = client_context(pki, pki.client, version=version)
    tls = context.wrap_bio(received, sent, server_hostname=NAME)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    sock.sendall(sent.read())
    while True:
        received.write(sock.recv(65536))
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        if sent.pending:
            return split_records(sent.read())


def _answered(port: int, hello: bytes, host: str) -> socket.socket:
    sock = knock(port, hello, host)
    assert sock.recv(1) == b"\x16", "the relay's answer"
    return sock


def _cut_short(version: ssl.TLSVersion) -> Callable[[int, Pki, str], socket.socket]:
    def stop(port: int, pki: Pki, host: str) -> socket.socket:
        sock = knock(port, host=host)
        sock.sendall(b"".join(last_flight(sock, pki, version)[:-1]))
        return sock

    return stop


# Every way to be half open: connect with this port, PKI and own address.
STRANGERS: dict[str, Callable[[int, Pki, str], socket.socket]] = {
    "silent": lambda port, _pki, host: knock(port, b"", host),
    "part of a hello": lambda port, _pki, host: knock(port, make_hello(NAME)[:80], host),
    "hello retry request": lambda port, _pki, host: _answered(
        port, make_hello(NAME, share=False), host
    ),
    "TLS 1.3 hello": lambda port, _pki, host: _answered(port, make_hello(NAME), host),
    "TLS 1.2 hello": lambda port, _pki, host: _answered(port, make_hello(NAME, tls13=False), host),
    "TLS 1.3 without Finished": _cut_short(ssl.TLSVersion.TLSv1_3),
    "TLS 1.2 without Finished": _cut_short(ssl.TLSVersion.TLSv1_2),
}
