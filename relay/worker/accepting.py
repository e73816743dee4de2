"""On which of its sockets a worker accepts, while a canary runs in its slot.

The canary's worker shares the slot's sockets with the serving one. As long as it runs,
the serving one leaves the clients of these sockets to it. The sockets stay open, so no
client is lost when the canary ends.

A socket is named by its inode, which is the same in all processes that share it.

Never: closes a socket.
Next: `relay.worker.listener.Acceptor`
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AcceptUpdate:
    """From now on, leave the clients of these sockets to another worker."""

    left: frozenset[int]


class Accepting(Protocol):
    """A listening socket."""

    @property
    def inode(self) -> int:
        """Which socket it is."""

    def leave(self) -> None:
        """Leave its clients to another worker."""

    def take_back(self) -> None:
        """Accept again."""


def apply_accept_update(acceptors: Iterable[Accepting], update: AcceptUpdate) -> None:
    """Accept on the sockets that are not left to another worker."""
    for acceptor in acceptors:
        if acceptor.inode in update.left:
            acceptor.leave()
        else:
            acceptor.take_back()
    log.info(
        "a canary takes the clients of this slot"
        if update.left
        else "this worker takes the clients of its slot again"
    )
