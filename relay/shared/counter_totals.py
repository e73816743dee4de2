"""What ended workers have counted.

Totals only grow, whatever names come and go with the configurations. Every thing that was
ever counted keeps its place, so a backend that comes back goes on where it was.

Never: believes a worker's cell: nothing that is in one can lower a total, or fail.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from operator import add
from typing import NamedTuple

from relay.shared.catalogue import KINDS, Entities, Key, Kind, Series
from relay.shared.cell_layout import Layout
from relay.shared.sealed_memory import Cells

LARGEST = (1 << 63) - 1


class CounterTotals:
    """Counters of the dead, by kind and thing."""

    def __init__(self) -> None:
        self._numbers: dict[str, dict[Key, int]] = {name: {} for name in COUNTED}
        self._values: dict[str, array[int]] = {name: array("q") for name in COUNTED}
        self.names = bytearray()
        """For readers: JSON lines, each with a kind and the entities of it that were
        added at a time.
        """

    @property
    def cells(self) -> int:
        """How many there are."""
        return sum(map(len, self._values.values()))

    def admit(self, entities: Entities) -> None:
        """Make room for these entities, as far as they are new."""
        for name, kind in COUNTED.items():
            numbers = self._numbers[name]
            new = [key for key in entities.get(name, ()) if key not in numbers]
            if new:
                numbers.update((key, number) for number, key in enumerate(new, len(numbers)))
                self._values[name].frombytes(bytes(8 * len(new) * len(kind.counters)))
                self.names += json.dumps([name, new]).encode() + b"\n"

    def add(self, kind: Kind, key: Key, series: Series, by: int) -> None:
        """Count something that is not in any worker's row."""
        if key not in self._numbers[kind.name]:
            self.admit({kind.name: [key]})
        values = self._values[kind.name]
        cell = self._numbers[kind.name][key] * len(kind.counters) + kind.counters.index(series)
        values[cell] = min(values[cell] + max(by, 0), LARGEST)

    def fold(self, row: Cells, layout: Layout) -> None:
        """Add the counters of a row. Its entities were admitted before."""
        for span in layout.counters:
            found = row[span.start : span.stop].tolist()
            if not any(found):
                continue
            values, numbers = self._values[span.kind.name], self._numbers[span.kind.name]
            for run in runs_of(layout.entities[span.kind.name], numbers):
                ours, theirs = run.cells(span.width)
                added = add_counters(values[ours], found[theirs])
                values[ours] = array(
                    "q",
                    added if max(added) <= LARGEST else [min(value, LARGEST) for value in added],
                )

    def tobytes(self) -> bytes:
        """All values, kind by kind."""
        return b"".join(values.tobytes() for values in self._values.values())


def add_counters(total: Sequence[int], found: Sequence[int]) -> list[int]:
    """Cell by cell. A counter is not negative, whatever a worker has written there."""
    if min(found) < 0:
        found = [max(0, value) for value in found]
    return list(map(add, total, found))


class Run(NamedTuple):
    """Entities that follow each other in a generation and in the totals, too."""

    total: int
    number: int
    length: int

    def cells(self, width: int) -> tuple[slice, slice]:
        """Their cells among the totals of the kind, and among the generation's."""
        return (
            slice(self.total * width, (self.total + self.length) * width),
            slice(self.number * width, (self.number + self.length) * width),
        )


def runs_of(keys: Sequence[Key], numbers: Mapping[Key, int]) -> list[Run]:
    """A generation's entities of one kind as runs: a few, since a reload leaves most
    entities in their order.
    """
    found: list[Run] = []
    began_at, first, after = 0, -1, -1
    for number, key in enumerate(keys):
        total = numbers[key]
        if total != after:
            if number:
                found.append(Run(first, began_at, number - began_at))
            began_at, first = number, total
        after = total + 1
    return [*found, Run(first, began_at, len(keys) - began_at)] if keys else []


def _counted() -> Iterator[tuple[str, Kind]]:
    for kind in KINDS.values():
        if kind.counters:
            yield kind.name, kind


COUNTED = dict(_counted())
