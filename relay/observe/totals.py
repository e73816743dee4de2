"""What ended workers have counted: it only grows, whatever names come and go with the configurations.

Every thing that was ever counted keeps its place, so a backend that comes back goes on where it was.

Never: believes a worker's cell: nothing that is in one can lower a total, or fail.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator

from relay.observe.layout import Layout
from relay.observe.memory import Cells
from relay.observe.names import KINDS, Key, Kind, Series, Things

LARGEST = (1 << 63) - 1


class Totals:
    """Counters of the dead, by kind and thing."""

    def __init__(self) -> None:
        self._numbers: dict[str, dict[Key, int]] = {name: {} for name in COUNTED}
        self._values: dict[str, array[int]] = {name: array("q") for name in COUNTED}
        self.names = bytearray()
        """For readers: JSON lines, each with a kind and the things of it that were added at a time."""

    @property
    def cells(self) -> int:
        """How many there are."""
        return sum(map(len, self._values.values()))

    def admit(self, things: Things) -> None:
        """Make room for these things, as far as they are new."""
        for name, kind in COUNTED.items():
            numbers = self._numbers[name]
            new = [key for key in things.get(name, ()) if key not in numbers]
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
        """Add the counters of a row. Its things were admitted before."""
        for span in layout.counters:
            found = row[span.start : span.stop].tolist()
            if not any(found):
                continue
            values, numbers = self._values[span.kind.name], self._numbers[span.kind.name]
            keys = layout.things[span.kind.name]
            for cell, value in enumerate(found):
                if value > 0:
                    number, offset = divmod(cell, span.width)
                    at = numbers[keys[number]] * span.width + offset
                    values[at] = min(values[at] + value, LARGEST)

    def tobytes(self) -> bytes:
        """All values, kind by kind."""
        return b"".join(values.tobytes() for values in self._values.values())


def parse_names(lines: list[bytes]) -> dict[str, list[Key]]:
    """The things by kind, from `Totals.names`, in the order of their values."""
    found: dict[str, list[Key]] = {name: [] for name in COUNTED}
    for line in lines:
        name, keys = json.loads(line)
        found[name] += map(tuple, keys)
    return found


def _counted() -> Iterator[tuple[str, Kind]]:
    for kind in KINDS.values():
        if kind.counters:
            yield kind.name, kind


COUNTED = dict(_counted())
