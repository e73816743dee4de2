"""Counters and states that all processes share: one memory mapping, eight-byte cells, one writer per cell.

Layout of the mapping (all cells signed 64-bit, native order):

    header      HEADER_CELLS cells: magic, sequence, rows, cells per row, catalogue bytes used, supervisor heartbeat
    rows        row 0 totals: the supervisor folds the rows of dead workers in, so that no counter ever goes back
                row 1 shared: plain stores of timestamps by any process (a backend's retry-until); never added to
                row 2…: one per living worker and one for the checker, each written by its process alone
    catalogue   JSON: which cell is which series, and facts the scraper needs

A reader takes a consistent copy with the sequence number (odd while the supervisor writes header, totals or catalogue).
A worker's own additions are single eight-byte stores and need no lock.

Never: knows what a key, a socket or a metric format is.
"""

from __future__ import annotations

import json
import mmap
import os
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

from relay.errors import RelayError
from relay.observe.names import FAMILIES, RESOLVED, SHARED, SLOT_CPU_US, Series

MAGIC = 0x52454C41590001
HEADER_CELLS = 16
CATALOGUE_BYTES = 2 * 1024 * 1024
_SEQUENCE, _ROWS, _CELLS, _USED, _SUPERVISOR_BEAT = 1, 2, 3, 4, 5

TOTALS_ROW, SHARED_ROW, FIRST_WORKER_ROW = 0, 1, 2

# The first cells of every worker row.
HEARTBEAT_MS, PID, SLOT, GENERATION, PHASE, CPU_US, RESIDENT_BYTES = range(7)
RESERVED_CELLS = 8
PHASE_FREE, PHASE_STARTING, PHASE_SERVING, PHASE_DRAINING = range(4)

CHECKER_SLOT = -1  # of the checker's row: it counts like a worker and is none

Cells = Any  # memoryview of format "q"; typed Any because typeshed makes indexing it slow to read


class ScoreboardFullError(RelayError):
    """More series or rows than the mapping was made for."""


def monotonic_ms() -> int:
    """CLOCK_MONOTONIC in milliseconds, the same for every process of this machine."""
    return time.monotonic_ns() // 1_000_000


def add_to(cells: Cells, cell: int, count: int) -> None:
    """`cells[cell] += count`, where an expression is wanted."""
    cells[cell] += count


class Layout:
    """Which cell of a row belongs to which series. Only grows, so that a cell keeps its meaning across reloads."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._cells: dict[Series, int] = {}

    def add(self, series: Series) -> int:
        """The series' cell, a new one when it has none. Raises ScoreboardFullError."""
        cell = self._cells.get(series)
        if cell is None:
            cell = RESERVED_CELLS + len(self._cells)
            if cell >= self.capacity:
                raise ScoreboardFullError(f"the scoreboard has {self.capacity} cells and all are used by this and earlier configurations; restart to make a larger one")
            self._cells[series] = cell
        return cell

    def cell(self, name: str, *labels: str) -> int:
        """The cell of a series that was added before. Raises KeyError."""
        return self._cells[Series(name, labels)]

    def items(self) -> list[tuple[Series, int]]:
        """All series with their cells, in the order they were added."""
        return list(self._cells.items())


