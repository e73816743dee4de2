"""Which cell belongs to which series: in a worker's row, or in the shared state cells.

Each generation has its own layout:

    row       reserved cells, the gauges of every entity, the counters of every entity;
              kinds are in the order of `entities.KINDS`
    states    a block of cells per entity with states; see `shared.state_cells`

A cell's number is computed from its entity's number, so the layout of thousands of
backends is made in milliseconds.

Never: holds a value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from relay.shared.entities import KINDS, Entities, Key, Kind, Series

# The first cells of every row.
HEARTBEAT_MS, PID, SLOT, GENERATION, PHASE, CPU_US, RESIDENT_BYTES, UPDATE = range(8)
RESERVED_CELLS = 8

Group = Literal["gauges", "counters", "states"]


@dataclass(frozen=True, slots=True)
class _SeriesCells:
    """The cells of all series of one name, for each entity of a kind.

    `width` is the number of cells that an entity has in this group. `offsets` are by
    the labels that follow the entity's own.
    """

    kind: Kind
    group: Group
    width: int
    offsets: dict[Key, int]


def _series_cells() -> Iterator[tuple[str, _SeriesCells]]:
    groups: tuple[Group, ...] = ("gauges", "counters", "states")
    for kind in KINDS.values():
        for group in groups:
            series: tuple[Series, ...] = getattr(kind, group)
            for name in dict.fromkeys(each.name for each in series):
                offsets = {
                    each.labels: offset for offset, each in enumerate(series) if each.name == name
                }
                yield name, _SeriesCells(kind, group, len(series), offsets)


_SERIES_CELLS = dict(_series_cells())


@dataclass(frozen=True, slots=True)
class Span:
    """The consecutive cells of one kind in a row: `width` cells for each entity."""

    kind: Kind
    start: int
    width: int
    count: int

    @property
    def stop(self) -> int:
        """The first cell after the span."""
        return self.start + self.width * self.count


class Layout:
    """The cells of one generation.

    `bases` has the first state cell of each entity, by kind.
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
        """The cell of a series: among the states if it is a state, otherwise in a row.

        Raises KeyError when the generation does not have the series.
        """
        cells = _SERIES_CELLS[name]
        kind = cells.kind
        number = self._numbers[kind.name][labels[: kind.key]]
        offset = cells.offsets[labels[kind.key :]]
        if cells.group == "states":
            return self.bases[kind.name][number] + offset
        return self._starts[cells.group][kind.name] + number * cells.width + offset


def _spans(entities: Entities, group: Group, at: int) -> Iterator[Span]:
    for kind in KINDS.values():
        width = len(getattr(kind, group))
        if width:
            span = Span(kind, at, width, len(entities.get(kind.name, ())))
            yield span
            at = span.stop


def kind_of(name: str) -> Kind:
    """The kind of the entities that have a series of this name. Raises KeyError."""
    return _SERIES_CELLS[name].kind


def counter_offset(name: str, *labels: str) -> int:
    """The offset of a counter among those of its entity. Raises KeyError.

    `labels` are those that follow the entity's own.
    """
    return _SERIES_CELLS[name].offsets[labels]


def state_offset(name: str, *labels: str) -> tuple[Kind, int]:
    """The kind that a state belongs to, and its offset in an entity's block.

    Raises KeyError.
    """
    cells = _SERIES_CELLS[name]
    return cells.kind, cells.offsets[labels]


def name_series(series: Sequence[Series], keys: Sequence[Key]) -> list[Series]:
    """The series of these entities with all labels, in the order of their cells."""
    return [Series(each.name, key + each.labels) for key in keys for each in series]
