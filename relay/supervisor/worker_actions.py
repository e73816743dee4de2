"""Carries out single actions on workers and slots, for `relay.supervisor.fleet`.

Never: decides; every action was planned by `relay.core.fleet_plan.plan`.
"""

from __future__ import annotations

import logging

from relay.core.fleet_actions import (
    Abort,
    Action,
    Close,
    Drain,
    Kill,
    Overrun,
    Park,
    Quit,
    Reopen,
    Spawn,
)
from relay.core.fleet_view import Rules, Shutdown
from relay.errors import StartupError
from relay.supervisor.generations import Generations
from relay.supervisor.prepared import Prepared
from relay.supervisor.slot_sockets import SlotSockets
from relay.supervisor.slots import Slots
from relay.supervisor.worker_process import EndedWorker
from relay.supervisor.workers import Workers

log = logging.getLogger(__name__)


class WorkerActions:
    """What can be done to the workers and slots of all generations.

    `fork_error` is the last reason why a worker could not be forked.
    """

    def __init__(
        self, workers: Workers, generations: Generations, slots: Slots, rules: Rules
    ) -> None:
        self.workers = workers
        self.generations = generations
        self.slots = slots
        self.rules = rules
        self.fork_error: Exception | None = None

    def do(self, now: float, action: Action, ending: Shutdown) -> None:
        """Carry out one action; `ending` is how the relay ends."""
        match action:
            case Spawn(slot, generation):
                self._spawn(now, slot, generation)
            case Drain(pid) if ending is Shutdown.NO:
                self.workers.replace(pid, self.rules.reload_drain_s)
            case Drain(pid):
                self.workers.drain(pid, self.rules.drain_timeout_s)
            case Quit(pid):
                self.workers.quit(pid)
            case Overrun(generation, pids):
                self.workers.overrun(generation, pids)
            case Abort(pid, why):
                self.workers.abort(pid, why)
            case Kill(pid, why):
                self.workers.kill(pid, why)
            case Close(slot):
                self.slots.close(slot)
            case Park(slot, deaths):
                self.slots.park(now, slot, deaths)
            case Reopen(slot):
                self.slots.reopen(now, slot)

    def _spawn(self, now: float, slot: int, number: int) -> None:
        following = self.generations.next
        if following is not None and number == following.number:
            try:
                self._fork(slot, following.prepared, following.sockets)
            except OSError as error:
                following.deaths += 1
                log.error("worker %d cannot be started: %s", slot, error)
            return
        try:
            self.slots.prepare_start(slot)
            self._fork(slot, self.generations.serving, self.generations.sockets)
        except (OSError, StartupError) as error:
            self.fork_error = error
            log.error(
                "worker %d cannot be started: %s; tried again %s",
                slot,
                error,
                self.slots.memory.failed(now, slot),
            )

    def _fork(self, slot: int, prepared: Prepared, own: SlotSockets) -> None:
        every = self.generations.all_sockets()
        self.workers.spawn(slot, prepared.generation, every, own, prepared.identity)

    def on_end(self, now: float, ended: EndedWorker, ending: Shutdown) -> None:
        """Log how a worker ended, and plan the next start on its slot."""
        worker, following = ended.process, self.generations.next
        age_s = now - worker.started_at
        if worker.stop_requested_at is not None or ending is not Shutdown.NO:
            log.info(
                "%s of generation %d %s after %.1f s, as asked",
                worker,
                worker.generation,
                ended.status,
                age_s,
            )
        elif following is not None and worker.generation == following.number:
            following.deaths += 1
            log.error(
                "%s of the new generation %d %s after %.1f s",
                worker,
                worker.generation,
                ended.status,
                age_s,
            )
        else:
            self.workers.count_restart()
            when = self.slots.memory.died(now, worker.slot, ended.last_seen)
            log.error("%s %s after %.1f s; it is replaced %s", worker, ended.status, age_s, when)