class WorkerRow(NamedTuple):
    """What a worker says of itself."""

    heartbeat_ms: int
    pid: int
    slot: int
    generation: int
    phase: int
    cpu_us: int
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One consistent reading: the catalogue's facts, and every series' value summed over totals and living workers."""

    facts: dict[str, Any]
    values: dict[Series, int]
    shared: dict[Series, int]
    workers: list[WorkerRow]
    supervisor_beat_ms: int


class Scoreboard:
    """The mapping. `create` in the supervisor; forked workers inherit it; the admin process opens its file descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, 0)
        self._all: Cells = memoryview(self._map).cast("q")
        if self._all[0] != MAGIC:
            raise RelayError("the file descriptor is not a relay scoreboard of this version")
        self.rows = self._all[_ROWS]
        self.cells_per_row = self._all[_CELLS]
        self._catalogue_at = 8 * (HEADER_CELLS + self.rows * self.cells_per_row)

    @classmethod
    def create(cls, workers: int, cells_per_row: int) -> Scoreboard:
        """Make a zeroed mapping with room for `workers` living workers at once."""
        rows = FIRST_WORKER_ROW + workers
        fd = os.memfd_create("relay-scoreboard")
        os.ftruncate(fd, 8 * (HEADER_CELLS + rows * cells_per_row) + CATALOGUE_BYTES)
        header = b"".join(value.to_bytes(8, "little") for value in (MAGIC, 0, rows, cells_per_row, 0, 0))
        os.pwrite(fd, header, 0)
        return cls(fd)

    def row(self, row: int) -> Cells:
        """The cells of one row: `cells[i] += n` is the whole cost of counting."""
        start = HEADER_CELLS + row * self.cells_per_row
        return self._all[start : start + self.cells_per_row]

    def column(self, cell: int) -> Cells:
        """One cell of all workers' rows, to be added up: rows of nobody are zero."""
        start = HEADER_CELLS + FIRST_WORKER_ROW * self.cells_per_row
        return self._all[start + cell : start + (self.rows - FIRST_WORKER_ROW) * self.cells_per_row : self.cells_per_row]

    # Supervisor only.

    def lease(self, slot: int, generation: int) -> int:
        """A free worker row, marked as starting. Raises ScoreboardFullError."""
        for row in range(FIRST_WORKER_ROW, self.rows):
            cells = self.row(row)
            if cells[PHASE] == PHASE_FREE:
                cells[HEARTBEAT_MS] = monotonic_ms()
                cells[PID], cells[SLOT], cells[GENERATION], cells[PHASE] = 0, slot, generation, PHASE_STARTING
                return row
        raise ScoreboardFullError(f"all {self.rows - FIRST_WORKER_ROW} worker rows are in use by workers that are still draining; wait for them, or shorten relay.drain_timeout_s")

    def fold(self, row: int, layout: Layout, cpu_us: int = 0) -> None:
        """Add a dead worker's counters to the totals and free its row. Gauges of a dead worker vanish with it."""
        cells, totals = self.row(row), self.row(TOTALS_ROW)
        self._all[_SEQUENCE] += 1
        for series, cell in layout.items():
            family = FAMILIES.get(series.name)
            if family is not None and family.kind != "gauge":
                totals[cell] += cells[cell]
        if cpu_us:
            totals[layout.add(Series(SLOT_CPU_US, (str(cells[SLOT]),)))] += cpu_us
        for cell in range(self.cells_per_row):
            cells[cell] = 0
        self._all[_SEQUENCE] += 1

    def publish(self, layout: Layout, facts: dict[str, Any]) -> None:
        """Write the catalogue for the scraper. `facts` must be JSON; see `observe.metrics` for its keys. Raises ScoreboardFullError."""
        catalogue = json.dumps({"cells": [[s.name, list(s.labels), cell] for s, cell in layout.items() if s.name != RESOLVED], "facts": facts}).encode()
        if len(catalogue) > CATALOGUE_BYTES:
            raise ScoreboardFullError(f"the catalogue of metrics needs {len(catalogue)} bytes, there is room for {CATALOGUE_BYTES}")
        self._all[_SEQUENCE] += 1
        self._map[self._catalogue_at : self._catalogue_at + len(catalogue)] = catalogue
        self._all[_USED] = len(catalogue)
        self._all[_SEQUENCE] += 1

    def beat(self) -> None:
        """The supervisor's sign of life."""
        self._all[_SUPERVISOR_BEAT] = monotonic_ms()

    # Any process.

    def snapshot(self, timeout_s: float = 1.0) -> Snapshot:
        """A consistent copy. Raises RelayError when the supervisor died in the middle of a write."""
        deadline = time.monotonic() + timeout_s
        while True:
            before = self._all[_SEQUENCE]
            if before % 2 == 0:
                raw = bytes(self._map)
                if self._all[_SEQUENCE] == before:
                    return self._decode(raw)
            if time.monotonic() > deadline:
                raise RelayError("the scoreboard stays locked; the supervisor seems to have died while writing it")
            time.sleep(0.0005)  # the writer holds it for microseconds

    def _decode(self, raw: bytes) -> Snapshot:
        cells: Cells = memoryview(raw)[: self._catalogue_at].cast("q")
        used = cells[_USED]
        catalogue = json.loads(raw[self._catalogue_at : self._catalogue_at + used]) if used else {"cells": [], "facts": {}}
        starts = [HEADER_CELLS + row * self.cells_per_row for row in range(self.rows)]
        live = [s for s in starts[FIRST_WORKER_ROW:] if cells[s + PHASE] != PHASE_FREE]
        values: dict[Series, int] = {}
        shared: dict[Series, int] = {}
        for name, labels, cell in catalogue["cells"]:
            series = Series(name, tuple(labels))
            if name in SHARED:
                shared[series] = cells[starts[SHARED_ROW] + cell]
            else:
                values[series] = cells[starts[TOTALS_ROW] + cell] + sum(cells[s + cell] for s in live)
        return Snapshot(
            facts=catalogue["facts"],
            values=values,
            shared=shared,
            workers=[WorkerRow(*cells[s : s + len(WorkerRow._fields)]) for s in live if cells[s + SLOT] != CHECKER_SLOT],
            supervisor_beat_ms=cells[_SUPERVISOR_BEAT],
        )
