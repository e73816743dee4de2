"""The listening sockets of one generation, by address and slot.

Where an address stays, a generation shares the sockets of the one before.

Never: closes a socket that the other generation still needs.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from relay.config.address import parse_address, unix_path
from relay.config.model import Config
from relay.errors import StartupError
from relay.sockets import format_address
from relay.supervisor.listen_addresses import ListenAddress, listen_addresses
from relay.supervisor.listening import (
    begin_to_listen,
    bound_address,
    open_listener,
    open_listeners,
)
from relay.supervisor.unix_listeners import open_for_balancers
from relay.tcp_options import set_on_listener

log = logging.getLogger(__name__)


class SlotSockets:
    """The listening sockets of one generation. A parked slot has none that listen.

    A socket that joins others on its address begins to listen when its slot is served.
    Clients queued on a socket that closes again are reset, so a socket must not get
    clients before its worker and its generation are known to serve.
    """

    def __init__(self) -> None:
        self._addresses: tuple[ListenAddress, ...] = ()
        # By `ListenAddress.key`: slot to socket, and the host and port it is bound to.
        self._opened: dict[str, dict[int, socket.socket]] = {}
        self._bound: dict[str, tuple[str, int] | str] = {}
        self._not_listening: set[int] = set()
        self._slots = 0
        # Keys of addresses with one socket for all slots, which is never closed before
        # its listener is.
        self._shared: set[str] = set()
        # Keys of unix sockets whose files are to be removed.
        self.named: set[str] = set()
        # Sockets that a socket unit of systemd keeps open.
        self._activated: set[socket.socket] = set()

    @classmethod
    def of(
        cls,
        found: Iterable[tuple[ListenAddress, int, socket.socket]],
        shared: Iterable[str] = (),
        activated: Iterable[socket.socket] = (),
    ) -> SlotSockets:
        """Sockets that are open already, by address and slot."""
        sockets = cls()
        for address, slot, sock in found:
            sockets._opened.setdefault(address.key, {})[slot] = sock
            sockets._note_address(address, sock)
            if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                sockets._not_listening.add(slot)
        sockets._shared, sockets._activated = set(shared), set(activated)
        sockets._shared |= sockets.named
        for address, _, sock in found:
            if sock in sockets._activated:
                sockets.named.discard(address.key)
        return sockets

    def _note_address(self, address: ListenAddress, sock: socket.socket) -> None:
        path = unix_path(address.address)
        if path:
            self._bound[address.key] = path
            self.named.add(address.key)
        else:
            host, _ = parse_address(address.address)
            self._bound[address.key] = (host, sock.getsockname()[1])

    def described(self) -> list[tuple[ListenAddress, int, socket.socket]]:
        """Every open socket once, with its address and slot."""
        return [
            (one, slot, sock)
            for one in self._addresses
            for slot, sock in self._opened[one.key].items()
            if one.key not in self._shared or slot == 0
        ]

    def is_shared(self, address: ListenAddress) -> bool:
        """Whether all slots accept on one socket."""
        return address.key in self._shared

    def is_activated(self, sock: socket.socket) -> bool:
        """Whether a socket unit of systemd keeps it open."""
        return sock in self._activated

    def extend(
        self, config: Config, slots: int, *, all_slots: bool = False, only_slot: int | None = None
    ) -> SlotSockets:
        """The sockets for another configuration: shared where possible, new elsewhere.

        With `all_slots`, sockets of slots beyond `slots` are kept too. Clients may wait
        in their queues, and no earlier worker empties them.
        With `only_slot`, new addresses get no clients on other slots before `listen`.
        Raises StartupError; then nothing has changed.
        """
        other = SlotSockets()
        other._not_listening = {slot for slot in self._not_listening if slot < slots}
        other._addresses, other._slots = listen_addresses(config), slots
        kept = {one.key for one in other._addresses}
        other._shared, other._activated = self._shared & kept, set(self._activated)
        other.named = self.named & kept
        own_ports = frozenset(each[1] for each in self._bound.values() if not isinstance(each, str))
        try:
            for one in other._addresses:
                key = one.key
                shared = self._opened.get(key, {})
                if key in self._shared:
                    other._opened[key] = dict.fromkeys(range(slots), shared[0])
                    other._bound[key] = self._bound[key]
                    continue
                other._opened[key] = {
                    slot: shared[slot] for slot in shared if slot < slots or all_slots
                }
                if key in self._bound:
                    other._bound[key] = self._bound[key]
                    other._fill(one, range(slots))
                elif path := unix_path(one.address):
                    opened_unix = open_for_balancers(one.where, path, config)
                    other._opened[key] = dict.fromkeys(range(slots), opened_unix)
                    other._shared.add(key)
                    other._note_address(one, opened_unix)
                else:
                    at_once = range(slots) if only_slot is None else [only_slot]
                    opened = open_listeners(
                        one.where, one.address, len(at_once), own_ports, freebind=one.freebind
                    )
                    other._opened[key] = dict(zip(at_once, opened, strict=True))
                    for new in opened:
                        set_on_listener(new, one.options, one.where)
                    other._note_address(one, opened[0])
                    other._fill(one, range(slots))
        except StartupError:
            other.remove_names(self)
            other.close_all_but(self)
            raise
        return other

    def _fill(self, address: ListenAddress, slots: range) -> None:
        """Bind a socket for every slot that has none. Raises StartupError."""
        for slot in slots:
            if slot not in self._opened[address.key]:
                host, port = cast("tuple[str, int]", self._bound[address.key])
                self._opened[address.key][slot] = new = open_listener(
                    address.where, host, port, freebind=address.freebind
                )
                set_on_listener(new, address.options, address.where)
                self._not_listening.add(slot)

    def set_options(self) -> None:
        """Give new connections the options of this generation, which serves now.

        Until then, shared sockets have those of the generation before.
        """
        for one in self._addresses:
            for shared in self._opened[one.key].values():
                set_on_listener(shared, one.options, one.where)

    def listen(self, slot: int) -> None:
        """The slot is served: let all its sockets listen."""
        if slot not in self._not_listening:
            return
        self._not_listening.discard(slot)
        for sockets in self._opened.values():
            if slot in sockets and not sockets[slot].getsockopt(
                socket.SOL_SOCKET, socket.SO_ACCEPTCONN
            ):
                try:
                    begin_to_listen(sockets[slot])
                except OSError as error:
                    log.error(
                        "%s: worker %d cannot listen: %s; the other workers take its clients;"
                        " reload to try again",
                        bound_address(sockets[slot]),
                        slot,
                        error.strerror,
                    )

    def park(self, slot: int) -> None:
        """Stop the slot from getting clients: the kernel gives them to the other slots.

        Bound sockets that do not listen replace the listening ones. They keep the
        address for this relay, even when no slot is served. If that fails the slot has
        no socket.
        """
        self._not_listening.discard(slot)
        for one in self._addresses:
            if one.key in self._shared:
                continue  # the other workers accept on it
            listening = self._opened[one.key].pop(slot, None)
            if listening is None:
                continue
            with contextlib.suppress(StartupError):
                self._fill(one, range(slot, slot + 1))
            listening.close()

    def reopen(self, slot: int) -> None:
        """Bind the sockets that a parked slot lacks.

        An address that this machine lost does not stop the others.
        Raises StartupError if the slot has no socket at all.
        """
        failed: StartupError | None = None
        for one in self._addresses:
            try:
                self._fill(one, range(slot, slot + 1))
            except StartupError as error:
                failed = error
                log.error(
                    "slot %d: %s; its worker runs without this address; reload to try again",
                    slot,
                    error,
                )
        if failed is not None and not self.of_slot(slot):
            raise failed

    def of_slot(self, slot: int) -> list[tuple[str, socket.socket]]:
        """Listener names and the sockets on which the slot's worker accepts."""
        return [
            (one.listener, sock)
            for one in self._addresses
            for number, sock in self._opened[one.key].items()
            if number == slot or (number >= self._slots and number % self._slots == slot)
        ]

    def endpoints(self) -> dict[str, list[str]]:
        """Listener names and their addresses, with the ports the kernel chose.

        They stay known after the sockets are closed.
        """
        found: dict[str, list[str]] = {}
        for one in self._addresses:
            found.setdefault(one.listener, []).append(format_address(self._bound[one.key]))
        return found

    def all(self) -> set[socket.socket]:
        """Every open socket."""
        return {one for sockets in self._opened.values() for one in sockets.values()}

    def remove_names(self, other: SlotSockets | None = None) -> None:
        """Remove the files of the unix sockets that `other` does not share, once.

        No client comes after this, so the workers can empty the queue.
        """
        for key in self.named - (other.named if other is not None else set()):
            self.named.discard(key)
            with contextlib.suppress(OSError):
                Path(unix_path(key)).unlink()

    def close_all_but(self, other: SlotSockets | None = None) -> None:
        """Close the sockets that `other` does not share."""
        kept = other.all() if other is not None else set()
        for one in self.all() - kept:
            one.close()
