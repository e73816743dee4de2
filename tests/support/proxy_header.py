"""Reads PROXY headers as a server behind the relay does, byte by byte from a socket.

It shares no code with the relay.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from tests.support.backend import PATIENCE_S, TlsBackend

V2 = b"\r\n\r\n\0\r\nQUIT\n"
NAMES = {
    0x01: "alpn", 0x02: "authority", 0x03: "crc32c", 0x05: "unique_id", 0x20: "ssl",
    0x21: "version", 0x22: "cn", 0x23: "cipher", 0x24: "sig_alg", 0x25: "key_alg",
    0x26: "group", 0x27: "sig_scheme", 0x28: "certificate",
}  # fmt: skip


@dataclass
class ProxyHeader:
    """`tlvs` by name; those inside the SSL TLV are in `ssl`."""

    raw: bytes
    command: str
    family: str
    source: tuple[str, int] | None = None
    destination: tuple[str, int] | None = None
    tlvs: dict[str, bytes] = field(default_factory=dict)
    ssl: dict[str, bytes] = field(default_factory=dict)
    client: int | None = None
    verify: int | None = None


def receive_header(sock: socket.socket) -> ProxyHeader:
    """The header that is the next thing in this socket, and not a byte more."""
    return read_header(lambda size: _exactly(sock, size))


def read_header(read: Callable[[int], bytes]) -> ProxyHeader:
    """The header that `read` (exactly that many bytes) gives."""
    start = read(12)
    if start == V2:
        return _version_2(read)
    line = start
    while not line.endswith(b"\r\n"):
        assert len(line) < 107, line
        line += read(1)
    words = line[:-2].decode("ascii").split(" ")
    assert words[0] == "PROXY", line
    if words[1] == "UNKNOWN":
        return ProxyHeader(line, "PROXY", "UNKNOWN")
    _, family, source, destination, source_port, destination_port = words
    wanted = {"TCP4": 4, "TCP6": 6}[family]
    assert ip_address(source).version == ip_address(destination).version == wanted
    return ProxyHeader(
        line, "PROXY", family, (source, int(source_port)), (destination, int(destination_port))
    )


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        assert more, f"the connection ended after {data!r}"
        data += more
    return data


def _version_2(read: Callable[[int], bytes]) -> ProxyHeader:
    head = read(4)
    version_command, family, length = struct.unpack(">BBH", head)
    assert version_command >> 4 == 2
    rest = read(length)
    raw = V2 + head + rest
    command = {0: "LOCAL", 1: "PROXY"}[version_command & 15]
    if family == 0:
        header = ProxyHeader(raw, command, "UNSPEC")
    else:
        size = {0x11: 4, 0x21: 16}[family]
        ports = struct.unpack_from(">HH", rest, 2 * size)
        source, destination = rest[:size], rest[size : 2 * size]
        header = ProxyHeader(
            raw,
            command,
            {0x11: "TCP4", 0x21: "TCP6"}[family],
            (str(ip_address(source)), ports[0]),
            (str(ip_address(destination)), ports[1]),
        )
        rest = rest[2 * size + 4 :]
    header.tlvs = _tlvs(rest)
    if "ssl" in header.tlvs:
        header.client, header.verify = struct.unpack_from(">BI", header.tlvs["ssl"])
        header.ssl = _tlvs(header.tlvs["ssl"][5:])
    return header


def _tlvs(data: bytes) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    while data:
        kind, length = struct.unpack_from(">BH", data)
        assert len(data) >= 3 + length
        assert NAMES[kind] not in found
        found[NAMES[kind]] = data[3 : 3 + length]
        data = data[3 + length :]
    return found


class HeaderBackend(TlsBackend):
    """A TLS backend that reads a PROXY header before each handshake."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.headers: list[ProxyHeader] = []
        super().__init__(*arguments, **settings)

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE_S)
        try:
            self.headers.append(receive_header(sock))
        except (OSError, AssertionError) as error:
            self.errors.append(str(error))
            sock.close()
            return
        super()._serve(sock)
