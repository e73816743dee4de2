"""Listening sockets that systemd passes to a start: see sd_listen_fds(3).

They come from two places. The file descriptor store has the sockets that an earlier
start of this service has put there (`relay.supervisor.fd_store`), so that a restart
loses no client. A socket unit has sockets of its own, named after the listener.

Never: uses a socket that is not exactly what the configuration asks for.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import socket
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass, field

from relay.config.address import parse_address
from relay.config.model import Config
from relay.errors import StartupError
from relay.supervisor.listen_addresses import ListenAddress, listen_addresses
from relay.supervisor.listening import bound_address, prepare_passed
from relay.supervisor.slot_sockets import SlotSockets

FIRST_FD = 3  # SD_LISTEN_FDS_START
STORED = "stored."  # the names of stored sockets begin with this
_VARIABLES = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
_REMEDY = "correct the .socket unit, or start without it"


@dataclass(slots=True)
class Passed:
    """The sockets that were passed: the stored ones, and those of a socket unit."""

    stored: dict[str, socket.socket] = field(default_factory=dict)
    activated: list[tuple[str, socket.socket]] = field(default_factory=list)

    def close(self, kept: Iterable[socket.socket] = ()) -> None:
        """Close the sockets that are not in use."""
        used = set(kept)
        for sock in [*self.stored.values(), *(sock for _, sock in self.activated)]:
            if sock not in used:
                sock.close()


def receive(environment: MutableMapping[str, str] = os.environ) -> Passed:
    """What was passed to this process. Children do not inherit the variables.

    Raises StartupError for a descriptor that is not a listening stream socket.
    """
    count, pid, names, *_ = [environment.pop(name, "") for name in _VARIABLES]
    passed = Passed()
    if pid != str(os.getpid()) or not count.isdecimal():
        return passed
    for number, name in enumerate((names.split(":") + [""] * int(count))[: int(count)]):
        fd = FIRST_FD + number
        if name.startswith(STORED):
            with contextlib.suppress(StartupError):  # it is bound again
                passed.stored[name] = _socket_of(fd, name)
        else:
            passed.activated.append((name, _socket_of(fd, name)))
    return passed


def _socket_of(fd: int, name: str) -> socket.socket:
    what = f'LISTEN_FDS: descriptor {fd}, "{name}",'
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
    except OSError as error:
        why = "is not open" if error.errno == errno.EBADF else "is not a socket"
        raise StartupError(f"{what} {why}", _REMEDY) from None
    if sock.type != socket.SOCK_STREAM:
        why = "is not a stream socket; use ListenStream="
    elif sock.family not in {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX}:
        why = "is neither a TCP nor a unix socket"
    elif not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        why = "does not listen; use Accept=no"
    else:
        sock.setblocking(False)
        return sock
    sock.close()
    raise StartupError(f"{what} {why}", _REMEDY)


def adopt(passed: Passed, config: Config) -> SlotSockets:
    """The passed sockets that this configuration asks for; the others are closed.

    Raises StartupError for a socket of a socket unit that no listener asks for.
    """
    addresses = listen_addresses(config)
    found: list[tuple[ListenAddress, int, socket.socket]] = []
    shared: set[str] = set()
    for name, sock in passed.activated:
        address = _wanted(name, sock, addresses)
        if sock.family == socket.AF_UNIX or not sock.getsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEPORT
        ):
            shared.add(address.key)
        slot = sum(1 for one, _, _ in found if one.key == address.key)
        found.append((address, slot, sock))
    taken = {(one.key, slot) for one, slot, _ in found}
    for name, sock in passed.stored.items():
        for address in addresses:
            stored = _slot_of(name, address, addresses)
            free = (address.key, stored) not in taken and address.key not in shared
            if stored is not None and free and _is_bound_to(sock, address):
                found.append((address, stored, sock))
                taken.add((address.key, stored))
                break
    kept = [sock for _, _, sock in found]
    for sock in kept:
        prepare_passed(sock)
    passed.close(kept)
    return SlotSockets.of(found, shared, [sock for _, sock in passed.activated])


def _wanted(name: str, sock: socket.socket, addresses: tuple[ListenAddress, ...]) -> ListenAddress:
    fitting = [one for one in addresses if _is_bound_to(sock, one)]
    named = [one for one in fitting if one.listener == name]
    if named or fitting:
        return (named or fitting)[0]
    raise StartupError(
        f'LISTEN_FDS: the socket "{name}" is bound to {bound_address(sock)}, and no listener has'
        " this address",
        "add it to listen of a listener, or remove it from the .socket unit",
    )


def store_name(address: ListenAddress, addresses: tuple[ListenAddress, ...], slot: int) -> str:
    """The name of a socket in the store: FDNAME of sd_notify(3) allows no colon."""
    own = [one.address for one in addresses if one.listener == address.listener]
    listener = re.sub(r"[^A-Za-z0-9]", "_", address.listener)
    return f"{STORED}{listener[:100]}.{own.index(address.address)}.{slot}"


def _slot_of(name: str, address: ListenAddress, addresses: tuple[ListenAddress, ...]) -> int | None:
    """The slot of a stored socket; None if it was for another address.

    A listener that was renamed or moved keeps its sockets if they have a fixed port.
    """
    slot = name.rpartition(".")[2]
    if not slot.isdecimal():
        return None
    if _port_of(address.address) or name == store_name(address, addresses, int(slot)):
        return int(slot)
    return None


def _port_of(address: str) -> int:
    """The port of an address, 0 if the kernel chooses it; a unix socket is fixed."""
    return 1 if address.startswith("unix:") else parse_address(address)[1]


def _is_bound_to(sock: socket.socket, address: ListenAddress) -> bool:
    if address.address.startswith("unix:"):
        return bound_address(sock) == address.address
    if sock.family == socket.AF_UNIX:
        return False
    host, port = parse_address(address.address)
    bound = sock.getsockname()
    try:
        same = ipaddress.ip_address(host) == ipaddress.ip_address(bound[0].partition("%")[0])
    except ValueError:  # a host name
        same = True
    return same and port in {0, bound[1]}
