"""Backends of a few protocols above TLS.

Each implements just enough to notice a missing byte.
"""

from __future__ import annotations

import base64
import hashlib
import ssl
import struct

from tests.support.backend import Serve

WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


def read_exactly(connection: ssl.SSLSocket, size: int) -> bytes:
    """Read exactly `size` bytes. Raises EOFError when fewer come."""
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise EOFError(f"{len(data)} of {size} bytes came")
        data += more
    return data


def read_head(connection: ssl.SSLSocket) -> bytes:
    """An HTTP head with its empty line; b"" at the end of the connection."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        more = connection.recv(1)
        if not more:
            return b""
        head += more
    return head


def http(name: str) -> Serve:
    """HTTP/1.1 with keep-alive.

    Every answer has the backend's name, the path and the request's number in its
    connection.
    """

    def serve(connection: ssl.SSLSocket) -> None:
        number = 0
        while head := read_head(connection):
            number += 1
            body = f"{name} {head.split()[1].decode()} request {number}\n".encode()
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            )

    return serve


def accept_key(key: bytes) -> bytes:
    """Sec-WebSocket-Accept for a Sec-WebSocket-Key (RFC 6455, 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + WEBSOCKET_GUID, usedforsecurity=False).digest())


def frame(opcode: int, payload: bytes, mask: bytes = b"") -> bytes:
    """One whole WebSocket frame (RFC 6455, 5.2); clients mask."""
    flag = 0x80 if mask else 0
    size = len(payload)
    head = (
        struct.pack("!BB", 0x80 | opcode, flag | size)
        if size < 126
        else struct.pack("!BBH", 0x80 | opcode, flag | 126, size)
    )
    return (
        head
        + mask
        + (bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)) if mask else payload)
    )


def read_frame(connection: ssl.SSLSocket) -> tuple[int, bytes]:
    """Opcode and unmasked payload, of at most 65,535 bytes."""
    first, second = read_exactly(connection, 2)
    size = second & 0x7F
    if size == 126:
        (size,) = struct.unpack("!H", read_exactly(connection, 2))
    mask = read_exactly(connection, 4) if second & 0x80 else b"\0\0\0\0"
    return first & 0x0F, bytes(
        byte ^ mask[at % 4] for at, byte in enumerate(read_exactly(connection, size))
    )


def websocket(connection: ssl.SSLSocket) -> None:
    """Upgrade, then echo text frames until a close frame."""
    head = read_head(connection)
    key = next(
        line.split(b":", 1)[1].strip()
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"sec-websocket-key")
    )
    connection.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Accept: " + accept_key(key) + b"\r\n\r\n"
    )
    while True:
        opcode, payload = read_frame(connection)
        connection.sendall(frame(opcode, payload))
        if opcode == 8:
            return


def redis(connection: ssl.SSLSocket) -> None:
    """Answer inline PING, SET and GET, also when several come in one write."""
    store: dict[bytes, bytes] = {}
    lines = b""
    while data := connection.recv(65536):
        lines += data
        while b"\r\n" in lines:
            line, _, lines = lines.partition(b"\r\n")
            words = line.split()
            if words[0] == b"SET":
                store[words[1]] = words[2]
            connection.sendall(
                {b"PING": b"+PONG\r\n", b"SET": b"+OK\r\n"}.get(words[0])
                or b"$%d\r\n%s\r\n" % (len(store[words[1]]), store[words[1]])
            )


def postgresql(connection: ssl.SSLSocket) -> None:
    """Answer the startup message, then echo messages until Terminate.

    The answer says that no password is needed and that the server is ready. The server
    sends nothing before it.
    """
    (size,) = struct.unpack("!I", read_exactly(connection, 4))
    read_exactly(connection, size - 4)
    connection.sendall(b"R" + struct.pack("!II", 8, 0) + b"Z" + struct.pack("!I", 5) + b"I")
    while (kind := read_exactly(connection, 1)) != b"X":
        (size,) = struct.unpack("!I", read_exactly(connection, 4))
        connection.sendall(kind + struct.pack("!I", size) + read_exactly(connection, size - 4))
    connection.unwrap()


def greeting(connection: ssl.SSLSocket) -> None:
    """Speak first, as mail servers do, then answer one line."""
    connection.sendall(b"220 ready\r\n")
    line = connection.recv(1000)
    connection.sendall(b"250 " + line)
