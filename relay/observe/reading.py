"""Reads what all generations have counted, consistently, from descriptors that cannot be written.

The supervisor changes totals, rows and names under a sequence number: it is odd while that lasts. A reader copies everything
and takes the copy when the number was even before and is the same afterwards. Names come in a catalogue, one per view. A new
view is sent to the admin process as a message of descriptors, see `Reader`.

Never: writes; believes a cell that a worker can write.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from relay.errors import RelayError
from relay.observe.layout import CPU_US, GENERATION, HEARTBEAT_MS, PHASE, PID, RESERVED_CELLS, RESIDENT_BYTES, SLOT, Layout, name_series
from relay.observe.memory import CELL_BYTES, read_all
from relay.observe.names import HOST, KINDS, Key, Series
from relay.observe.scoreboard import CHECKER_SLOT, HEADER_CELLS, PHASE_DRAINING, PHASE_FREE, PHASE_STARTING
from relay.observe.totals import COUNTED, parse_names

MAGIC = 0x52454C41590002
HEAD_CELLS = 8
SEQUENCE, VIEW, SUPERVISOR_BEAT = 1, 2, 3  # cell 0 is the magic number

MESSAGE_BYTES = 16
MOST_DESCRIPTORS = 250
PATIENCE_S = 1.0
_RETRY_S = 0.0005  # the writer holds it for microseconds
_MOST_SLOTS = 4096
_LARGEST_PID = (1 << 31) - 1


class WorkerRow(NamedTuple):
    """What a worker says of itself. It may say anything, so numbers that cannot be are zero."""

    heartbeat_ms: int
    pid: int
    slot: int
    generation: int
    phase: int
    cpu_us: int
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One consistent reading: the catalogue's facts, and every series' value over totals and living workers.

    `shared` are the states of the generation that serves.
    """

    facts: dict[str, Any]
    values: dict[Series, int]
    shared: dict[Series, int]
    workers: list[WorkerRow]
    supervisor_beat_ms: int


class Sources(NamedTuple):
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
    """One generation of a view: where its rows are, and where in the totals its counters belong."""

    def __init__(self, line: bytes, totals: dict[str, dict[Key, int]]) -> None:
        found = json.loads(line)
        things = {name: [tuple(key) for key in keys] for name, keys in found["things"].items()}
        self.number: int = found["number"]
        self.rows: int = found["rows"]
        self.layout = layout = Layout(things, found["bases"])
        self.gauges = [one for span in layout.gauges for one in name_series(span.kind.gauges, things.get(span.kind.name, ()))]
        self.positions = [
            totals[span.kind.name][key] + offset
            for span in layout.counters
            if span.count
            for key in things[span.kind.name]
            for offset in range(span.width)
        ]

    def read(self, fd: int) -> Iterator[array[int]]:
        """The rows that are not empty."""
        size = CELL_BYTES * self.layout.cells
        empty = bytes(size)
        data = os.pread(fd, size * self.rows, CELL_BYTES * HEADER_CELLS)
        for at in range(0, len(data), size):
            row = data[at : at + size]
            if row != empty:
                yield array("q", row)


