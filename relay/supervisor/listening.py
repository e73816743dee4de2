"""Binds the listening TCP sockets: one per address and slot, all with SO_REUSEPORT.

The kernel spreads new connections over the sockets of one address, and so over the
workers. Options set here are inherited by every accepted connection, which saves system
calls per connection.

Never: accepts a connection, or resolves a name after the start.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
from pathlib import Path

import psutil

from relay.config.address import parse_address
from relay.errors import StartupError
from relay.sockets import format_address
from relay.supervisor.unix_sockets import open_unix

BACKLOG = 4096  # the kernel reduces it to net.core.somaxconn
# The remedy where another socket of this relay is in the way.
RESTART_OR_MOVE = "choose another port, or restart the relay"
# Not in the socket module: asm-generic/socket.h, linux/in.h, linux/in6.h.
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_FREEBIND = {
    socket.AF_INET: (socket.IPPROTO_IP, 15),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 78),
}
_FILTER = struct.Struct("HBBI")  # struct sock_filter: code, jump if true, jump if false, constant
_DROP_SYN = (
    (0x30, 0, 0, 13),  # BPF_LD | BPF_B | BPF_ABS: load the flags, byte 13 of the TCP header
    (0x54, 0, 0, 0x12),  # BPF_ALU | BPF_AND: keep SYN and ACK
    (0x15, 0, 1, 0x02),  # BPF_JMP | BPF_JEQ: SYN without ACK opens a connection
    (0x06, 0, 0, 0),  # BPF_RET: drop the segment
    (0x06, 0, 0, 0xFFFFFFFF),  # BPF_RET: accept all of it
)


def bound_address(listener: socket.socket) -> str:
    """The address a socket is bound to, with the port the kernel chose.

    A unix socket has "unix:PATH".
    """
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    return format_address(listener.getsockname())


def open_listeners(
    where: str,
    address: str,
    count: int,
    own_ports: frozenset[int] = frozenset(),
    *,
    freebind: bool = False,
) -> list[socket.socket]:
    """One listening socket per slot, all on the same address.

    With port 0 the kernel chooses a port for the first socket; the others use the same.
    `where` names the listener in messages. `own_ports` are ports on which this process
    listens already: on those it does not look for other processes.
    Raises StartupError; then every socket is closed again.
    """
    host, port = parse_address(address)
    if port and port not in own_ports:
        _refuse_shared_port(where, host, port, freebind=freebind)
    opened: list[socket.socket] = []
    try:
        for _ in range(count):
            opened.append(_listen(where, host, port, shared=True, freebind=freebind))
            port = opened[0].getsockname()[1]
    except StartupError:
        close_all(opened)
        raise
    return opened


def open_listener(where: str, host: str, port: int, *, freebind: bool = False) -> socket.socket:
    """One more SO_REUSEPORT socket for an address that has others already.

    It gets no clients before `begin_to_listen`. Raises StartupError.
    """
    return _bind(where, host, port, shared=True, freebind=freebind)


def begin_to_listen(listener: socket.socket) -> None:
    """Let the kernel give the socket its share of the clients. Raises OSError."""
    listener.listen(BACKLOG)


def open_single_listener(where: str, address: str, *, freebind: bool = False) -> socket.socket:
    """A listening socket without SO_REUSEPORT, for the admin process.

    "unix:PATH" makes a unix socket for its owner and group. Raises StartupError.
    """
    if address.startswith("unix:"):
        return open_unix(where, Path(address.removeprefix("unix:")), 0o117)
    return _listen(where, *parse_address(address), shared=False, freebind=freebind)


def drop_new_connections(listener: socket.socket) -> None:
    """Drop every SYN for a listening socket; half-open connections go on.

    A client whose SYN is dropped sends it again one second later (RFC 6298, section
    2.1). A classic BPF program (bpf(4)) does it; it sees segments from the TCP header
    on.
    Raises OSError when the kernel does not accept the program.
    """
    program = ctypes.create_string_buffer(b"".join(_FILTER.pack(*step) for step in _DROP_SYN))
    listener.setsockopt(
        socket.SOL_SOCKET,
        _SO_ATTACH_FILTER,
        struct.pack("HP", len(_DROP_SYN), ctypes.addressof(program)),
    )


def take_new_connections(listener: socket.socket) -> None:
    """Undo `drop_new_connections`. Raises OSError if the socket has no program."""
    listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def prepare_passed(listener: socket.socket) -> None:
    """Give a socket that another process has opened the options of the relay's own."""
    with contextlib.suppress(OSError):  # the process may have been killed in a reload
        take_new_connections(listener)
    if listener.family != socket.AF_UNIX:
        set_options(listener)


