"""The counters and states of one generation, for its workers and its checker.

Shared memory, eight-byte cells, one writer per cell:

    header    whether the generation has ended, and until when its workers may drain
    rows      one per living worker and one for the checker, each written by its
              process only; a free row is zero
    states    shared by all generations; any process may store: `shared.state_cells`

When no row is free, another segment of memory with rows is added.
`supervisor.scoreboards` has the scoreboards of all generations.

Never: knows about keys, sockets or metric formats; trusts a cell, because any process
of the generation may have written it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from relay.shared.cell_layout import (
    CPU_US,
    GENERATION,
    HEARTBEAT_MS,
    PHASE,
    PID,
    RESIDENT_BYTES,
    SLOT,
    UPDATE,
    Layout,
)
from relay.shared.client_rates import ClientRates
from relay.shared.sealed_memory import Cells, SealedMemory, map_for_reading
from relay.shared.state_cells import StateCells

if TYPE_CHECKING:
    from relay.config.model import Config

__all__ = [
    "CHECKER_SLOT",
    "CPU_US",
    "GENERATION",
    "HEARTBEAT_MS",
    "LIVING",
    "OVER",
    "OVERRUN",
    "PHASE",
    "PHASE_DRAINING",
    "PHASE_FREE",
    "PHASE_SERVING",
    "PHASE_STARTING",
    "PID",
    "RESIDENT_BYTES",
    "SHARED_ROW",
    "SLOT",
    "UPDATE",
    "Cells",
    "Layout",
    "Scoreboard",
    "add_to",
    "monotonic_ms",
]

HEADER_CELLS = 8
# Values of the header's first cell. OVERRUN: there are too many newer generations, so
# this one ends its sessions.
LIVING, OVERRUN, OVER = range(3)
# Further cells of the header, written by the supervisor: when the generation's workers
# must have ended, because a reload replaced them or because the relay stops. Monotonic
# milliseconds; 0 if that has not happened.
_REPLACED_UNTIL_MS, _STOP_UNTIL_MS = 1, 2
_WITHOUT_LIMIT_MS = 1 << 62
SHARED_ROW = -1
PHASE_FREE, PHASE_STARTING, PHASE_SERVING, PHASE_DRAINING = range(4)
SPARE_ROWS = 4  # for the checker, and for workers that drain while their successors serve

CHECKER_SLOT = -1  # the slot in the checker's row; the checker is not a worker


def monotonic_ms() -> int:
    """CLOCK_MONOTONIC in milliseconds, the same for every process of this machine."""
    return time.monotonic_ns() // 1_000_000


def add_to(cells: Cells, cell: int, count: int) -> None:
    """`cells[cell] += count`, for a lambda."""
    cells[cell] += count


@dataclass(frozen=True, slots=True)
class _Other:
    """The rows of another generation, for reading."""

    layout: Layout
    segments: tuple[Cells, ...]


class Scoreboard:
    """The cells of one generation.

    The supervisor makes it, and its children inherit it.
    """

    def __init__(self, number: int, layout: Layout, states: StateCells, slots: int) -> None:
        self.number = number
        self.layout = layout
        self.states = states
        self.rows = slots + SPARE_ROWS
        self.segments: list[SealedMemory] = []
        self._leased: set[int] = set()
        self._slots = slots
        self._rates: ClientRates | None = None
        self._others: list[_Other] = []
        self._add_rows()

    def _add_rows(self) -> None:
        self.segments.append(
            SealedMemory(
                f"relay-generation-{self.number}", HEADER_CELLS + self.rows * self.layout.cells
            )
        )

    # Supervisor only.

    @property
    def leased(self) -> int:
        """The number of rows in use."""
        return len(self._leased)

    def leased_rows(self) -> list[int]:
        """The rows in use."""
        return list(self._leased)

    def lease(self, slot: int) -> int:
        """Take a free row and mark it as starting.

        Raises OSError without memory for more.
        """
        row = 0
        while row in self._leased:
            row += 1
        if row >= self.rows * len(self.segments):
            self._add_rows()
        self._leased.add(row)
        cells = self.row(row)
        cells[HEARTBEAT_MS] = monotonic_ms()
        cells[PID], cells[SLOT], cells[GENERATION], cells[PHASE] = (
            0,
            slot,
            self.number,
            PHASE_STARTING,
        )
        return row

    def client_rates(self, config: Config) -> ClientRates | None:
        """The memory for per_client_rate; None if no listener has it.

        Raises OSError without memory for it.
        """
        if self._rates is None and any(each.per_client_rate for each in config.listener):
            self._rates = ClientRates(self._slots)
        return self._rates

    def release(self, row: int) -> None:
        """Free the row of an ended process. Its counters must be in the totals."""
        self.row(row)[:] = memoryview(bytes(8 * self.layout.cells)).cast("q")
        self._leased.discard(row)

    def mark(self, state: int) -> None:
        """Set LIVING, OVERRUN or OVER for this generation's and newer workers."""
        for segment in self.segments:
            segment.cells[0] = state

    def limit_drain(self, *, replaced_until_at: float = 0, stop_until_at: float = 0) -> None:
        """Set until when workers may drain; infinity is no limit, 0 is no change."""
        for cell, until_at in (
            (_REPLACED_UNTIL_MS, replaced_until_at),
            (_STOP_UNTIL_MS, stop_until_at),
        ):
            if until_at:
                self.segments[0].cells[cell] = (
                    _WITHOUT_LIMIT_MS if math.isinf(until_at) else int(until_at * 1000)
                )

    def lift_drain_limits(self) -> None:
        """No worker has a limit, because none is to drain after all."""
        self.segments[0].cells[_REPLACED_UNTIL_MS] = 0

    # Any process of the generation.

    @property
    def drain_limits_at(self) -> tuple[float, float]:
        """Until when a replaced worker, and a worker of a relay that stops, may drain.

        Infinity is no limit, 0 is not replaced or not stopping.
        """
        replaced_ms, stop_ms = self.segments[0].cells[_REPLACED_UNTIL_MS : _STOP_UNTIL_MS + 1]
        replaced_at = math.inf if replaced_ms == _WITHOUT_LIMIT_MS else replaced_ms / 1000
        return replaced_at, stop_ms / 1000

    def row(self, row: int) -> Cells:
        """The cells of one row, for `cells[i] += n`. SHARED_ROW gives the states."""
        if row == SHARED_ROW:
            return self.states.cells
        segment, number = divmod(row, self.rows)
        start = HEADER_CELLS + number * self.layout.cells
        return self.segments[segment].cells[start : start + self.layout.cells]

    def columns(self, name: str, *labels: str) -> list[Cells]:
        """The cells of a series in the rows of all workers, older generations included.

        Their sum is the value over all workers.
        """
        found = _columns(self.layout, [segment.cells for segment in self.segments], name, labels)
        for other in self._others:
            found += _columns(other.layout, other.segments, name, labels)
        return found

    @property
    def overrun(self) -> bool:
        """Whether this generation must end its sessions: too many newer ones exist."""
        return bool(self.segments[0].cells[0] == OVERRUN)

    def look_at(self, other: Scoreboard) -> None:
        """Include the rows of another generation in `columns`.

        Call it in a child while the descriptors are open. Raises OSError.
        """
        self._others.append(
            _Other(other.layout, tuple(map_for_reading(segment.fd) for segment in other.segments))
        )

    def forget_ended(self) -> bool:
        """Drop the generations that have ended. Returns whether there were any.

        If so, the caller must drop the earlier results of `columns` too.
        """
        living = [other for other in self._others if other.segments[0][0] != OVER]
        changed = len(living) < len(self._others)
        self._others = living
        return changed


def _columns(
    layout: Layout, segments: list[Cells] | tuple[Cells, ...], name: str, labels: tuple[str, ...]
) -> list[Cells]:
    try:
        cell = layout.cell(name, *labels)
    except KeyError:
        return []
    return [cells[HEADER_CELLS + cell :: layout.cells] for cells in segments]
