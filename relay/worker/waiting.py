"""How many sessions of one worker wait for a pool's backends: connecting, or in a handshake.

A session that waits costs two descriptors and about 70 KiB, and a backend that takes
connections and never answers would collect them for `connect_s` and `handshake_s`. So each
pool has its own bound, and what one pool waits for is never taken from another. At the bound
the newest client is refused at once: those who wait longest are next to be served, and would
be lost one after the other if newer ones took their places (a full queue of HAProxy does the
same). No single backend gets the whole bound, so one that hangs leaves room for the others;
and while all have failed, only a few wait for each.

Never: picks a backend.
"""

from __future__ import annotations

# Of one failed backend and worker, while no other backend is left: enough to find out quickly
# when it is back, and few enough that nobody else waits for it.
TRYING_ANYWAY = 8
# A backend may always have so many, or half the bound where that is less.
LEAST_SHARE = 64


class Waiting:
    """The sessions that wait, by the index of their backend."""

    __slots__ = ("by_backend", "most", "share", "total")

    def __init__(self, backends: int, most: int) -> None:
        self.by_backend = [0] * backends
        self.total = 0
        self.most = most
        even = -(-most // backends) if backends else most
        self.share = max(1, even, min(LEAST_SHARE, most // 2))

    @property
    def full(self) -> bool:
        """Whether the next client is to be refused."""
        return self.total >= self.most

    def begin(self, backend: int) -> None:
        """A session waits for this backend from now on."""
        self.by_backend[backend] += 1
        self.total += 1

    def end(self, backend: int) -> None:
        """It has reached the backend, or given up."""
        self.by_backend[backend] -= 1
        self.total -= 1
