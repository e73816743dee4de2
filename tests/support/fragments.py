"""Handshakes cut into tiny records.

TLS libraries do not send such records, but all of them accept them.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.support.records import expand

HANDSHAKE, DATA = 22, 23


def split_records(data: bytes) -> list[bytes]:
    """TLS records, one by one."""
    records, at = [], 0
    while at < len(data):
        end = at + 5 + int.from_bytes(data[at + 3 : at + 5], "big")
        records.append(data[at:end])
        at = end
    return records


def cut_plain(data: bytes, size: int) -> bytes:
    """A flight whose unencrypted records are cut into records of `size` bytes."""
    out, encrypted = [], False
    for record in split_records(data):
        encrypted = encrypted or record[0] != HANDSHAKE
        if encrypted:
            out.append(record)
            continue
        for at in range(5, len(record), size):
            piece = record[at : at + size]
            out.append(record[:3] + len(piece).to_bytes(2, "big") + piece)
    return b"".join(out)


class _Direction:
    """Keys of one TLS 1.3 direction with TLS_AES_128_GCM_SHA256 (RFC 8446, 5.2)."""

    def __init__(self, secret: bytes) -> None:
        self._cipher = AESGCM(expand(secret, "key", 16))
        self._nonce = int.from_bytes(expand(secret, "iv", 12), "big")
        self._sequence = 0

    def _next(self) -> bytes:
        self._sequence += 1
        return (self._nonce ^ (self._sequence - 1)).to_bytes(12, "big")

    def open(self, record: bytes) -> bytes:
        """The content of a record, without its type."""
        return self._cipher.decrypt(self._next(), record[5:], record[:5]).rstrip(b"\0")[:-1]

    def seal(self, content: bytes) -> bytes:
        """A record of the handshake."""
        header = bytes((DATA, 3, 3)) + (len(content) + 17).to_bytes(2, "big")
        return header + self._cipher.encrypt(self._next(), content + bytes((HANDSHAKE,)), header)


def cut_encrypted(data: bytes, size: int, secret: bytes) -> bytes:
    """A TLS 1.3 flight, its encrypted part cut into records of `size` bytes too.

    `secret` is the handshake traffic secret it was encrypted with.
    """
    records = split_records(data)
    plain = [each for each in records if each[0] != DATA]
    reader, writer = _Direction(secret), _Direction(secret)
    messages = b"".join(reader.open(each) for each in records if each[0] == DATA)
    return b"".join(plain) + b"".join(
        writer.seal(messages[at : at + size]) for at in range(0, len(messages), size)
    )


class FragmentingClient:
    """A client that has sent its hello and read the answer.

    `flight` is what it sends next.
    """

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, name: str, size: int, key_log: Path
    ) -> None:
        self.sock = sock
        self.received, self.sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        context.keylog_filename = str(key_log)
        self.tls = context.wrap_bio(self.received, self.sent, server_hostname=name)
        self._go_on()
        sock.sendall(self.sent.read())
        while not self.sent.pending:
            self.received.write(sock.recv(65536))
            self._go_on()
        flight = self.sent.read()
        self._old = context.maximum_version is ssl.TLSVersion.TLSv1_2
        if self._old:
            self.flight = cut_plain(flight, size)
        else:
            lines = [line.split() for line in key_log.read_text().splitlines()]
            secret = next(line[2] for line in lines if line[0] == "CLIENT_HANDSHAKE_TRAFFIC_SECRET")
            self.flight = cut_encrypted(flight, size, bytes.fromhex(secret))

    def _go_on(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()

    def exchange(self, data: bytes, size: int) -> bytes:
        """Send `data`, and read `size` bytes."""
        answer = b""
        while self._old and not self._is_done():
            self.received.write(self.sock.recv(65536))
        self.tls.write(data)
        self.sock.sendall(self.sent.read())
        while len(answer) < size:
            try:
                answer += self.tls.read(size)
            except ssl.SSLWantReadError:
                chunk = self.sock.recv(65536)
                assert chunk, "the connection has ended"
                self.received.write(chunk)
        return answer

    def _is_done(self) -> bool:
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True
