"""Listening sockets, one per address and slot, and non-blocking connects.

Every slot has its own SO_REUSEPORT socket for an address, so that the kernel spreads connections over workers. Socket options set on the
listening socket are inherited by what it accepts, which saves system calls per connection.

Never: reads or writes a byte of a connection, or resolves a name while a worker serves.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Any

import psutil

from relay.config.address import parse_address
from relay.errors import StartupError
from relay.files import check_creation

RESTART_OR_MOVE = "choose another port, or restart the relay"  # where our own process is in the way
_OR_FREEBIND = "; where it comes later, set freebind = true in the listener"
_UNIX_SOCKETS = {"relay.state_dir": "control socket", "admin.listen": "admin process's socket"}
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27  # asm-generic/socket.h; not in the socket module
_FILTER = struct.Struct("HBBI")  # struct sock_filter: code, jump if true, jump if false, constant
_NO_SYN = (
    (0x30, 0, 0, 13),  # BPF_LD | BPF_B | BPF_ABS: the flags
    (0x54, 0, 0, 0x12),  # BPF_ALU | BPF_AND: SYN and ACK of them
    (0x15, 0, 1, 0x02),  # BPF_JMP | BPF_JEQ: SYN alone
    (0x06, 0, 0, 0),  # BPF_RET: drop
    (0x06, 0, 0, 0xFFFFFFFF),  # BPF_RET: keep all of it
)
_FREEBIND = {  # linux/in.h, linux/in6.h; not in the socket module
    socket.AF_INET: (socket.IPPROTO_IP, 15),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 78),
}
BACKLOG = 4096  # the kernel cuts it down to net.core.somaxconn


def format_address(sockaddr: tuple[str, int] | tuple[str, int, int, int]) -> str:
    """`host:port`, with brackets around an IPv6 host."""
    host, port = sockaddr[0], sockaddr[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bound_address(listener: socket.socket) -> str:
    """The address a socket is bound to, with the port the kernel chose; "unix:PATH" for a unix socket."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    return format_address(listener.getsockname())


def open_listeners(
    where: str,
    address: str,
    count: int,
    ours: frozenset[int] = frozenset(),
    *,
    freebind: bool = False,
) -> list[socket.socket]:
    """One listening socket per slot on the same address; for port 0 the first bind chooses and the rest follow.

    `where` names the listener in messages. `ours` are ports this process already listens on: on those the test for strangers is left out.
    Raises StartupError; then nothing stays open.
    """
    host, port = parse_address(address)
    if port and port not in ours:
        _refuse_strangers(where, host, port, freebind=freebind)
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
    """One more SO_REUSEPORT socket, non-blocking, for an address that has others. It gets no clients before `begin_to_listen`. Raises StartupError."""
    return _bind(where, host, port, shared=True, freebind=freebind)


def begin_to_listen(listener: socket.socket) -> None:
    """From now on the kernel gives the socket its share of the clients. Raises OSError."""
    listener.listen(BACKLOG)


def open_single_listener(where: str, address: str, *, freebind: bool = False) -> socket.socket:
    """A listening socket that nobody can share, for the admin process; "unix:PATH" is for its owner and group. Raises StartupError."""
    if address.startswith("unix:"):
        return open_unix(where, Path(address.removeprefix("unix:")), 0o117)
    return _listen(where, *parse_address(address), shared=False, freebind=freebind)


def admit_no_more(listener: socket.socket) -> None:
    """Drop the SYNs for a listening socket; handshakes that have begun go on. Whoever is not let in asks again a second later (RFC 6298, 2.1).

    A classic BPF program (bpf(4)) that sees segments from the TCP header on: byte 13 has the flags, of which SYN without ACK opens a connection.
    Raises OSError where the kernel does not take it.
    """
    program = ctypes.create_string_buffer(b"".join(_FILTER.pack(*step) for step in _NO_SYN))
    listener.setsockopt(
        socket.SOL_SOCKET,
        _SO_ATTACH_FILTER,
        struct.pack("HP", len(_NO_SYN), ctypes.addressof(program)),
    )


def admit_again(listener: socket.socket) -> None:
    """Undo `admit_no_more`. Raises OSError where nothing was done."""
    listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def _refuse_strangers(where: str, host: str, port: int, *, freebind: bool) -> None:
    # SO_REUSEPORT lets every process of our user join in, and the kernel would give it half of our clients without a word:
    # so first bind without it, which fails when anybody listens there.
    _listen(where, host, port, shared=False, freebind=freebind).close()


def _listen(where: str, host: str, port: int, *, shared: bool, freebind: bool) -> socket.socket:
    listener = _bind(where, host, port, shared=shared, freebind=freebind)
    try:
        begin_to_listen(listener)
    except OSError as error:
        listener.close()
        raise _startup_error(where, host, port, error) from None
    return listener


