"""Keeps the listening sockets in systemd's file descriptor store: sd_notify(3).

systemd has a copy of each socket then, so it goes on listening while the service
restarts, and clients wait in its queue. The unit needs FileDescriptorStoreMax=.

Never: waits; fails without a store.
"""

from __future__ import annotations

import socket

from relay.supervisor.passed_sockets import store_name
from relay.supervisor.slot_sockets import SlotSockets
from relay.supervisor.systemd import Notifier


class FdStore:
    """What is in the store, by name, and what has not been sent yet.

    `stored` are the names that were in it before this process.
    """

    def __init__(self, notifier: Notifier, stored: frozenset[str]) -> None:
        self._notifier = notifier
        self._stored: dict[str, socket.socket | None] = dict.fromkeys(stored)
        self._unsent: list[tuple[str, socket.socket | None]] = []

    @property
    def names(self) -> list[str]:
        """The names in the store."""
        return list(self._stored)

    def update(self, sockets: SlotSockets) -> None:
        """Put these sockets into the store, and take all others out."""
        described = sockets.described()
        addresses = tuple(dict.fromkeys(one for one, _, _ in described))
        wanted = {
            store_name(one, addresses, slot): sock
            for one, slot, sock in described
            if not sockets.is_activated(sock)
            and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        }
        for name in [name for name in self._stored if name not in wanted]:
            del self._stored[name]
            self._unsent.append((f"FDSTOREREMOVE=1\nFDNAME={name}", None))
        for name, sock in wanted.items():
            before = self._stored.get(name)
            if before is sock:
                continue
            if before is not None:
                self._unsent.append((f"FDSTOREREMOVE=1\nFDNAME={name}", None))
            self._stored[name] = sock
            self._unsent.append((f"FDSTORE=1\nFDNAME={name}", sock))
        self.step()

    def clear(self) -> None:
        """Take everything out: the relay ends for good, and clients are refused."""
        self.update(SlotSockets())

    def step(self) -> None:
        """Send what systemd did not take before."""
        while self._unsent:
            message, sock = self._unsent[0]
            if sock is not None and sock.fileno() < 0:  # closed meanwhile
                self._unsent.pop(0)
                continue
            fds = [] if sock is None else [sock.fileno()]
            if not self._notifier.send_files(message, fds):
                return
            self._unsent.pop(0)
