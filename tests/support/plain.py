"""Configurations and peers of connections without TLS of the relay."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

from tests.support.peer import PATIENCE_S
from tests.support.pki import Pki
from tests.support.worker import route_toml

LISTENER = '[[listener]]\nname = "https"\nlisten = ["127.0.0.1:0"]\n'


def passthrough_toml(addresses: list[str], sni: str = "[]", pool: str = "", top: str = "") -> str:
    """A listener with one passthrough route, and its pool "main" (b1, b2, …)."""
    backends = "".join(
        f'[[pool.main.backend]]\nroute = "b{i}"\naddress = "{address}"\n'
        for i, address in enumerate(addresses, 1)
    )
    return (
        f"{top}\n{LISTENER}[[listener.route]]\nsni = {sni}\n"
        f'mode = "passthrough"\npool = "main"\n[pool.main]\n{pool}\n{backends}'
    )


def unix_toml(
    pki: Pki, paths: list[Path], user: str = "", pool: str = "", route: str = "", top: str = ""
) -> str:
    """A listener with one terminating route, and a pool of unix sockets."""
    user = user or str(os.getuid())
    backends = "".join(
        f'[[pool.main.backend]]\nroute = "b{i}"\naddress = "unix:{path}"\npeer_user = "{user}"\n'
        for i, path in enumerate(paths, 1)
    )
    return f"{top}\n{LISTENER}{route_toml(pki, extra=route)}\n[pool.main]\n{pool}\n{backends}"


class UnixDoor:
    """A backend on a unix socket. The test decides when it accepts."""

    def __init__(self, path: Path, backlog: int = 64) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(backlog)
        self.listener.settimeout(PATIENCE_S)
        self._accepted: list[socket.socket] = []

    def accept(self) -> socket.socket:
        """The relay's next connection."""
        sock, _ = self.listener.accept()
        sock.settimeout(PATIENCE_S)
        self._accepted.append(sock)
        return sock

    def close(self) -> None:
        """Stop listening, and close the connections."""
        self.listener.close()
        for sock in self._accepted:
            sock.close()


def hello(name: str = "app.example.com", alpn: Sequence[str] = ()) -> bytes:
    """A hello as the standard library's OpenSSL sends it."""
    outgoing = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(list(alpn))
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes."""
    data = bytearray()
    while len(data) < size:
        chunk = sock.recv(min(size - len(data), 1 << 20))
        assert chunk, f"the connection ended after {len(data)} of {size} bytes"
        data += chunk
    return bytes(data)


def end_of(sock: socket.socket) -> tuple[bytes, str]:
    """Everything until the end, and "fin" or "reset"."""
    data = bytearray()
    while True:
        try:
            chunk = sock.recv(1 << 16)
        except ConnectionResetError:
            return bytes(data), "reset"
        if not chunk:
            return bytes(data), "fin"
        data += chunk
