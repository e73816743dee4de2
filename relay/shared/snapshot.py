"""Reads the counters of all generations, through descriptors that cannot be written.

A sequence lock keeps a copy consistent: the supervisor makes the sequence number odd
while it changes totals, rows or names. A reader copies everything, and uses the copy if
the number was even before and is unchanged afterwards. Each view has a catalogue with
the names. `shared.view_channel` carries the views to the admin process.

Never: writes; trusts a cell that a worker can write.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from relay.errors import RelayError
from relay.shared.addresses import NameState, read_name
from relay.shared.cell_layout import (
    RESERVED_CELLS,
    Layout,
    name_series,
)
from relay.shared.counter_totals import COUNTED, add_counters, runs_of
from relay.shared.entities import HOST, KINDS, RESOLVED_CELLS, ROUTE, Key, Series
from relay.shared.route_series import route_series
from relay.shared.scoreboard import (
    HEADER_CELLS,
)
from relay.shared.sealed_memory import CELL_BYTES, read_all
from relay.shared.worker_row import WorkerRow, workers_in

MAGIC = 0x52454C41590003
HEAD_CELLS = 8
# Cells of the head. Cell 0 is MAGIC.
SEQUENCE, VIEW, SUPERVISOR_BEAT = 1, 2, 3

PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A consistent copy of facts and values. Values include totals and living workers.

    `states` has the state cells of the generation that serves, `names` the names in the
    addresses of its backends.
    """

    facts: dict[str, Any]
    values: dict[Series, int]
    states: dict[Series, int]
    workers: list[WorkerRow]
    supervisor_beat_ms: int
    names: dict[str, NameState] = field(default_factory=dict)


class ViewFds(NamedTuple):
    """The descriptors of one view."""

    head: int
    catalogue: int
    totals: int
    states: int
    segments: tuple[int, ...]

    def close(self) -> None:
        """Close all descriptors."""
        for fd in (self.head, self.catalogue, self.totals, self.states, *self.segments):
            os.close(fd)


class _Generation:
    """One generation, from its line in the catalogue: its layout, gauges and states."""

    def __init__(self, line: bytes) -> None:
        found = json.loads(line)
        entities = {name: [tuple(key) for key in keys] for name, keys in found["entities"].items()}
        self.number: int = found["number"]
        self.rows: int = found["rows"]
        self.layout = layout = Layout(entities, found["bases"])
        self.gauges = [
            series
            for span in layout.gauges
            for series in name_series(span.kind.gauges, entities.get(span.kind.name, ()))
        ]

    def rows_of(self, fd: int) -> Iterator[array[int]]:
        """The rows in use."""
        size = CELL_BYTES * self.layout.cells
        empty = bytes(size)
        data = os.pread(fd, size * self.rows, CELL_BYTES * HEADER_CELLS)
        for at in range(0, len(data), size):
            row = data[at : at + size]
            if row != empty:
                yield array("q", row)

    @cached_property
    def states(self) -> list[tuple[Series, int]]:
        """The states of its entities, with their cells."""
        entities, bases = self.layout.entities, self.layout.bases
        return [
            (Series(state.name, key + state.labels), base + offset)
            for kind in KINDS.values()
            if kind.states and kind is not HOST
            for key, base in zip(entities.get(kind.name, ()), bases[kind.name], strict=True)
            for offset, state in enumerate(kind.states)
        ]

    @cached_property
    def names(self) -> list[tuple[str, int]]:
        """The names in the addresses of its backends, with their first cells."""
        keys, bases = self.layout.entities.get(HOST.name, ()), self.layout.bases[HOST.name]
        return [(key[0], base) for key, base in zip(keys, bases, strict=True)]


class CatalogueCache:
    """The parsed parts of catalogues, which the next catalogue has too.

    A generation's line does not change, and the totals only get more names.
    """

    def __init__(self) -> None:
        self._generations: dict[bytes, _Generation] = {}
        self._lines_parsed = 0
        self.numbers: dict[str, dict[Key, int]] = {name: {} for name in COUNTED}
        self.series: dict[str, list[Series]] = {name: [] for name in COUNTED}  # but of routes
        self.routes: list[Key] = []

    def generations(self, lines: Sequence[bytes]) -> list[_Generation]:
        """The generations of these catalogue lines."""
        self._generations = {
            line: self._generations.get(line) or _Generation(line) for line in lines
        }
        return list(self._generations.values())

    def add_names(self, lines: Sequence[bytes]) -> None:
        """Parse those lines with names of totals that are new."""
        for line in lines[self._lines_parsed :]:
            name, found = json.loads(line)
            keys = list(map(tuple, found))
            numbers = self.numbers[name]
            numbers.update((key, number) for number, key in enumerate(keys, len(numbers)))
            if name == ROUTE.name:
                self.routes += keys
            else:
                self.series[name] += name_series(KINDS[name].counters, keys)
        self._lines_parsed = len(lines)


