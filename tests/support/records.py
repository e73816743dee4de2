"""A TLS 1.3 client that writes its records by hand.

It sends key updates, alerts and empty records in any number, as no TLS library does.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from tests.support.peer import PATIENCE_S, Peer, dial

STUCK_S = 1
HANDSHAKE, DATA = 22, 23
KEY_UPDATE = bytes((24, 0, 0, 1, 0))
KEY_UPDATE_PLEASE = bytes((24, 0, 0, 1, 1))  # the other side has to answer with one of its own


def expand(secret: bytes, label: str, size: int) -> bytes:
    """HKDF-Expand-Label with an empty context (RFC 8446, section 7.1)."""
    name = b"tls13 " + label.encode()
    return HKDFExpand(
        hashes.SHA256(), size, size.to_bytes(2, "big") + bytes((len(name),)) + name + b"\0"
    ).derive(secret)


class RecordWriter:
    """A connected client that encrypts its records itself.

    Its TLS library does the handshake and the receiving only.
    """

    def __init__(
        self,
        port: int,
        context: ssl.SSLContext,
        key_log: Path,
        name: str = "app.example.com",
        before_finished: Callable[[], object] | None = None,
    ) -> None:
        """`before_finished` is called before the client's last flight is sent.

        The server's flight has arrived by then.
        """
        context.keylog_filename = str(key_log)
        self.peer: Peer = dial(port, context, name, hello_only=before_finished is not None)
        if before_finished is not None:
            assert select.select([self.peer.sock], [], [], PATIENCE_S)[0]
            before_finished()
            self.peer.handshake()
        assert self.peer.tls.cipher()[0] == "TLS_AES_128_GCM_SHA256"
        secrets = dict(
            line.split()[::2]
            for line in key_log.read_text().splitlines()
            if not line.startswith("#")
        )
        self._take(bytes.fromhex(secrets["CLIENT_TRAFFIC_SECRET_0"]))

    def _take(self, secret: bytes) -> None:
        self._secret = secret
        self._cipher = AESGCM(expand(secret, "key", 16))
        self._nonce = int.from_bytes(expand(secret, "iv", 12), "big")
        self._sequence = 0

    def record(self, kind: int, content: bytes) -> bytes:
        """The next record, encrypted (RFC 8446, section 5.2).

        A key update changes the key for the records after it.
        """
        inner = content + bytes((kind,))
        header = bytes((DATA, 3, 3)) + (len(inner) + 16).to_bytes(2, "big")
        sealed = header + self._cipher.encrypt(
            (self._nonce ^ self._sequence).to_bytes(12, "big"), inner, header
        )
        self._sequence += 1
        if kind == HANDSHAKE and content[:1] == b"\x18":
            self._take(expand(self._secret, "traffic upd", 32))
        return sealed

    def send(self, *records: bytes) -> None:
        """Write records without reading."""
        self.peer.sock.sendall(b"".join(records))

    def send_until_stuck(self, records: bytes) -> int:
        """Write until the other side has taken nothing for STUCK_S.

        Returns how many bytes it took.
        """
        sent = 0
        self.peer.sock.settimeout(STUCK_S)
        with contextlib.suppress(TimeoutError):
            while sent < len(records):
                sent += self.peer.sock.send(memoryview(records)[sent:])
        return sent

    @property
    def sock(self) -> socket.socket:
        """Its socket."""
        return self.peer.sock
