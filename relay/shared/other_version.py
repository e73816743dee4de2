"""Counters of another version of the relay, which may count other things.

At an upgrade, the program is replaced while workers of the version before go on. Their
rows have the cells of that version, and the totals are of its counters. The old version
describes both by name, and the new one copies what it knows.

Never: trusts a cell; counts a name that this version does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from relay.shared.cell_layout import RESERVED_CELLS, Layout, Span
from relay.shared.entities import KINDS, Entities, Key, Kind, Series
from relay.shared.sealed_memory import Cells

Description = Mapping[str, Any]  # of JSON types


def describe_layout(layout: Layout) -> dict[str, Any]:
    """The cells of a row, by name."""
    groups = (("gauges", layout.gauges), ("counters", layout.counters))
    return {
        "cells": layout.cells,
        "entities": {name: [list(key) for key in keys] for name, keys in layout.entities.items()},
        **{
            group: {
                span.kind.name: {"start": span.start, "series": names_of(span.kind, group)}
                for span in spans
            }
            for group, spans in groups
        },
    }


def names_of(kind: Kind, group: str) -> list[list[Any]]:
    """The series of a kind as JSON."""
    series: Sequence[Series] = getattr(kind, group)
    return [[each.name, list(each.labels)] for each in series]


def known_entities(found: Mapping[str, Sequence[Sequence[str]]]) -> Entities:
    """The entities whose kind this version has."""
    return {
        kind.name: [tuple(key) for key in found.get(kind.name, ()) if len(key) == kind.key]
        for kind in KINDS.values()
    }


class RowCopy:
    """Copies one row of the other version into a row of this one's layout.

    The layout must have been made of `known_entities`.
    """

    def __init__(
        self, described: Description, layout: Layout, source: Cells, target: Cells
    ) -> None:
        self._source, self._target = source, target
        self._slices = [
            *_slices(described["gauges"], layout.gauges, "gauges"),
            *_slices(described["counters"], layout.counters, "counters"),
        ]

    def copy_reserved(self) -> None:
        """Copy the first cells: heartbeat and phase."""
        self._target[:RESERVED_CELLS] = self._source[:RESERVED_CELLS]

    def copy(self) -> None:
        """Copy everything."""
        self.copy_reserved()
        for there, here in self._slices:
            self._target[here] = self._source[there]


def _slices(
    described: Description, spans: Sequence[Span], group: str
) -> Iterator[tuple[slice, slice]]:
    for span in spans:
        other = described.get(span.kind.name)
        if other is None or not span.count:
            continue
        for number, position in pairs(other["series"], names_of(span.kind, group)):
            width = len(other["series"])
            start = other["start"] + number
            yield (
                slice(start, start + width * (span.count - 1) + 1, width),
                slice(span.start + position, span.stop, span.width),
            )


def pairs(others: Sequence[Any], own: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """The positions of each series that both versions have."""
    positions = {_key(name): position for position, name in enumerate(own)}
    for number, name in enumerate(others):
        position = positions.get(_key(name))
        if position is not None:
            yield number, position


def _key(name: Sequence[Any]) -> tuple[str, Key]:
    return name[0], tuple(name[1])
