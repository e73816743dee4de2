"""Which slot listens where: the sockets of one generation, shared with the generation before wherever an address stays.

Never: closes a socket that the other generation still needs.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from dataclasses import dataclass

from relay.config.address import parse_address
from relay.config.model import Config
from relay.errors import StartupError
from relay.sockets import format_address
from relay.supervisor.listening import (
    begin_to_listen,
    bound_address,
    drop_new_connections,
    open_listener,
    open_listeners,
    take_new_connections,
)

SETTLE_S = (
    0.3  # longer than most round trips, shorter than the second after which a SYN is repeated
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """One address of one listener. A fixed port is the same place whichever listener has it; a free one (port 0) belongs to its listener."""

    listener: str
    address: str
    freebind: bool = False

    @property
    def key(self) -> str:
        """What identifies its sockets across reloads."""
        return self.address if parse_address(self.address)[1] else f"{self.listener} {self.address}"

    @property
    def where(self) -> str:
        """How messages call it."""
        return f'listener "{self.listener}"'


def listen_addresses(config: Config) -> tuple[ListenAddress, ...]:
    """Every address of every listener, in the configuration's order."""
    return tuple(
        ListenAddress(listener.name, address, listener.freebind)
        for listener in config.listener
        for address in listener.listen
    )


class Leaving:
    """The sockets that a reload takes away.

    When a SO_REUSEPORT socket closes, the kernel resets who is in its queue, and who is in the middle of the TCP handshake. So first nobody
    new is let onto it, and those who are on their way get the time to arrive, and its worker the time to accept them.
    """

    def __init__(self, sockets: set[socket.socket]) -> None:
        self._sockets = sockets
        self._settled_at: float | None = None

    def settled(self, now: float) -> bool:
        """Whether they can be closed; the first call shuts the door."""
        if self._settled_at is None:
            for one in self._sockets:
                try:
                    drop_new_connections(one)
                except OSError as error:
                    log.warning(
                        "%s: %s; a client who connects while its socket closes may be reset",
                        bound_address(one),
                        error.strerror,
                    )
            self._settled_at = now + SETTLE_S if self._sockets else now
        return now >= self._settled_at

    def stay(self) -> None:
        """They are not to be closed, or not yet."""
        if self._settled_at is not None:
            self._settled_at = None
            for one in self._sockets:
                with contextlib.suppress(OSError):
                    take_new_connections(one)


class SlotSockets:
    """The listening sockets of one generation by place and slot. A parked slot has none.

    Sockets that join others on an address begin to listen when their slot is served: who is queued on a socket that closes again, because its worker
    or its whole generation came to nothing, is lost.
    """

    def __init__(self) -> None:
        self._places: tuple[ListenAddress, ...] = ()
        self._opened: dict[str, dict[int, socket.socket]] = {}
        self._bound: dict[str, tuple[str, int]] = {}
        self._silent: set[int] = set()

    def extend(self, config: Config, slots: int) -> SlotSockets:
        """The sockets for another configuration: ours where we have them, new ones where not. Raises StartupError; then ours are as before."""
        other = SlotSockets()
        other._silent = {slot for slot in self._silent if slot < slots}
        other._places = listen_addresses(config)
        ours = frozenset(port for _, port in self._bound.values())
        try:
            for place in other._places:
                key = place.key
                kept = {
                    slot: one for slot, one in self._opened.get(key, {}).items() if slot < slots
                }
                other._opened[key] = dict(kept)
                if key in self._bound:
                    other._bound[key] = self._bound[key]
                    other._fill(place, range(slots))
                else:
                    opened = open_listeners(
                        place.where, place.address, slots, ours, freebind=place.freebind
                    )
                    other._opened[key] = dict(enumerate(opened))
                    host, _ = parse_address(place.address)
                    other._bound[key] = (host, opened[0].getsockname()[1])
        except StartupError:
            other.close_all_but(self)
            raise
        return other

    def _fill(self, place: ListenAddress, slots: range) -> None:
        for slot in slots:
            if slot not in self._opened[place.key]:
                host, port = self._bound[place.key]
                self._opened[place.key][slot] = open_listener(
                    place.where, host, port, freebind=place.freebind
                )
                self._silent.add(slot)

    def listen(self, slot: int) -> None:
        """The slot is served: its sockets that do not listen yet begin to."""
        if slot not in self._silent:
            return
        self._silent.discard(slot)
        for sockets in self._opened.values():
            if slot in sockets and not sockets[slot].getsockopt(
                socket.SOL_SOCKET, socket.SO_ACCEPTCONN
            ):
                try:
                    begin_to_listen(sockets[slot])
                except OSError as error:
                    log.error(
                        "%s: worker %d cannot listen: %s; the others take its clients; reload to try again",
                        bound_address(sockets[slot]),
                        slot,
                        error.strerror,
                    )

    def park(self, slot: int) -> None:
        """Let a slot take no clients: the kernel gives its share of new ones to the other slots.

        Sockets that do not listen take the place of those that did, so that the addresses stay
        ours even when no slot is served. Where that cannot be done the slot has none.
        """
        self._silent.discard(slot)
        for place in self._places:
            listening = self._opened[place.key].pop(slot, None)
            if listening is None:
                continue
            with contextlib.suppress(StartupError):
                self._fill(place, range(slot, slot + 1))
            listening.close()

    def reopen(self, slot: int) -> None:
        """Give a parked slot the sockets that it lacks. Raises StartupError when it can have none.

        One address that has gone from this machine must not keep the others from being served.
        """
        failed: StartupError | None = None
        for place in self._places:
            try:
                self._fill(place, range(slot, slot + 1))
            except StartupError as error:
                failed = error
                log.error(
                    "slot %d: %s; its worker does without this address; reload to try again",
                    slot,
                    error,
                )
        if failed is not None and not self.of_slot(slot):
            raise failed

    def of_slot(self, slot: int) -> list[tuple[str, socket.socket]]:
        """What the slot's worker is to accept on: listener names and sockets."""
        return [
            (place.listener, self._opened[place.key][slot])
            for place in self._places
            if slot in self._opened[place.key]
        ]

    def endpoints(self) -> dict[str, list[str]]:
        """Listener names and the addresses they are bound to, with the ports the kernel chose; also when the sockets are closed."""
        found: dict[str, list[str]] = {}
        for place in self._places:
            found.setdefault(place.listener, []).append(format_address(self._bound[place.key]))
        return found

    def all(self) -> set[socket.socket]:
        """Every open socket."""
        return {one for sockets in self._opened.values() for one in sockets.values()}

    def close_all_but(self, other: SlotSockets | None = None) -> None:
        """Close what the other does not use."""
        kept = other.all() if other is not None else set()
        for one in self.all() - kept:
            one.close()
