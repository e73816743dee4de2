"""What a worker's row says about the worker itself.

Never: trusts a cell, because the worker can write it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import NamedTuple

from relay.shared.cell_layout import (
    CPU_US,
    GENERATION,
    HEARTBEAT_MS,
    PHASE,
    PID,
    RESIDENT_BYTES,
    SLOT,
)
from relay.shared.scoreboard import (
    CHECKER_SLOT,
    PHASE_DRAINING,
    PHASE_FREE,
    PHASE_STARTING,
    monotonic_ms,
)

_MOST_SLOTS = 4096
_LARGEST_PID = (1 << 31) - 1
_FUTURE_MS = 1000  # a heartbeat further in the future is not valid


class WorkerRow(NamedTuple):
    """A worker's own figures. Numbers that are not possible are replaced by zero."""

    heartbeat_ms: int
    pid: int
    slot: int
    generation: int
    phase: int
    cpu_us: int
    resident_bytes: int


def workers_in(row: array[int]) -> Iterator[WorkerRow]:
    """The worker of this row, if it has one."""
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
