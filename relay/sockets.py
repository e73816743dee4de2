"""Addresses, accepting and connecting: what every process needs of sockets.

The listening sockets themselves are bound in `relay.supervisor.listening`.

Never: reads or writes a byte of a connection, or resolves a name.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from typing import Any

from relay.tcp_options import SocketOptions

# The C class below `socket.socket`. `accept` and the constructor of `socket.socket`
# make one Python object and two enum members more: 6 µs per connection.
StreamSocket = socket.SocketType
Address = tuple[Any, ...]  # host, port, and for IPv6 two more
_CLOSE_WAIT = 8  # TCP_CLOSE_WAIT of linux/tcp.h: the first byte of TCP_INFO


def format_address(sockaddr: tuple[str, int] | tuple[str, int, int, int] | str) -> str:
    """`host:port`, with brackets around an IPv6 host; unix:PATH for a path."""
    if isinstance(sockaddr, str):
        return f"unix:{sockaddr}"
    host, port = sockaddr[0], sockaddr[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def accept(listener: socket.socket, family: int) -> tuple[StreamSocket, Address]:
    """Take one connection from the queue; it is non-blocking.

    It inherits TCP_NODELAY and `relay.tcp_options` from the listening socket.
    Raises BlockingIOError when the queue is empty, and other OSErrors.
    """
    fd, address = listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001
    connection = StreamSocket(family, socket.SOCK_STREAM, 0, fd)
    connection.setblocking(False)
    return connection, address


def has_closed(sock: StreamSocket) -> bool:
    """Whether the peer has closed, although its bytes are still to be read."""
    if sock.family != socket.AF_UNIX:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _CLOSE_WAIT
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def start_connect(family: int, address: Address | str, options: SocketOptions = ()) -> StreamSocket:
    """Start a non-blocking connect to an IP address, or to the path of a unix socket.

    A unix socket is connected when this returns, and has none of the options, which are
    those of TCP. Raises OSError when the kernel refuses it at once, for a unix socket
    also if the queue of its listener is full.
    """
    if family == socket.AF_UNIX:
        return _connect_unix(str(address))
    outbound = StreamSocket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0)
    try:
        outbound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in options:
            outbound.setsockopt(*option)
        code = outbound.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
    except BaseException:
        outbound.close()
        raise
    return outbound


def _connect_unix(path: str) -> StreamSocket:
    outbound = StreamSocket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0)
    try:
        outbound.connect(path)
    except BaseException:
        outbound.close()
        raise
    return outbound


def peer_uid(sock: StreamSocket) -> int:
    """The user of the process that listened on the other end of a unix socket.

    Linux takes it when that process calls listen(2): see SO_PEERCRED in unix(7).
    """
    _, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)


def inode_of(sock: socket.socket) -> int:
    """Which socket it is, in every process that shares it."""
    return os.fstat(sock.fileno()).st_ino
