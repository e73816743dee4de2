"""How many sessions of one worker wait for a pool's backends: connecting, or in a handshake.

A session that waits costs two descriptors and about 70 KiB, and a backend that takes
connections and never answers would collect them for `connect_s` and `handshake_s`. So each
pool has its own bound, and what one pool waits for is never taken from another. At the bound
the newest client is refused at once: those who wait longest are next to be served, and would
be lost one after the other if newer ones took their places (a full queue of HAProxy does the
same). Where a worker has few places altogether (limits.connections, or open files), the bound is a
part of them, so that a pool cannot fill them alone. No single backend gets the whole bound, so one that hangs leaves room for the others;
and while all have failed, only a few wait for each.

Never: picks a backend.
"""

from __future__ import annotations

# Of one failed backend and worker, while no other backend is left: enough to find out quickly
# when it is back, and few enough that nobody else waits for it.
TRYING_ANYWAY = 8
# A backend may always have so many, or half the bound where that is less.
LEAST_SHARE = 64
# Where there are other pools, one may hold a half, a third or a quarter of a worker's places.
_SMALLEST_PART = 4


class ConnectingLimit:
    """The sessions that wait, by the index of their backend.

    `places` are the connections that the worker may have, `pools` is how many pools share them.
    """

    __slots__ = ("by_backend", "few_places", "most", "share", "total")

    def __init__(self, backends: int, most: int, *, places: int, pools: int) -> None:
        self.by_backend = [0] * backends
        self.total = 0
        part = max(1, places // min(pools, _SMALLEST_PART)) if pools > 1 else most
        self.few_places = part < most
        most = min(most, part)
        self.most = most
        even = -(-most // backends) if backends else most
        self.share = max(1, even, min(LEAST_SHARE, most // 2))

    @property
    def full(self) -> bool:
        """Whether the next client is to be refused."""
        return self.total >= self.most

    def why_full(self, pool: str) -> str:
        """What is said to the next client."""
        why = f"{self.most} clients of this worker wait for the backends of pool {pool}"
        if self.few_places:
            why += "; more would leave other pools too few of limits.connections or open files"
        return why

    def begin(self, backend: int) -> None:
        """A session waits for this backend from now on."""
        self.by_backend[backend] += 1
        self.total += 1

    def end(self, backend: int) -> None:
        """It has reached the backend, or given up."""
        self.by_backend[backend] -= 1
        self.total -= 1
