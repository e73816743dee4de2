"""The living workers: forks them, tells them, reaps them, and shows them to `core.fleet_plan.plan`.

Never: decides what to do; forgets to close in a child what belongs to its siblings.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from relay.core.fleet_plan import Phase, Worker
from relay.shared.scoreboard import (
    HEARTBEAT_MS,
    OVERRUN,
    PHASE,
    PHASE_DRAINING,
    PHASE_SERVING,
    PID,
    Scoreboard,
)
from relay.supervisor.privileges import Identity
from relay.supervisor.process import ExitStatus, reap, send, start_worker
from relay.supervisor.scoreboards import Scoreboards
from relay.supervisor.slot_sockets import SlotSockets
from relay.tls.contexts import Generation
from relay.worker.main import WorkerSpec

PHASES = {PHASE_SERVING: Phase.SERVING, PHASE_DRAINING: Phase.DRAINING}
FUTURE_S = 1.0  # a heartbeat that is later than this from now is none
REAPING_S = 0.02  # how long to fold the counters of the dead before the loop turns again

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Child:
    """What the supervisor knows of one worker besides what the worker says in its row."""

    pid: int
    slot: int
    generation: int
    scoreboard: Scoreboard
    row: int
    started_at: float
    stop_requested_at: float | None = None
    aborted_at: float | None = None
    killed: bool = False
    quitting: bool = False

    @property
    def connections(self) -> int:
        """How many clients it says it has."""
        return max(
            0,
            int(
                self.scoreboard.row(self.row)[
                    self.scoreboard.layout.cell("relay_connections_active")
                ]
            ),
        )


@dataclass(slots=True)
class Workers:
    """All workers of all generations. `work` runs in the child; `let_go` closes there what only the supervisor needs."""

    scoreboards: Scoreboards
    lifeline_fd: int
    work: Callable[[WorkerSpec], int | None]
    let_go: Callable[[], None]
    children: dict[int, Child] = field(default_factory=dict)

    def spawn(
        self,
        slot: int,
        generation: Generation,
        sockets: Iterable[SlotSockets],
        own: SlotSockets,
        identity: Identity,
    ) -> Child:
        """Fork a worker for a slot. `sockets` are those of every generation; the child keeps only its own. Raises OSError."""
        scoreboard = self.scoreboards.generation(generation.number)
        row = self.scoreboards.lease(scoreboard, slot)
        listeners = own.of_slot(slot)
        spec = WorkerSpec(
            slot=slot,
            row=row,
            listeners=listeners,
            generation=generation,
            scoreboard=scoreboard,
            layout=scoreboard.layout,
            lifeline_fd=self.lifeline_fd,
        )
        mine = {one for _, one in listeners}
        others = {one for each in sockets for one in each.all()} - mine

        def let_go() -> None:
            # A listening socket that stays open in a sibling would queue clients that nobody accepts.
            for one in others:
                one.close()
            self.scoreboards.enter(scoreboard)
            self.let_go()

        self.scoreboards.share_with(scoreboard)
        try:
            pid = start_worker(slot, identity, let_go, lambda: self.work(spec))
        except OSError:
            scoreboard.release(row)
            raise
        scoreboard.row(row)[PID] = pid
        child = Child(pid, slot, generation.number, scoreboard, row, time.monotonic())
        self.children[pid] = child
        log.info(
            "worker %d started",
            slot,
            extra={"slot": slot, "worker_pid": pid, "generation": generation.number},
        )
        return child

    def views(self) -> tuple[Worker, ...]:
        """The workers as the planner sees them. One that drains although nobody told it was told by somebody else: its slot needs another."""
        found = []
        now = time.monotonic()
        for child in self.children.values():
            cells = child.scoreboard.row(child.row)
            phase = PHASES.get(cells[PHASE], Phase.STARTING)
            if phase is Phase.DRAINING and child.stop_requested_at is None:
                child.stop_requested_at = now
            beat_at = cells[HEARTBEAT_MS] / 1000
            if beat_at > now + FUTURE_S:
                beat_at = 0.0
            found.append(
                Worker(
                    child.pid,
                    child.slot,
                    child.generation,
                    phase,
                    child.started_at,
                    beat_at,
                    child.stop_requested_at,
                    child.aborted_at,
                    child.killed,
                    child.quitting,
                )
            )
        return tuple(found)

    def reap(self) -> list[tuple[Child, Worker, ExitStatus]]:
        """Those that ended since the last call, with their last view; their counters are in the totals now.

        When that takes long, because there are thousands of backends, the rest is left to the next call.
        """
        ended = []
        views = {worker.pid: worker for worker in self.views()}
        until_at = time.monotonic() + REAPING_S
        for child in list(self.children.values()):
            if time.monotonic() > until_at:
                break
            end = reap(child.pid)
            if end is not None:
                del self.children[child.pid]
                self.scoreboards.fold(child.scoreboard, child.row, child.slot, end.cpu_us)
                ended.append((child, views[child.pid], end))
        return ended

    def kill_all(self) -> None:
        """SIGKILL for all, and wait for their end."""
        self.tell_all(signal.SIGKILL)
        while self.children:
            self.reap()
            time.sleep(0.002)

    def count_restart(self) -> None:
        """One more worker ended unasked."""
        self.scoreboards.count("relay_worker_restarts_total")

    def count_dropped(self, messages: int) -> None:
        """Messages of the supervisor were dropped."""
        self.scoreboards.count("relay_messages_dropped_total", messages)

    def drain(self, pid: int) -> None:
        """SIGTERM: no new connections, finish the sessions."""
        self.children[pid].stop_requested_at = time.monotonic()
        send(pid, signal.SIGTERM)

    def quit(self, pid: int) -> None:
        """SIGQUIT: end now."""
        child = self.children[pid]
        child.stop_requested_at, child.quitting = time.monotonic(), True
        send(pid, signal.SIGQUIT)

    def overrun(self, generation: int, pids: Sequence[int]) -> None:
        """SIGQUIT for workers of a generation that has to make room; they say so to their log."""
        log.warning(
            "generation %d is ended with %d sessions: more old generations drain than relay.old_generations allows; raise it, or reload less often",
            generation,
            sum(self.children[pid].connections for pid in pids),
        )
        self.scoreboards.generation(generation).mark(OVERRUN)
        for pid in pids:
            self.quit(pid)

    def abort(self, pid: int, why: str) -> None:
        """SIGABRT: print where you are, and die."""
        log.error(
            "worker %d (pid %d) hangs: %s; it gets SIGABRT, which prints where",
            self.children[pid].slot,
            pid,
            why,
        )
        self.children[pid].aborted_at = time.monotonic()
        send(pid, signal.SIGABRT)

    def kill(self, pid: int, why: str) -> None:
        """SIGKILL."""
        log.error("worker %d (pid %d) gets SIGKILL: %s", self.children[pid].slot, pid, why)
        self.children[pid].killed = True
        send(pid, signal.SIGKILL)

    def tell_all(self, number: signal.Signals) -> None:
        """One signal for every worker."""
        for pid in self.children:
            send(pid, number)

    def status(self, now: float) -> list[dict[str, Any]]:
        """The workers for `relay status`; ages in seconds."""
        return [
            {
                "slot": worker.slot,
                "pid": worker.pid,
                "generation": worker.generation,
                "phase": worker.phase.value,
                "age_s": round(now - worker.started_at, 1),
                "heartbeat_age_s": round(max(0.0, now - worker.beat_at), 1),
                "connections": self.children[worker.pid].connections,
            }
            for worker in sorted(self.views(), key=lambda w: (w.slot, w.pid))
        ]
