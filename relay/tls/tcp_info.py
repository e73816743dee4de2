"""How many bytes a peer sent, and how many of them were read, by the kernel's count.

Never: reads a byte.
"""

from __future__ import annotations

import fcntl
import socket
import sys
import termios
from typing import Final, Protocol

# Up to this many bytes the unread ones are not subtracted, which saves one system call.
FEW_BYTES: Final = 8_192
_RECEIVED_AT: Final = 128  # tcpi_bytes_received of struct tcp_info
_LAST_ACK_AT: Final = 56  # tcpi_last_ack_recv, in milliseconds
_TRIES = 4
_unread = bytearray(4)


class Peer(Protocol):
    """One end of a session, as far as its socket is concerned."""

    sock: socket.SocketType
    fd: int


def unread_bytes(fd: int) -> int:
    """The number of bytes that can be read now (tcp(7), FIONREAD)."""
    fcntl.ioctl(fd, termios.FIONREAD, _unread, True)
    return int.from_bytes(_unread, sys.byteorder)


def silent_s(sock: socket.SocketType) -> float:
    """For how long the peer's machine has acknowledged nothing; 0 if it is not TCP."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_ACK_AT + 4)
    except OSError:
        return 0.0
    return int.from_bytes(info[_LAST_ACK_AT:], sys.byteorder) / 1_000


def _received(end: Peer) -> int:
    """How many bytes the kernel has received from this peer; 0 if it cannot tell."""
    try:
        info = end.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED_AT + 8)
    except OSError:
        return 0  # not TCP
    return int.from_bytes(info[_RECEIVED_AT:], sys.byteorder)


def bytes_read(end: Peer) -> int:
    """How many bytes of this peer have been read from the socket.

    Up to FEW_BYTES, unread bytes are counted as well.
    """
    received = _received(end)
    return received if received <= FEW_BYTES else received - unread_bytes(end.fd)


def bytes_read_exactly(end: Peer) -> int | None:
    """How many bytes have been read, exactly.

    None if more bytes keep arriving while they are counted.
    """
    received = _received(end)
    for _ in range(_TRIES):
        before, unread = received, unread_bytes(end.fd)
        received = _received(end)
        if received == before:
            return received - unread if received else 0
    return None
