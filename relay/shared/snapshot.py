"""Reads what all generations have counted, from descriptors that cannot be written.

The supervisor changes totals, rows and names under a sequence number: it is odd while that
lasts. A reader copies everything, and takes the copy when the number was even before and
is the same afterwards. Names come in a catalogue, one per view. A new view is sent to the
admin process as a message of descriptors, see `shared.view_channel`.

Never: writes; believes a cell that a worker can write.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

from relay.errors import RelayError
from relay.shared.catalogue import HOST, KINDS, Key, Series
from relay.shared.cell_layout import (
    CPU_US,
    GENERATION,
    HEARTBEAT_MS,
    PHASE,
    PID,
    RESERVED_CELLS,
    RESIDENT_BYTES,
    SLOT,
    Layout,
    name_series,
)
from relay.shared.counter_totals import COUNTED, add_counters, runs_of
from relay.shared.scoreboard import (
    CHECKER_SLOT,
    HEADER_CELLS,
    PHASE_DRAINING,
    PHASE_FREE,
    PHASE_STARTING,
    monotonic_ms,
)
from relay.shared.sealed_memory import CELL_BYTES, read_all

MAGIC = 0x52454C41590003
HEAD_CELLS = 8
SEQUENCE, VIEW, SUPERVISOR_BEAT = 1, 2, 3  # cell 0 is the magic number

PATIENCE_S = 1.0
_MOST_SLOTS = 4096
_LARGEST_PID = (1 << 31) - 1
_FUTURE_MS = 1000  # a heartbeat that is later than this from now is none


class WorkerRow(NamedTuple):
    """What a worker says of itself.

    It may say anything, so numbers that cannot be are zero.
    """

    heartbeat_ms: int
    pid: int
    slot: int
    generation: int
    phase: int
    cpu_us: int
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One consistent reading: facts, and every series' value over totals and living workers.

    `shared` are the states of the generation that serves.
    """

    facts: dict[str, Any]
    values: dict[Series, int]
    shared: dict[Series, int]
    workers: list[WorkerRow]
    supervisor_beat_ms: int


class ViewFds(NamedTuple):
    """Descriptors of one view."""

    head: int
    catalogue: int
    totals: int
    states: int
    segments: tuple[int, ...]

    def close(self) -> None:
        """All of them."""
        for fd in (self.head, self.catalogue, self.totals, self.states, *self.segments):
            os.close(fd)


class _Generation:
    """One generation: its layout, and the names of its gauges and states."""

    def __init__(self, line: bytes) -> None:
        found = json.loads(line)
        entities = {name: [tuple(key) for key in keys] for name, keys in found["entities"].items()}
        self.number: int = found["number"]
        self.rows: int = found["rows"]
        self.layout = layout = Layout(entities, found["bases"])
        self.gauges = [
            one
            for span in layout.gauges
            for one in name_series(span.kind.gauges, entities.get(span.kind.name, ()))
        ]

    def rows_of(self, fd: int) -> Iterator[array[int]]:
        """The rows that are not empty."""
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
            (Series(one.name, key + one.labels), base + offset)
            for kind in KINDS.values()
            if kind.states and kind is not HOST
            for key, base in zip(entities.get(kind.name, ()), bases[kind.name], strict=True)
            for offset, one in enumerate(kind.states)
        ]


class CatalogueCache:
    """What a reader has understood already: generations do not change, and totals only
    get more names.
    """

    def __init__(self) -> None:
        self._generations: dict[bytes, _Generation] = {}
        self._names = 0
        self.numbers: dict[str, dict[Key, int]] = {name: {} for name in COUNTED}
        self.series: dict[str, list[Series]] = {name: [] for name in COUNTED}

    def generations(self, lines: Sequence[bytes]) -> list[_Generation]:
        """As their lines in the catalogue say."""
        self._generations = {
            line: self._generations.get(line) or _Generation(line) for line in lines
        }
        return list(self._generations.values())

    def learn_names(self, lines: Sequence[bytes]) -> None:
        """The names of the totals, of which some are new."""
        for line in lines[self._names :]:
            name, found = json.loads(line)
            keys = list(map(tuple, found))
            numbers = self.numbers[name]
            numbers.update((key, number) for number, key in enumerate(keys, len(numbers)))
            self.series[name] += name_series(KINDS[name].counters, keys)
        self._names = len(lines)


