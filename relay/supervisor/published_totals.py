"""The totals of ended workers, in memory that readers map.

The head has a sequence number. It is odd while the supervisor writes, so a reader can
tell that it must read again.

Never: waits for a reader.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from relay.shared.cell_layout import Layout
from relay.shared.counter_totals import CounterTotals
from relay.shared.entities import Entities, Key, Kind, Series
from relay.shared.other_version import Description
from relay.shared.sealed_memory import CELL_BYTES, Cells, SealedMemory
from relay.shared.snapshot import SEQUENCE

FIRST_CELLS = 1 << 13


class PublishedTotals:
    """The totals and their copy for readers. `head` has the sequence number."""

    def __init__(self, head: SealedMemory) -> None:
        self._head = head
        self._totals = CounterTotals()
        self._memory = SealedMemory("relay-totals", FIRST_CELLS)

    @property
    def fd(self) -> int:
        """The descriptor of the copy; another one after `make_room`."""
        return self._memory.fd

    @property
    def names(self) -> bytes:
        """What is counted, for the catalogue."""
        return bytes(self._totals.names)

    def add_entities(self, entities: Entities) -> None:
        """Begin to count for these entities, as far as they are new."""
        self._totals.add_entities(entities)

    def add(self, kind: Kind, key: Key, series: Series, by: int) -> None:
        """Add to one counter; `writing` copies it."""
        self._totals.add(kind, key, series, by)

    def fold(self, row: Cells, layout: Layout) -> None:
        """Add the counters of an ended worker's row; `writing` copies them."""
        self._totals.fold(row, layout)

    def of(self, kind: Kind) -> array[int]:
        """All counters of a kind, entity by entity."""
        return self._totals.of(kind)

    def describe(self) -> dict[str, Any]:
        """All totals by name, as JSON types, for another version of the relay."""
        return self._totals.describe()

    def take_over(self, described: Description) -> None:
        """Begin with the totals of the version before an upgrade."""
        self._totals.take_over(described)
        before = self.make_room()
        if before is not None:
            before.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Copy the totals. What is done in this context changes together with them."""
        self._head.cells[SEQUENCE] += 1
        for at, values in self._totals.take_changes():
            self._memory.cells[at : at + len(values)] = memoryview(values)
        yield
        self._head.cells[SEQUENCE] += 1

    def make_room(self) -> SealedMemory | None:
        """Take larger memory if the totals have outgrown it. Raises OSError.

        Returns the memory before, to be closed when readers know the new one.
        """
        if self._totals.cells * CELL_BYTES <= os.fstat(self._memory.fd).st_size:
            return None
        before = self._memory
        self._memory = SealedMemory("relay-totals", 2 * self._totals.cells)
        self._totals.change_all()
        return before

    def withhold(self) -> None:
        """Before a fork: the child does not get this memory."""
        self._memory.inherit(wanted=False)
