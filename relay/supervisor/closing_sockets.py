"""Listening sockets that a reload closes, without a client that is reset.

Never: closes a socket.
"""

from __future__ import annotations

import contextlib
import logging
import socket

from relay.supervisor.listening import (
    bound_address,
    drop_new_connections,
    take_new_connections,
)

# Longer than most round trips, and shorter than the second after which a client repeats
# its SYN.
SETTLE_S = 0.3

log = logging.getLogger(__name__)


class ClosingSockets:
    """The sockets that a reload closes.

    Closing a SO_REUSEPORT socket resets its queued and half-open connections. So new
    SYNs are dropped first. Half-open connections get SETTLE_S to complete, the worker
    accepts them, and then the sockets are closed.
    """

    def __init__(self, sockets: set[socket.socket]) -> None:
        self._sockets = sockets
        self._close_at: float | None = None

    def ready_to_close(self, now: float) -> bool:
        """Whether they can be closed. The first call stops new connections."""
        if self._close_at is None:
            for one in self._sockets:
                if one.family == socket.AF_UNIX:
                    continue  # its name is removed before it is closed
                try:
                    drop_new_connections(one)
                except OSError as error:
                    log.warning(
                        "%s: cannot stop new connections: %s; a client that connects while"
                        " this socket closes may be reset",
                        bound_address(one),
                        error.strerror,
                    )
            self._close_at = now + SETTLE_S if self._sockets else now
        return now >= self._close_at

    def cancel(self) -> None:
        """They stay open after all, or for now: let new connections in again."""
        if self._close_at is not None:
            self._close_at = None
            for one in self._sockets:
                with contextlib.suppress(OSError):
                    take_new_connections(one)
