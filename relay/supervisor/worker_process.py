"""One worker process, as the supervisor knows it.

Never: signals a worker (that is `relay.supervisor.workers`).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from relay.core.fleet_view import Phase, Worker
from relay.shared.replies import WorkerStatus
from relay.shared.scoreboard import (
    HEARTBEAT_MS,
    PHASE,
    PHASE_DRAINING,
    PHASE_SERVING,
    Scoreboard,
)
from relay.shared.update_channel import UpdateSender
from relay.supervisor.process import ExitStatus
from relay.supervisor.taken_rows import TakenRow

PHASES = {PHASE_SERVING: Phase.SERVING, PHASE_DRAINING: Phase.DRAINING}
FUTURE_S = 1.0  # a heartbeat further in the future is not valid


@dataclass(slots=True)
class WorkerProcess:
    """What the supervisor knows of one worker, besides what the worker's row says."""

    pid: int
    slot: int
    generation: int
    scoreboard: Scoreboard
    row: int
    started_at: float
    sender: UpdateSender
    drain_timeout_s: float
    stop_requested_at: float | None = None
    aborted_at: float | None = None
    killed: bool = False
    quitting: bool = False
    drain_until_at: float = math.inf
    replaced: bool = False
    taken: TakenRow | None = None  # of a worker of the version before an upgrade
    deaf: bool = False  # such a worker that does not understand this version's updates

    def __str__(self) -> str:
        return f"worker {self.slot} (pid {self.pid})"

    @property
    def connections(self) -> int:
        """How many clients it reports."""
        cell = self.scoreboard.layout.cell("relay_connections_active")
        return max(0, int(self.scoreboard.row(self.row)[cell]))

    def view(self, now: float) -> Worker:
        """The worker as the plan sees it.

        A worker that drains without the supervisor's request got SIGTERM from another
        process. It counts as requested, so the slot gets another worker.
        """
        if self.taken is not None:
            self.taken.copy.copy_reserved()
        cells = self.scoreboard.row(self.row)
        phase = PHASES.get(cells[PHASE], Phase.STARTING)
        if phase is Phase.DRAINING and self.stop_requested_at is None:
            self.stop_requested_at = now
            self.drain_until_at = now + self.drain_timeout_s
        beat_at = cells[HEARTBEAT_MS] / 1000
        if beat_at > now + FUTURE_S:
            beat_at = 0.0
        return Worker(
            pid=self.pid,
            slot=self.slot,
            generation=self.generation,
            phase=phase,
            started_at=self.started_at,
            beat_at=beat_at,
            stop_requested_at=self.stop_requested_at,
            aborted_at=self.aborted_at,
            killed=self.killed,
            quitting=self.quitting,
            drain_until_at=self.drain_until_at,
            replaced=self.replaced,
        )

    def limit_drain(self, drain_s: float) -> None:
        """Let a replaced worker drain this long since it was told to; 0 is no limit.

        A worker of the version before an upgrade does not see it: its memory cannot be
        written to.
        """
        if self.deaf:
            return
        from_at, now = self.stop_requested_at, time.monotonic()
        until_at = max(now, (from_at or now) + drain_s) if drain_s else math.inf
        self.drain_until_at = until_at
        if self.taken is None:
            self.scoreboard.limit_drain(replaced_until_at=until_at)

    def status(self, now: float) -> WorkerStatus:
        """The worker for `relay status`; ages in seconds."""
        worker = self.view(now)
        left_s = worker.drain_until_at - now
        return {
            "slot": worker.slot,
            "pid": worker.pid,
            "generation": worker.generation,
            "phase": worker.phase.value,
            "age_s": round(now - worker.started_at, 1),
            "heartbeat_age_s": round(max(0.0, now - worker.beat_at), 1),
            "connections": self.connections,
            "drain_left_s": None if math.isinf(left_s) else round(max(0.0, left_s), 1),
        }


@dataclass(frozen=True, slots=True)
class EndedWorker:
    """A worker that was reaped, as it was seen last, and how it ended."""

    process: WorkerProcess
    last_seen: Worker
    status: ExitStatus