class View:
    """Everything that is named. Raises RelayError when it cannot be understood."""

    def __init__(self, sources: Sources) -> None:
        try:
            self._read(sources)
        except (ValueError, KeyError, IndexError, TypeError, OSError) as error:
            raise RelayError(f"the supervisor's catalogue of counters cannot be read: {error!r}; restart the relay") from None

    def _read(self, sources: Sources) -> None:
        self._sources = sources
        header, lasting, *lines = read_all(sources.catalogue).splitlines()
        found = json.loads(header)
        self.number: int = found["view"]
        self._facts = {**json.loads(lasting), **found["facts"]}
        pieces: list[int] = found["segments"]
        names = parse_names(lines[len(pieces) :])
        self._series: list[Series] = []
        totals: dict[str, dict[Key, int]] = {}
        for name, kind in COUNTED.items():
            start = len(self._series)
            totals[name] = {key: start + number * len(kind.counters) for number, key in enumerate(names[name])}
            self._series += name_series(kind.counters, names[name])
        self._generations: list[tuple[_Generation, Sequence[int]]] = []
        at = 0
        for line, count in zip(lines, pieces, strict=False):
            self._generations.append((_Generation(line, totals), sources.segments[at : at + count]))
            at += count
        self._shared = list(self._states())

    def _states(self) -> Iterator[tuple[Series, int]]:
        """The states of the generation that serves, with their cells."""
        serving = [one for one, _ in self._generations if one.number == self._facts.get("generation")]
        for layout in (one.layout for one in serving or [one for one, _ in self._generations][-1:]):
            for kind in KINDS.values():
                if kind.states and kind is not HOST:
                    for key, base in zip(layout.things.get(kind.name, ()), layout.bases.get(kind.name, ()), strict=True):
                        for offset, one in enumerate(kind.states):
                            yield Series(one.name, key + one.labels), base + offset

    def read(self) -> tuple[Snapshot | None, str]:
        """A consistent copy, or None and why there was none just now."""
        before = self._head()
        if before[SEQUENCE] % 2:
            return None, "the scoreboard stays locked; the supervisor seems to have died while writing it"
        if before[VIEW] != self.number:
            return None, "the supervisor has not said where its newest counters are; look at its log"
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
        sums = array("q", os.pread(self._sources.totals, CELL_BYTES * len(self._series), 0)).tolist()
        values: dict[Series, int] = {}
        workers: list[WorkerRow] = []
        for generation, segments in self._generations:
            layout = generation.layout
            gauges = [0] * len(generation.gauges)
            for row in (row for fd in segments for row in generation.read(fd)):
                for cell, value in enumerate(row[RESERVED_CELLS : layout.gauges_end]):
                    if value > 0:
                        gauges[cell] += value
                for position, value in zip(generation.positions, row[layout.gauges_end :], strict=True):
                    if value > 0:
                        sums[position] += value
                workers += _workers(row)
            for series, value in zip(generation.gauges, gauges, strict=True):
                values[series] = values.get(series, 0) + value
        values.update(zip(self._series, sums, strict=True))
        return Snapshot(self._facts, values, self._read_states(), workers, beat_ms)

    def _read_states(self) -> dict[Series, int]:
        if not self._shared:
            return {}
        last = max(cell for _, cell in self._shared)
        cells = array("q", os.pread(self._sources.states, CELL_BYTES * (last + 1), 0))
        return {series: cells[cell] for series, cell in self._shared}

    def close(self) -> None:
        """Let go of the descriptors."""
        self._sources.close()


def _workers(row: array[int]) -> Iterator[WorkerRow]:
    phase, slot, pid = row[PHASE], row[SLOT], row[PID]
    if phase == PHASE_FREE or slot == CHECKER_SLOT:
        return
    yield WorkerRow(
        row[HEARTBEAT_MS],
        pid if 0 < pid <= _LARGEST_PID else 0,
        slot if 0 <= slot < _MOST_SLOTS else 0,
        row[GENERATION],
        phase if PHASE_STARTING <= phase <= PHASE_DRAINING else PHASE_STARTING,
        max(0, row[CPU_US]),
        max(0, row[RESIDENT_BYTES]),
    )


class Reader:
    """The admin process's end: each message is a view, as descriptors; the newest counts. `fd` is a socket of messages."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._view: View | None = None

    def snapshot(self, timeout_s: float = PATIENCE_S) -> Snapshot:
        """A consistent copy. Raises RelayError when there is none in time."""
        deadline = time.monotonic() + timeout_s
        why = "the supervisor has not said where its counters are"
        while True:
            self._receive()
            if self._view is not None:
                snapshot, why = self._view.read()
                if snapshot is not None:
                    return snapshot
            if time.monotonic() > deadline:
                raise RelayError(why)
            time.sleep(_RETRY_S)

    def _receive(self) -> None:
        """Take what has come; of several views only the last one."""
        newest: Sources | None = None
        with contextlib.suppress(OSError):
            while True:
                data, fds, _, _ = socket.recv_fds(self._socket, MESSAGE_BYTES, MOST_DESCRIPTORS)
                if not data or len(fds) < len(Sources._fields) - 1:
                    break
                if newest is not None:
                    newest.close()
                newest = Sources(fds[0], fds[1], fds[2], fds[3], tuple(fds[4:]))
        if newest is not None:
            before, self._view = self._view, View(newest)
            if before is not None:
                before.close()