class View:
    """One view of the scoreboard. Raises RelayError when its catalogue is not valid."""

    def __init__(self, fds: ViewFds, cache: CatalogueCache) -> None:
        self._fds = fds
        try:
            self._parse(fds, cache)
        except (ValueError, LookupError, TypeError, OSError, RecursionError) as error:
            raise RelayError(
                f"the supervisor's catalogue of counters cannot be read: {error!r}; "
                "restart the relay"
            ) from None

    def _parse(self, fds: ViewFds, cache: CatalogueCache) -> None:
        header, lasting, *lines = read_all(fds.catalogue).splitlines()
        found = json.loads(header)
        self.number: int = found["view"]
        self._facts = {**json.loads(lasting), **found["facts"]}
        counts: list[int] = found["segments"]  # of each generation
        cache.add_names(lines[len(counts) :])
        self._generations = cache.generations(lines[: len(counts)])
        self._series = {name: list(series) for name, series in cache.series.items()}
        self._routes = list(cache.routes)
        ends = list(accumulate(counts))
        self._segments = [
            fds.segments[end - count : end] for count, end in zip(counts, ends, strict=True)
        ]
        self._runs = [
            [
                (
                    span,
                    runs_of(each.layout.entities[span.kind.name], cache.numbers[span.kind.name]),
                )
                for span in each.layout.counters
                if span.count
            ]
            for each in self._generations
        ]
        number = self._facts.get("generation")
        serving = [each for each in self._generations if each.number == number]
        with_states = serving or self._generations[-1:]
        self._serving = with_states[0] if with_states else None

    def read(self, *, routes: bool) -> tuple[Snapshot | None, str]:
        """A consistent copy; or None, and why there is none at the moment.

        The counters of `routes` take most of the time.
        """
        before = self._head()
        if before[SEQUENCE] % 2:
            return None, "the scoreboard stays locked; the supervisor probably died while it wrote"
        if before[VIEW] != self.number:
            return None, "the supervisor has not sent its newest view; look at its log"
        snapshot = self._copy(before[SUPERVISOR_BEAT], routes=routes)
        if self._head()[SEQUENCE] != before[SEQUENCE]:
            return None, "the scoreboard changes faster than it can be read"
        return snapshot, ""

    def _head(self) -> array[int]:
        head = array("q", os.pread(self._fds.head, CELL_BYTES * HEAD_CELLS, 0))
        if head[0] != MAGIC:
            raise RelayError("the file descriptor is not a relay scoreboard of this version")
        return head

    def _copy(self, beat_ms: int, *, routes: bool) -> Snapshot:
        counts = {name: len(series) for name, series in self._series.items()}
        counts[ROUTE.name] = len(self._routes) * len(ROUTE.counters)
        totals = os.pread(self._fds.totals, CELL_BYTES * sum(counts.values()), 0)
        ends = [CELL_BYTES * end for end in accumulate(counts.values(), initial=0)]
        sums = {
            name: array("q", totals[at:end]).tolist()
            for name, (at, end) in zip(counts, pairwise(ends), strict=True)
        }
        values: dict[Series, int] = {}
        workers: list[WorkerRow] = []
        for generation, segments, runs in zip(
            self._generations, self._segments, self._runs, strict=True
        ):
            gauges = [0] * len(generation.gauges)
            for row in (row for fd in segments for row in generation.rows_of(fd)):
                gauges = add_counters(gauges, row[RESERVED_CELLS : generation.layout.gauges_end])
                for span, runs_of_kind in runs:
                    if span.kind is ROUTE and not routes:
                        continue
                    sums_of_kind, counters = sums[span.kind.name], row[span.start : span.stop]
                    for run in runs_of_kind:
                        in_sums, in_row = run.cells(span.width)
                        sums_of_kind[in_sums] = add_counters(
                            sums_of_kind[in_sums], counters[in_row]
                        )
                workers += workers_in(row)
            for gauge, value in zip(generation.gauges, gauges, strict=True):
                values[gauge] = values.get(gauge, 0) + value
        for name, series in self._series.items():
            if name != ROUTE.name:
                values.update(zip(series, sums[name], strict=True))
        if routes:
            values.update(route_series(self._routes, sums[ROUTE.name]))
        states, names = self._read_states()
        return Snapshot(self._facts, values, states, workers, beat_ms, names)

    def _read_states(self) -> tuple[dict[Series, int], dict[str, NameState]]:
        if self._serving is None:
            return {}, {}
        states, names = self._serving.states, self._serving.names
        end = max(
            max((cell + 1 for _, cell in states), default=0),
            max((first + RESOLVED_CELLS for _, first in names), default=0),
        )
        cells = array("q", os.pread(self._fds.states, CELL_BYTES * end, 0))
        shared = memoryview(cells)
        return (
            {series: cells[cell] for series, cell in states},
            {name: read_name(shared, first) for name, first in names},
        )

    def close(self) -> None:
        """Close the descriptors."""
        self._fds.close()
