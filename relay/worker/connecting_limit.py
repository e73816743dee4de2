"""A limit on the sessions that are connecting to a pool's backends, for one worker.

A connecting session has no finished TLS handshake with its backend yet. It costs two
descriptors and about 70 KiB. A backend that accepts connections and never answers would
collect such sessions for `connect_s` and `handshake_s`. Therefore:

- Each pool has its own limit, so a slow pool takes nothing from the others. If the
  worker may have few connections (limits.connections, or open files), the limit is a
  part of them.
- At the limit the newest client is refused at once, as in a full HAProxy queue. The
  clients that have waited longest are the next to be served.
- One backend gets a share of the limit only, so one that hangs leaves room for the
  others.
- While all backends have failed, each gets TRIES_IN_OUTAGE sessions.

Never: picks a backend.
"""

from __future__ import annotations

# Sessions per worker that try a failed backend while the pool has no other: enough to
# notice quickly that it is back, and few enough that hardly any client waits for it.
TRIES_IN_OUTAGE = 8
# The smallest share of a backend, or half the limit if that is less.
LEAST_SHARE = 64
# With 2, 3, or more pools, a pool may use a half, a third, or a quarter of a worker's
# connections.
_SMALLEST_PART = 4


class ConnectingLimit:
    """The number of connecting sessions, by the index of their backend.

    `PoolState.begin` and `reached` count in it; at `most` the next client is refused.

    The argument `most` is the configured limit. `max_connections` is how many
    connections the worker may have, and `pools` how many pools share them.
    """

    __slots__ = ("by_backend", "most", "reduced", "share", "total")

    def __init__(self, backends: int, most: int, *, max_connections: int, pools: int) -> None:
        self.by_backend = [0] * backends
        self.total = 0
        part = max(1, max_connections // min(pools, _SMALLEST_PART)) if pools > 1 else most
        self.reduced = part < most
        most = min(most, part)
        self.most = most
        even = -(-most // backends) if backends else most
        self.share = max(1, even, min(LEAST_SHARE, most // 2))

    def why_full(self, pool: str) -> str:
        """Why the next client is refused, for the access log."""
        why = f"{self.most} clients of this worker wait for the backends of pool {pool}"
        if self.reduced:
            why += "; more would leave other pools too few of limits.connections or open files"
        return why
