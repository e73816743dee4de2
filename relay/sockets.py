"""Addresses, accepting and connecting: what every process needs of sockets.

The listening sockets themselves are bound in `relay.supervisor.listening`.

Never: reads or writes a byte of a connection, or resolves a name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Mapping
from typing import Any

from relay.core.address_set import UNIX
from relay.tcp_options import SocketOptions

# The C class below `socket.socket`. `accept` and the constructor of `socket.socket`
# make one Python object and two enum members more: 6 µs per connection.
StreamSocket = socket.SocketType
Address = tuple[Any, ...]  # host, port, and for IPv6 two more
_WILDCARDS = frozenset(("0.0.0.0", "::", "::ffff:0.0.0.0"))  # noqa: S104 (compared only)
_CLOSE_WAIT = 8  # TCP_CLOSE_WAIT of linux/tcp.h: the first byte of TCP_INFO
_BIND_ADDRESS_NO_PORT = 24  # IP_BIND_ADDRESS_NO_PORT of linux/in.h


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


def accept_unix(listener: socket.socket, family: int) -> tuple[StreamSocket, Address]:
    """The same for a unix socket. Its peers have no address."""
    connection, _ = accept(listener, family)
    return connection, (UNIX, 0)


def has_closed(sock: StreamSocket) -> bool:
    """Whether the peer has closed, although its bytes are still to be read."""
    if sock.family != socket.AF_UNIX:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _CLOSE_WAIT
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def cork(sock: StreamSocket, on: int) -> None:
    """With 1, let TCP keep what is not a full segment; 0 sends it. TCP only."""
    with contextlib.suppress(OSError):  # a unix socket has no such option
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, on)


class SourceError(OSError):
    """The address to connect from cannot be used."""


def start_connect(
    family: int,
    address: Address | str,
    options: SocketOptions = (),
    sources: Mapping[int, Address] | None = None,
) -> StreamSocket:
    """Start a non-blocking connect to an IP address, or to the path of a unix socket.

    `sources` has the address to connect from, by family; the kernel chooses for a
    family that is not there. A unix socket is connected when this returns, and has none
    of the options, which are those of TCP. Raises OSError when the kernel refuses it at
    once, for a unix socket also if the queue of its listener is full.
    """
    if family == socket.AF_UNIX:
        return _connect_unix(str(address))
    outbound = StreamSocket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0)
    try:
        outbound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in options:
            outbound.setsockopt(*option)
        if sources and family in sources:
            bind_source(outbound, sources[family])
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


def only_address(listeners: list[socket.socket]) -> tuple[str, int] | None:
    """Where all clients of these sockets connect to, if that is one address."""
    if len(listeners) != 1 or listeners[0].family == socket.AF_UNIX:
        return None
    host, port = listeners[0].getsockname()[:2]
    return (host, port) if port and host not in _WILDCARDS else None


def inode_of(sock: socket.socket) -> int:
    """Which socket it is, in every process that shares it."""
    return os.fstat(sock.fileno()).st_ino


def bind_source(sock: StreamSocket, source: Address) -> None:
    """Let this socket connect from this address. Raises SourceError.

    The port is chosen by the connect, which knows the other end. A bind would reserve
    it for all other ends, and ports would run out at 28,000 connections.
    """
    try:
        sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
        sock.bind(source)
    except OSError as error:
        why = f"cannot connect from {source[0]}: {error.strerror or error}"
        raise SourceError(error.errno or 0, why) from None
