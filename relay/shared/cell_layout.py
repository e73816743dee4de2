"""Which cell of a row, or of the shared states, belongs to which series.

Each generation has its own layout:

    row       reserved cells, the gauges of every thing, the counters of every thing;
              kinds are in the order of `names.KINDS`
    states    one block of cells per thing that has states; `shared.state_cells` decides where

A cell is computed from the number of its thing, so a layout of thousands of backends is
made in milliseconds.

Never: holds a value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from relay.shared.catalogue import KINDS, Entities, Key, Kind, Series

# The first cells of every row.
HEARTBEAT_MS, PID, SLOT, GENERATION, PHASE, CPU_US, RESIDENT_BYTES = range(7)
RESERVED_CELLS = 8

Group = Literal["gauges", "counters", "states"]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the series of one name are, for each thing of a kind; the offset depends on
    the labels that the thing does not give.
    """

    kind: Kind
    group: Group
    width: int
    offsets: dict[Key, int]


def _places() -> Iterator[tuple[str, _Place]]:
    groups: tuple[Group, ...] = ("gauges", "counters", "states")
    for kind in KINDS.values():
        for group in groups:
            series: tuple[Series, ...] = getattr(kind, group)
            for name in dict.fromkeys(one.name for one in series):
                offsets = {
                    one.labels: offset for offset, one in enumerate(series) if one.name == name
                }
                yield name, _Place(kind, group, len(series), offsets)


_PLACES = dict(_places())


@dataclass(frozen=True, slots=True)
class Span:
    """The consecutive cells of one kind in a row: `width` for each thing."""

    kind: Kind
    start: int
    width: int
    count: int

    @property
    def stop(self) -> int:
        """The first cell after it."""
        return self.start + self.width * self.count


class Layout:
    """The cells of one generation.

    `bases` says for each kind where the block of each thing's states begins.
    """

    def __init__(self, entities: Entities, bases: Mapping[str, Sequence[int]]) -> None:
        self.entities = entities
        self.bases = bases
        self._numbers = {
            name: {key: number for number, key in enumerate(keys)}
            for name, keys in entities.items()
        }
        self.gauges = tuple(_spans(entities, "gauges", RESERVED_CELLS))
        self.gauges_end = self.gauges[-1].stop
        self.counters = tuple(_spans(entities, "counters", self.gauges_end))
        self.cells = self.counters[-1].stop
        self._starts = {
            "gauges": {span.kind.name: span.start for span in self.gauges},
            "counters": {span.kind.name: span.start for span in self.counters},
        }

    def cell(self, name: str, *labels: str) -> int:
        """The cell of a series: in a row, or among the states when it is one. Raises
        KeyError when this generation has none.
        """
        place = _PLACES[name]
        kind = place.kind
        number = self._numbers[kind.name][labels[: kind.key]]
        offset = place.offsets[labels[kind.key :]]
        if place.group == "states":
            return self.bases[kind.name][number] + offset
        return self._starts[place.group][kind.name] + number * place.width + offset


def _spans(entities: Entities, group: Group, at: int) -> Iterator[Span]:
    for kind in KINDS.values():
        width = len(getattr(kind, group))
        if width:
            span = Span(kind, at, width, len(entities.get(kind.name, ())))
            yield span
            at = span.stop


def kind_of(name: str) -> Kind:
    """What the series of this name are counted for. Raises KeyError."""
    return _PLACES[name].kind


def state_offset(name: str, *labels: str) -> tuple[Kind, int]:
    """The kind of a state, and its offset in the block of a thing. Raises KeyError."""
    place = _PLACES[name]
    return place.kind, place.offsets[labels]


def name_series(series: Sequence[Series], keys: Sequence[Key]) -> list[Series]:
    """The series of entities with all their labels, in the order of their cells."""
    return [Series(one.name, key + one.labels) for key in keys for one in series]