def _bind(where: str, host: str, port: int, *, shared: bool, freebind: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _startup_error(where, host, port, error) from None
    try:
        listener.setblocking(False)
        listener.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # connections of an earlier relay may still be in TIME_WAIT
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(
                socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1
            )  # [::] and 0.0.0.0 are two lines of the configuration
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if freebind:
            listener.setsockopt(*_FREEBIND[family], 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise _startup_error(where, host, port, error) from None
    return listener


def _startup_error(where: str, host: str, port: int, error: OSError) -> StartupError:
    what = f"{where}: cannot listen on {format_address((host, port))}: {error.strerror or error}"
    if isinstance(error, socket.gaierror):
        return StartupError(what, "correct the name, or write the IP address")
    if error.errno == errno.EADDRINUSE:
        owners = _owners(port)
        strangers = [each for each in owners if not _is_ours(each)]
        if owners and not strangers:
            return StartupError(f"{what} (by this relay itself)", RESTART_OR_MOVE)
        return StartupError(
            f"{what} ({_who_listens(strangers)})", "stop it, or choose another address"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return StartupError(
            what,
            "a port below 1024 needs CAP_NET_BIND_SERVICE: start with systemd/relay.service, or as root with [relay] user set, or choose a higher port",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return StartupError(
            what,
            f"no interface of this machine has this address; see: ip address{_OR_FREEBIND if where.startswith('listener') else ''}",
        )
    if error.errno == errno.EAFNOSUPPORT:
        return StartupError(what, "this kernel has no IPv6; remove the address")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return StartupError(
            what, "raise the limit of open files (LimitNOFILE= in systemd, ulimit -n in a shell)"
        )
    return StartupError(what, "see the address in the configuration, and the system's log")


def _owners(port: int) -> list[psutil.Process]:
    """The processes that listen on the port, as far as we may know them."""
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


def _is_ours(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return os.getpid() in (process.pid, process.ppid())
    return False


def _who_listens(owners: list[psutil.Process]) -> str:
    names = []
    for each in owners:
        with contextlib.suppress(psutil.Error):
            names.append(f"{each.name()}, pid {each.pid}")
    return (
        "by " + " and ".join(names)
        if names
        else "by a process that this user may not look into: one of another user or network namespace, or another relay; ss -ltnp as root tells which"
    )


def open_control(path: Path) -> socket.socket:
    """The control socket of a state_dir whose lock is ours, for the supervisor's own user only. Raises StartupError."""
    return open_unix("relay.state_dir", path, 0o177)


def open_unix(where: str, path: Path, umask: int) -> socket.socket:
    """A listening unix socket; replaces a dead one. Raises StartupError."""
    refuse_long_path(where, path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        with contextlib.suppress(FileNotFoundError):
            _refuse_what_is_there(where, path)
            path.unlink()
        before = os.umask(
            umask
        )  # a socket has its mode from birth: no instant in which others may connect
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise _unix_error(where, path, error) from None
    except StartupError:
        listener.close()
        raise
    return listener


def check_unix(where: str, path: Path) -> None:
    """Whether `open_unix` would do; nothing is made and nothing removed. Raises StartupError."""
    refuse_long_path(where, path)
    try:
        check_creation(path.parent)
        with contextlib.suppress(FileNotFoundError):
            _refuse_what_is_there(where, path)
    except OSError as error:
        raise _unix_error(where, path, error) from None


def refuse_long_path(where: str, path: Path) -> None:
    """The kernel has 108 bytes for a unix socket's path and the zero behind it. Raises StartupError."""
    length = len(os.fsencode(path))
    if length > 107:
        raise StartupError(
            f"{path}: the path of the {_UNIX_SOCKETS[where]} is {length} bytes long and the kernel takes 107",
            f"choose a shorter {where}",
        )


def _refuse_what_is_there(where: str, path: Path) -> None:
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise StartupError(
            f"{path}: something that is not a socket is in the way of the {_UNIX_SOCKETS[where]}",
            f"remove it, or choose another {where}",
        )
    if where != "relay.state_dir" and _answers(
        path
    ):  # the lock on state_dir is ours: nobody serves its socket any more
        raise StartupError(
            f"{path}: another process listens there", f"stop it, or choose another {where}"
        )


def _unix_error(where: str, path: Path, error: OSError) -> StartupError:
    what = f"{path}: cannot make the {_UNIX_SOCKETS[where]}"
    if isinstance(error, FileNotFoundError):
        return StartupError(
            f"{what}: the directory {path.parent} does not exist",
            f"create it, or choose another {where}",
        )
    if isinstance(error, NotADirectoryError):
        return StartupError(f"{what}: {path.parent} is not a directory", f"choose another {where}")
    return StartupError(f"{what}: {error.strerror or error}", f"see the permissions of {where}")


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(str(path)) in (0, errno.EAGAIN)


# What `socket.socket` is made of. Its own `accept` and constructor make a Python object and two enumeration members more: 6 µs per connection.
StreamSocket = socket.SocketType
Address = tuple[Any, ...]  # host, port, and for IPv6 two more


def accept(listener: socket.socket, family: int) -> tuple[StreamSocket, Address]:
    """One connection from the queue, non-blocking, with TCP_NODELAY and SO_KEEPALIVE from the listening socket. Raises OSError, BlockingIOError for none."""
    fd, address = listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001
    connection = StreamSocket(family, socket.SOCK_STREAM, 0, fd)
    connection.setblocking(False)
    return connection, address


def start_connect(family: int, address: Address) -> StreamSocket:
    """A non-blocking TCP socket that is connected or connecting to a resolved address. Raises OSError when the kernel refuses at once."""
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


def close_all(opened: list[socket.socket]) -> None:
    """Close them, whatever happens."""
    for one in opened:
        one.close()
