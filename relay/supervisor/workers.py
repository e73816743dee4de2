"""The worker processes: forks them, signals them, reaps them.

Never: decides what to do (`relay.core.fleet_plan.plan` does), or leaves a child the
files of its siblings.
"""

from __future__ import annotations

import contextlib
import logging
import math
import pickle
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from relay.core.fleet_view import Worker
from relay.core.kicks import Kick
from relay.shared.replies import WorkerStatus
from relay.shared.scoreboard import OVERRUN, PID
from relay.shared.update_channel import UpdateSender
from relay.supervisor.privileges import Identity
from relay.supervisor.process import reap, send, start_worker
from relay.supervisor.scoreboards import Scoreboards
from relay.supervisor.slot_sockets import SlotSockets
from relay.supervisor.updates import Updates
from relay.supervisor.worker_process import EndedWorker, WorkerProcess
from relay.tls.generation import Generation
from relay.worker.drain import DrainUpdate
from relay.worker.main import WorkerSpec

REAPING_S = 0.02  # how long ended workers are reaped and counted in one turn of the loop

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Workers:
    """All workers of all generations.

    `work` runs in the child. `close_in_child` closes, in the child, the files that only
    the supervisor needs.
    """

    scoreboards: Scoreboards
    lifeline_fd: int
    work: Callable[[WorkerSpec], int | None]
    close_in_child: Callable[[], None]
    updates: Updates
    kicks: tuple[Kick, ...] = ()  # of `relay kick`, for workers that are forked later
    processes: dict[int, WorkerProcess] = field(default_factory=dict)

    def spawn(
        self,
        slot: int,
        generation: Generation,
        sockets: Iterable[SlotSockets],
        own: SlotSockets,
        identity: Identity,
    ) -> None:
        """Fork a worker for a slot. Raises OSError.

        `sockets` are those of every generation; the child keeps only its slot's of
        `own`.
        """
        scoreboard = self.scoreboards.generation(generation.number)
        listeners = own.of_slot(slot)
        sender = UpdateSender()
        try:
            row = self.scoreboards.lease(scoreboard, slot)
        except OSError:
            sender.close_both()
            raise
        spec = WorkerSpec(
            slot=slot,
            row=row,
            listeners=listeners,
            generation=generation,
            scoreboard=scoreboard,
            layout=scoreboard.layout,
            lifeline_fd=self.lifeline_fd,
            update_end=sender.child_end,
            update=self.updates.number,
            reports=self.updates.reports.writer(),
            kicks=self.kicks,
            failures=self.updates.failures_of(generation.number),
            rates=scoreboard.client_rates(generation.config),
        )
        kept = {one for _, one in listeners}
        closed = {one for each in sockets for one in each.all()} - kept

        def close_in_child() -> None:
            # A listening socket that stays open here queues clients that no process
            # accepts.
            for one in closed:
                one.close()
            sender.close()
            self.scoreboards.enter(scoreboard)
            self.close_in_child()

        self.scoreboards.share_with(scoreboard)
        try:
            with spec.reports, spec.failures or contextlib.nullcontext():
                pid = start_worker(slot, identity, close_in_child, lambda: self.work(spec))
        except OSError:
            sender.close_both()
            scoreboard.release(row)
            raise
        self.updates.started(sender, generation.number)
        scoreboard.row(row)[PID] = pid
        self.processes[pid] = WorkerProcess(
            pid,
            slot,
            generation.number,
            scoreboard,
            row,
            time.monotonic(),
            sender,
            generation.config.relay.drain_timeout_s,
        )
        log.info(
            "worker %d started",
            slot,
            extra={"slot": slot, "worker_pid": pid, "generation": generation.number},
        )

    def views(self) -> tuple[Worker, ...]:
        """The workers as the plan sees them."""
        now = time.monotonic()
        return tuple(process.view(now) for process in self.processes.values())

    def reap(self) -> list[EndedWorker]:
        """Reap ended workers, and add their counters to the totals.

        With thousands of backends this takes long. Then the next call does the rest.
        """
        ended = []
        views = {worker.pid: worker for worker in self.views()}
        until_at = time.monotonic() + REAPING_S
        for process in list(self.processes.values()):
            if time.monotonic() > until_at:
                break
            status = reap(process.pid)
            if status is not None:
                del self.processes[process.pid]
                self.updates.ended(process.sender)
                if process.taken is not None:
                    process.taken.end()
                self.scoreboards.fold(process.scoreboard, process.row, process.slot, status.cpu_us)
                ended.append(EndedWorker(process, views[process.pid], status))
        return ended

    def take(self, taken: Iterable[WorkerProcess]) -> None:
        """Take over the workers of the version before an upgrade."""
        for process in taken:
            self.processes[process.pid] = process
            self.updates.taken(process.sender, process.generation)

    def copy_rows(self) -> None:
        """Copy what workers of the version before an upgrade count."""
        for process in self.processes.values():
            if process.taken is not None:
                process.taken.copy.copy()

    def kill_all(self) -> None:
        """SIGKILL for all; returns when all have ended."""
        self.signal_all(signal.SIGKILL)
        while self.processes:
            self.reap()
            time.sleep(0.002)

    def count_restart(self) -> None:
        """Count a worker that ended without being asked."""
        self.scoreboards.count("relay_worker_restarts_total")

    def replace(self, pid: int, drain_s: float) -> None:
        """SIGTERM to a worker of a generation that is not wanted any more.

        Its sessions may go on for `drain_s`; 0 is no limit.
        """
        process = self.processes[pid]
        process.stop_requested_at, process.replaced = time.monotonic(), True
        self._limit_drain(process, drain_s)
        send(pid, signal.SIGTERM)

    def limit_drains(self, drain_s: float) -> None:
        """Another `drain_s` for the workers that were replaced already."""
        for process in self.processes.values():
            if process.replaced:
                self._limit_drain(process, drain_s)

    def _limit_drain(self, process: WorkerProcess, drain_s: float) -> None:
        process.limit_drain(drain_s)
        self._tell(process, DrainUpdate(replaced_until_at=process.drain_until_at))

    def _tell(self, process: WorkerProcess, update: DrainUpdate) -> None:
        """Tell a worker of the version before an upgrade until when it may drain.

        Without memory for that, it drains as long as it knew before.
        """
        if process.taken is not None and not process.deaf:
            with contextlib.suppress(OSError):
                self.updates.send_to(process.sender, pickle.dumps(update))

    def limit_serving(self, generation: int, until_at: float) -> None:
        """Before an upgrade: how long the workers may drain after it; 0 undoes that."""
        for process in self.processes.values():
            if process.generation == generation and process.taken is None:
                process.drain_until_at = until_at or math.inf
                if until_at:
                    process.scoreboard.limit_drain(replaced_until_at=until_at)
                else:
                    process.scoreboard.lift_drain_limits()

    def drain(self, pid: int, drain_s: float) -> None:
        """SIGTERM as the relay ends: also to workers that were replaced before."""
        process = self.processes[pid]
        process.stop_requested_at, process.replaced = time.monotonic(), False
        if process.deaf:  # it knows only its own limit
            drain_s = max(drain_s, process.drain_timeout_s)
        process.drain_until_at = process.stop_requested_at + drain_s
        process.scoreboard.limit_drain(stop_until_at=process.drain_until_at)
        self._tell(process, DrainUpdate(stop_until_at=process.drain_until_at))
        send(pid, signal.SIGTERM)

    def quit(self, pid: int) -> None:
        """SIGQUIT: end now."""
        process = self.processes[pid]
        process.stop_requested_at, process.quitting = time.monotonic(), True
        send(pid, signal.SIGQUIT)

    def overrun(self, generation: int, pids: Sequence[int]) -> None:
        """SIGQUIT for a generation that has to make room.

        Its workers write that as the reason into the access log.
        """
        log.warning(
            "generation %d is ended with %d sessions: more old generations drain than"
            " relay.old_generations allows; raise it, or reload less often",
            generation,
            sum(self.processes[pid].connections for pid in pids),
        )
        self.scoreboards.generation(generation).mark(OVERRUN)
        for pid in pids:
            self.quit(pid)

    def quit_deaf(self, why: str) -> None:
        """End the workers of another version that cannot be told what has changed."""
        for process in self.processes.values():
            if process.deaf and not process.quitting:
                self.quit_unjudged(process, why)

    def quit_unjudged(self, process: WorkerProcess, why: str) -> None:
        """End a worker whose sessions cannot be judged by what is trusted now."""
        log.warning("%s is ended with %d sessions: %s", process, process.connections, why)
        self.quit(process.pid)

    def abort(self, pid: int, why: str) -> None:
        """SIGABRT: print where the worker hangs, and die."""
        process = self.processes[pid]
        log.error("%s hangs: %s; it gets SIGABRT, to make it print where", process, why)
        process.aborted_at = time.monotonic()
        send(pid, signal.SIGABRT)

    def kill(self, pid: int, why: str) -> None:
        """SIGKILL."""
        log.error("%s gets SIGKILL: %s", self.processes[pid], why)
        self.processes[pid].killed = True
        send(pid, signal.SIGKILL)

    def signal_all(self, number: signal.Signals) -> None:
        """Send one signal to every worker."""
        for pid in self.processes:
            send(pid, number)

    def status(self, now: float) -> list[WorkerStatus]:
        """The workers for `relay status`; ages in seconds."""
        processes = sorted(self.processes.values(), key=lambda one: (one.slot, one.pid))
        return [process.status(now) for process in processes]