def set_options(listener: socket.socket) -> None:
    """Set the options that accepted connections inherit. Raises OSError."""
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def close_all(opened: list[socket.socket]) -> None:
    """Close the sockets."""
    for one in opened:
        one.close()


def _refuse_shared_port(where: str, host: str, port: int, *, freebind: bool) -> None:
    """Refuse a port on which another process listens.

    Every process of the same user may join a port with SO_REUSEPORT. The kernel would
    then give that process half of the clients, without an error. Binding without
    SO_REUSEPORT fails when any process listens.
    """
    _listen(where, host, port, shared=False, freebind=freebind).close()


def _listen(where: str, host: str, port: int, *, shared: bool, freebind: bool) -> socket.socket:
    listener = _bind(where, host, port, shared=shared, freebind=freebind)
    try:
        begin_to_listen(listener)
    except OSError as error:
        listener.close()
        raise _cannot_listen(where, host, port, error) from None
    return listener


def _bind(where: str, host: str, port: int, *, shared: bool, freebind: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _cannot_listen(where, host, port, error) from None
    try:
        listener.setblocking(False)
        # Connections of an earlier relay may still be in TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # The configuration names [::] and 0.0.0.0 separately.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        set_options(listener)
        if freebind:
            listener.setsockopt(*_FREEBIND[family], 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise _cannot_listen(where, host, port, error) from None
    return listener


def _cannot_listen(where: str, host: str, port: int, error: OSError) -> StartupError:
    what = f"{where}: cannot listen on {format_address((host, port))}: {error.strerror or error}"
    if isinstance(error, socket.gaierror):
        return StartupError(what, "correct the name, or write the IP address")
    if error.errno == errno.EADDRINUSE:
        owners = _owners(port)
        others = [each for each in owners if not _is_own(each)]
        if owners and not others:
            return StartupError(f"{what} (by this relay itself)", RESTART_OR_MOVE)
        return StartupError(
            f"{what} ({_who_listens(others)})", "stop it, or choose another address"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = (
            "a port below 1024 needs CAP_NET_BIND_SERVICE: start with systemd/relay.service,"
            " or as root with [relay] user set, or choose a higher port"
        )
        return StartupError(what, remedy)
    if error.errno == errno.EADDRNOTAVAIL:
        remedy = "no interface of this machine has this address; see: ip address"
        if where.startswith("listener"):
            remedy += "; if it comes later, set freebind = true in the listener"
        return StartupError(what, remedy)
    if error.errno == errno.EAFNOSUPPORT:
        return StartupError(what, "this kernel has no IPv6; remove the address")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        remedy = "raise the limit of open files (LimitNOFILE= in systemd, ulimit -n in a shell)"
        return StartupError(what, remedy)
    return StartupError(what, "check the address in the configuration, and the system's log")


def _owners(port: int) -> list[psutil.Process]:
    """The processes that listen on the port, as far as this user may see them."""
    try:
        pids = {
            c.pid
            for c in psutil.net_connections(kind="tcp")
            if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port
        }
    except (psutil.Error, OSError):
        pids = set()
    found = []
    for pid in sorted(pid for pid in pids if pid):
        with contextlib.suppress(psutil.Error):
            found.append(psutil.Process(pid))
    return found


def _is_own(process: psutil.Process) -> bool:
    """Whether it is this process or one of its children."""
    with contextlib.suppress(psutil.Error):
        return os.getpid() in (process.pid, process.ppid())
    return False


def _who_listens(owners: list[psutil.Process]) -> str:
    names = []
    for each in owners:
        with contextlib.suppress(psutil.Error):
            names.append(f"{each.name()}, pid {each.pid}")
    if names:
        return "by " + " and ".join(names)
    return (
        "by a process that this user cannot see: of another user, of another network namespace,"
        " or of another relay; run ss -ltnp as root to find it"
    )
