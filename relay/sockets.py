"""Addresses, accepting and connecting: what every process needs of sockets.

The listening sockets themselves are bound in `relay.supervisor.listening`.

Never: reads or writes a byte of a connection, or resolves a name.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

# The C class below `socket.socket`. `accept` and the constructor of `socket.socket`
# make one Python object and two enum members more: 6 µs per connection.
StreamSocket = socket.SocketType
Address = tuple[Any, ...]  # host, port, and for IPv6 two more


def format_address(sockaddr: tuple[str, int] | tuple[str, int, int, int]) -> str:
    """`host:port`, with brackets around an IPv6 host."""
    host, port = sockaddr[0], sockaddr[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def accept(listener: socket.socket, family: int) -> tuple[StreamSocket, Address]:
    """Take one connection from the queue; it is non-blocking.

    It inherits TCP_NODELAY and SO_KEEPALIVE from the listening socket.
    Raises BlockingIOError when the queue is empty, and other OSErrors.
    """
    fd, address = listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001
    connection = StreamSocket(family, socket.SOCK_STREAM, 0, fd)
    connection.setblocking(False)
    return connection, address


def start_connect(family: int, address: Address) -> StreamSocket:
    """Start a non-blocking TCP connect to an IP address.

    Raises OSError when the kernel refuses it at once.
    """
    outbound = StreamSocket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0)
    try:
        outbound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        outbound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        code = outbound.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
    except BaseException:
        outbound.close()
        raise
    return outbound
