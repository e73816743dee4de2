"""The memory in which workers count the connections of each client address.

The supervisor makes it before it forks the first worker of a generation, and only if a
listener has `per_client_rate`. A row has 512 KiB, of which the kernel gives a page when
it is first written. A reload of settings makes a new one, so all buckets are full then.

Never: holds an address: its cells have a part of a keyed hash.
"""

from __future__ import annotations

import mmap
import secrets

from relay.core.token_bucket import ROW_CELLS, TokenBuckets

_CELL_BYTES = 8


class ClientRates:
    """Shared by the workers of one generation, one row for each slot."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._secret = secrets.token_bytes(16)
        self._cells = memoryview(mmap.mmap(-1, slots * ROW_CELLS * _CELL_BYTES)).cast("q")

    def of_slot(self, slot: int) -> TokenBuckets:
        """The table for the worker of this slot."""
        return TokenBuckets(self._cells, slot % self._slots, self._slots, self._secret)
