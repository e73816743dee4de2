"""The living workers: forks them, tells them, reaps them, and shows them to `core.fleet.plan`.

Never: decides what to do; forgets to close in a child what belongs to its siblings.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from relay.core.fleet import Phase, Worker
from relay.observe.scoreboard import FIRST_WORKER_ROW, HEARTBEAT_MS, PHASE, PHASE_DRAINING, PHASE_FREE, PHASE_SERVING, PID, TOTALS_ROW, Layout, Scoreboard
from relay.supervisor.privileges import Identity
from relay.supervisor.process import Ended, reap, send, start_worker
from relay.supervisor.slots import SlotSockets
from relay.tls.contexts import Generation
from relay.worker.main import WorkerSpec

PHASES = {PHASE_SERVING: Phase.SERVING, PHASE_DRAINING: Phase.DRAINING}

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Child:
    """What the supervisor knows of one worker besides what the worker says in its row."""

    pid: int
    slot: int
    generation: int
    row: int
    started_at: float
    told_at: float | None = None
    aborted_at: float | None = None
    killed: bool = False
    quitting: bool = False


@dataclass(slots=True)
class Crew:
    """All workers of all generations. `work` runs in the child; `let_go` closes there what only the supervisor needs."""

    board: Scoreboard
    layout: Layout
    lifeline_fd: int
    work: Callable[[WorkerSpec], int | None]
    let_go: Callable[[], None]
    children: dict[int, Child] = field(default_factory=dict)

    def spawn(self, slot: int, generation: Generation, sockets: Iterable[SlotSockets], own: SlotSockets, identity: Identity) -> Child:
        """Fork a worker for a slot. `sockets` are those of every generation; the child keeps only its own. Raises OSError, ScoreboardFullError."""
        row = self.board.lease(slot, generation.number)
        listeners = own.of_slot(slot)
        spec = WorkerSpec(slot=slot, row=row, listeners=listeners, generation=generation, board=self.board, layout=self.layout, lifeline_fd=self.lifeline_fd)
        mine = {one for _, one in listeners}
        others = {one for each in sockets for one in each.all()} - mine

        def let_go() -> None:
            # A listening socket that stays open in a sibling would queue clients that nobody accepts.
            for one in others:
                one.close()
            self.let_go()

        try:
            pid = start_worker(slot, identity, let_go, lambda: self.work(spec))
        except OSError:
            self.board.fold(row, self.layout)
            raise
        self.board.row(row)[PID] = pid
        child = Child(pid, slot, generation.number, row, time.monotonic())
        self.children[pid] = child
        log.info("worker %d started", slot, extra={"slot": slot, "worker_pid": pid, "generation": generation.number})
        return child

    def views(self) -> tuple[Worker, ...]:
        """The workers as the planner sees them. One that drains although nobody told it was told by somebody else: its slot needs another."""
        found = []
        for child in self.children.values():
            cells = self.board.row(child.row)
            phase = PHASES.get(cells[PHASE], Phase.STARTING)
            if phase is Phase.DRAINING and child.told_at is None:
                child.told_at = time.monotonic()
            beat_at = cells[HEARTBEAT_MS] / 1000
            found.append(
                Worker(child.pid, child.slot, child.generation, phase, child.started_at, beat_at, child.told_at, child.aborted_at, child.killed, child.quitting)
            )
        return tuple(found)

    def reap(self) -> list[tuple[Child, Worker, Ended]]:
        """Those that ended since the last call, with their last view; their counters are in the totals now."""
        ended = []
        views = {worker.pid: worker for worker in self.views()}
        for child in list(self.children.values()):
            end = reap(child.pid)
            if end is not None:
                del self.children[child.pid]
                self.board.fold(child.row, self.layout, end.cpu_us)
                ended.append((child, views[child.pid], end))
        return ended

    def wait(self) -> None:
        """Wait for the end of those that were killed."""
        while self.children:
            self.reap()
            time.sleep(0.002)

    def free_rows(self) -> int:
        """How many more workers the scoreboard has room for."""
        return sum(1 for row in range(FIRST_WORKER_ROW, self.board.rows) if self.board.row(row)[PHASE] == PHASE_FREE)

    def count_restart(self) -> None:
        """One more worker ended unasked."""
        self.board.row(TOTALS_ROW)[self.layout.cell("relay_worker_restarts_total")] += 1

    def count_dropped(self, messages: int) -> None:
        """Messages of the supervisor were dropped."""
        self.board.row(TOTALS_ROW)[self.layout.cell("relay_messages_dropped_total")] += messages

    def drain(self, pid: int) -> None:
        """SIGTERM: no new connections, finish the sessions."""
        self.children[pid].told_at = time.monotonic()
        send(pid, signal.SIGTERM)

    def quit(self, pid: int) -> None:
        """SIGQUIT: end now."""
        child = self.children[pid]
        child.told_at, child.quitting = time.monotonic(), True
        send(pid, signal.SIGQUIT)

    def abort(self, pid: int) -> None:
        """SIGABRT: print where you are, and die."""
        self.children[pid].aborted_at = time.monotonic()
        send(pid, signal.SIGABRT)

    def kill(self, pid: int) -> None:
        """SIGKILL."""
        self.children[pid].killed = True
        send(pid, signal.SIGKILL)

    def tell_all(self, number: signal.Signals) -> None:
        """One signal for every worker."""
        for pid in self.children:
            send(pid, number)

    def status(self, now: float) -> list[dict[str, Any]]:
        """The workers for `relay status`; ages in seconds."""
        active = self.layout.cell("relay_connections_active")
        return [
            {
                "slot": worker.slot,
                "pid": worker.pid,
                "generation": worker.generation,
                "phase": worker.phase.value,
                "age_s": round(now - worker.started_at, 1),
                "heartbeat_age_s": round(max(0.0, now - worker.beat_at), 1),
                "connections": self.board.row(self.children[worker.pid].row)[active],
            }
            for worker in sorted(self.views(), key=lambda w: (w.slot, w.pid))
        ]
