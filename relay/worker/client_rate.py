"""`per_client_rate` of one listener.

Never: counts a connection whose client's address is not known.
"""

from __future__ import annotations

from relay.config.listener_model import Listener
from relay.core.sticky import source_key
from relay.core.token_bucket import Rate, TokenBuckets, default_burst


class ClientRate:
    """Whether a client may connect now. `index` is the listener's: each has its own."""

    __slots__ = ("_buckets", "_label", "_prefixes", "_rate", "words")

    def __init__(self, listener: Listener, index: int, buckets: TokenBuckets) -> None:
        self._buckets = buckets
        self._label = index.to_bytes(4, "big")
        self._prefixes = listener.per_client_prefix_v4, listener.per_client_prefix_v6
        self._rate = Rate.of(listener.per_client_rate, listener.per_client_burst)
        burst = listener.per_client_burst or default_burst(listener.per_client_rate)
        self.words = f"more than {listener.per_client_rate:g} connections per second, burst {burst}"

    def take(self, host: str, now: float) -> bool:
        """Count a connection from this address, unless it is one too many."""
        key = self._label + source_key(host, *self._prefixes)
        return self._buckets.take(key, self._rate, int(now * 1_000_000))
