"""The counters of workers that have ended.

Totals only grow, whatever names come and go with the configurations. An entity keeps
its cells for ever, so the counters of a backend that was removed and is added again
continue.

Never: trusts a worker's cell. No value in one can lower a total or make `fold` fail.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from operator import add
from typing import Any, NamedTuple

from relay.shared.cell_layout import Layout
from relay.shared.entities import KINDS, Entities, Key, Kind, Series
from relay.shared.other_version import Description, names_of, pairs
from relay.shared.sealed_memory import CELL_BYTES, Cells

LARGEST = (1 << 63) - 1


class CounterTotals:
    """Counters of ended workers, by kind and entity."""

    def __init__(self) -> None:
        self._numbers: dict[str, dict[Key, int]] = {name: {} for name in COUNTED}
        self._values: dict[str, array[int]] = {name: array("q") for name in COUNTED}
        self._changed: set[str] = set()
        self.names = bytearray()
        """For readers: JSON lines, each with a kind and its new entities."""

    @property
    def cells(self) -> int:
        """The number of cells."""
        return sum(map(len, self._values.values()))

    def add_entities(self, entities: Entities) -> None:
        """Add cells for the entities that are new."""
        for name, kind in COUNTED.items():
            numbers = self._numbers[name]
            new = [key for key in entities.get(name, ()) if key not in numbers]
            if new:
                numbers.update((key, number) for number, key in enumerate(new, len(numbers)))
                self._values[name].frombytes(bytes(8 * len(new) * len(kind.counters)))
                self.names += json.dumps([name, new]).encode() + b"\n"
                self.change_all()  # the cells of later kinds move

    def add(self, kind: Kind, key: Key, series: Series, by: int) -> None:
        """Add to a counter that is in no worker's row."""
        if key not in self._numbers[kind.name]:
            self.add_entities({kind.name: [key]})
        values = self._values[kind.name]
        cell = self._numbers[kind.name][key] * len(kind.counters) + kind.counters.index(series)
        values[cell] = min(values[cell] + max(by, 0), LARGEST)
        self._changed.add(kind.name)

    def of(self, kind: Kind) -> array[int]:
        """All counters of a kind, entity by entity."""
        return self._values[kind.name]

    def fold(self, row: Cells, layout: Layout) -> None:
        """Add the counters of a row, whose entities were added before.

        Many entities have counted nothing, so they are compared as bytes first.
        """
        for span in layout.counters:
            width, counted = span.width, row[span.start : span.stop].tobytes()
            values, numbers = self._values[span.kind.name], self._numbers[span.kind.name]
            size = CELL_BYTES * width
            unused = bytes(size)
            for number, key in enumerate(layout.entities.get(span.kind.name, ())):
                found = counted[size * number : size * (number + 1)]
                if found == unused:
                    continue
                self._changed.add(span.kind.name)
                at = width * numbers[key]
                added = add_counters(values[at : at + width], array("q", found))
                values[at : at + width] = array("q", [min(value, LARGEST) for value in added])

    def describe(self) -> dict[str, Any]:
        """All totals by name, as JSON types, for another version of the relay."""
        return {
            name: {
                "series": names_of(kind, "counters"),
                "keys": [list(key) for key in self._numbers[name]],
                "values": self._values[name].tolist(),
            }
            for name, kind in COUNTED.items()
        }

    def take_over(self, described: Description) -> None:
        """Begin with the totals that another version has described."""
        for name, kind in COUNTED.items():
            other = described.get(name)
            if other is None:
                continue
            keys = [tuple(key) for key in other["keys"]]
            if any(len(key) != kind.key for key in keys):
                continue
            self.add_entities({name: keys})
            own, width = names_of(kind, "counters"), len(other["series"])
            for number, position in pairs(other["series"], own):
                for key, value in zip(keys, other["values"][number::width], strict=True):
                    cell = self._numbers[name][key] * len(own) + position
                    self._values[name][cell] = value
        self.change_all()

    def change_all(self) -> None:
        """Let the next `take_changes` give the values of all kinds."""
        self._changed.update(COUNTED)

    def take_changes(self) -> Iterator[tuple[int, array[int]]]:
        """The values of each kind that has changed since, and their place."""
        at = 0
        for name, values in self._values.items():
            if name in self._changed:
                yield at, values
            at += len(values)
        self._changed.clear()


def add_counters(total: Sequence[int], found: Sequence[int]) -> list[int]:
    """Add cell by cell.

    A negative value, which no correct worker writes, counts as 0.
    """
    if min(found) < 0:
        found = [max(0, value) for value in found]
    return list(map(add, total, found))


class Run(NamedTuple):
    """Entities that are in the same order in a generation and in the totals.

    `total` and `number` are the first one's position in the totals and in the
    generation.
    """

    total: int
    number: int
    length: int

    def cells(self, width: int) -> tuple[slice, slice]:
        """The run's cells among the totals of its kind, and among the generation's."""
        return (
            slice(self.total * width, (self.total + self.length) * width),
            slice(self.number * width, (self.number + self.length) * width),
        )


def runs_of(keys: Sequence[Key], numbers: Mapping[Key, int]) -> list[Run]:
    """The generation's entities of one kind as runs.

    There are few, because a reload leaves most entities in their order.
    """
    runs: list[Run] = []
    start, first_total, next_total = 0, -1, -1
    for number, key in enumerate(keys):
        total = numbers[key]
        if total != next_total:
            if number:
                runs.append(Run(first_total, start, number - start))
            start, first_total = number, total
        next_total = total + 1
    return [*runs, Run(first_total, start, len(keys) - start)] if keys else []


def _counted() -> Iterator[tuple[str, Kind]]:
    for kind in KINDS.values():
        if kind.counters:
            yield kind.name, kind


COUNTED = dict(_counted())