class View:
    """Everything that is named. Raises RelayError when it cannot be understood."""

    def __init__(self, sources: ViewFds, known: CatalogueCache) -> None:
        self._sources = sources
        try:
            self._understand(sources, known)
        except (ValueError, LookupError, TypeError, OSError, RecursionError) as error:
            raise RelayError(
                f"the supervisor's catalogue of counters cannot be read: {error!r}; "
                "restart the relay"
            ) from None

    def _understand(self, sources: ViewFds, known: CatalogueCache) -> None:
        header, lasting, *lines = read_all(sources.catalogue).splitlines()
        found = json.loads(header)
        self.number: int = found["view"]
        self._facts = {**json.loads(lasting), **found["facts"]}
        pieces: list[int] = found["segments"]
        known.learn_names(lines[len(pieces) :])
        self._generations = known.generations(lines[: len(pieces)])
        self._series = {name: list(series) for name, series in known.series.items()}
        ends = list(accumulate(pieces))
        self._segments = [
            sources.segments[end - count : end] for count, end in zip(pieces, ends, strict=True)
        ]
        self._runs = [
            [
                (span, runs_of(one.layout.entities[span.kind.name], known.numbers[span.kind.name]))
                for span in one.layout.counters
                if span.count
            ]
            for one in self._generations
        ]
        serving = [one for one in self._generations if one.number == self._facts.get("generation")]
        chosen = serving or self._generations[-1:]
        self._states = chosen[0].states if chosen else []

    def read(self) -> tuple[Snapshot | None, str]:
        """A consistent copy, or None and why there was none just now."""
        before = self._head()
        if before[SEQUENCE] % 2:
            return (
                None,
                "the scoreboard stays locked; the supervisor seems to have died while writing it",
            )
        if before[VIEW] != self.number:
            return (
                None,
                "the supervisor has not said where its newest counters are; look at its log",
            )
        snapshot = self._copy(before[SUPERVISOR_BEAT])
        if self._head()[SEQUENCE] != before[SEQUENCE]:
            return None, "the scoreboard changes faster than it can be read"
        return snapshot, ""

    def _head(self) -> array[int]:
        head = array("q", os.pread(self._sources.head, CELL_BYTES * HEAD_CELLS, 0))
        if head[0] != MAGIC:
            raise RelayError("the file descriptor is not a relay scoreboard of this version")
        return head

    def _copy(self, beat_ms: int) -> Snapshot:
        count = sum(map(len, self._series.values()))
        totals = array("q", os.pread(self._sources.totals, CELL_BYTES * count, 0))
        sums: dict[str, list[int]] = {}
        for name, series in self._series.items():
            sums[name], totals = totals[: len(series)].tolist(), totals[len(series) :]
        values: dict[Series, int] = {}
        workers: list[WorkerRow] = []
        for generation, segments, runs in zip(
            self._generations, self._segments, self._runs, strict=True
        ):
            gauges = [0] * len(generation.gauges)
            for row in (row for fd in segments for row in generation.rows_of(fd)):
                gauges = add_counters(gauges, row[RESERVED_CELLS : generation.layout.gauges_end])
                for span, found in (
                    (span, run.cells(span.width))
                    for span, runs_of_kind in runs
                    for run in runs_of_kind
                ):
                    ours, theirs = found
                    kind = sums[span.kind.name]
                    kind[ours] = add_counters(kind[ours], row[span.start : span.stop][theirs])
                workers += _workers(row)
            for series_of_gauge, value in zip(generation.gauges, gauges, strict=True):
                values[series_of_gauge] = values.get(series_of_gauge, 0) + value
        for name, series in self._series.items():
            values.update(zip(series, sums[name], strict=True))
        return Snapshot(self._facts, values, self._read_states(), workers, beat_ms)

    def _read_states(self) -> dict[Series, int]:
        if not self._states:
            return {}
        last = max(cell for _, cell in self._states)
        cells = array("q", os.pread(self._sources.states, CELL_BYTES * (last + 1), 0))
        return {series: cells[cell] for series, cell in self._states}

    def close(self) -> None:
        """Let go of the descriptors."""
        self._sources.close()


def _workers(row: array[int]) -> Iterator[WorkerRow]:
    phase, slot, pid = row[PHASE], row[SLOT], row[PID]
    if phase == PHASE_FREE or slot == CHECKER_SLOT:
        return
    beat_ms = row[HEARTBEAT_MS]
    yield WorkerRow(
        beat_ms if 0 < beat_ms <= monotonic_ms() + _FUTURE_MS else 0,
        pid if 0 < pid <= _LARGEST_PID else 0,
        slot if 0 <= slot < _MOST_SLOTS else 0,
        row[GENERATION],
        phase if PHASE_STARTING <= phase <= PHASE_DRAINING else PHASE_STARTING,
        max(0, row[CPU_US]),
        max(0, row[RESIDENT_BYTES]),
    )
