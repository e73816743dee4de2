"""All generations of workers: carries out what `relay.core.fleet_plan.plan` decides.

Never: decides itself; every action was planned there, or asked for by the operator.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from relay.core.fleet_actions import Commit, Decision, GiveUp, Spawn
from relay.core.fleet_plan import next_start_at, plan
from relay.core.fleet_view import Phase, Rules, Shutdown, Target, View, Worker
from relay.errors import StartupError
from relay.supervisor.first_start import ATTEMPTS, FirstStart
from relay.supervisor.generations import Generations
from relay.supervisor.prepared import Prepared, configured_rules
from relay.supervisor.slots import Slots
from relay.supervisor.worker_actions import WorkerActions
from relay.supervisor.worker_process import WorkerProcess
from relay.supervisor.workers import Workers

# How long workers are started before the loop turns; forking a large relay takes 6 ms.
SPAWNING_S = 0.02

log = logging.getLogger(__name__)


class Fleet:
    """The workers of all generations. `step` does what is due."""

    def __init__(self, workers: Workers, generations: Generations, rules: Rules) -> None:
        self.workers = workers
        self.generations = generations
        self.slots = Slots(generations, rules)
        self.ending = Shutdown.NO
        self._rules = rules
        self._actions = WorkerActions(workers, generations, self.slots, rules)
        self._start = FirstStart(rules)
        self._trusted_from_at = 0.0
        self._views: tuple[Worker, ...] = ()

    # Questions.

    @property
    def complete(self) -> bool:
        """Whether every slot that can be served is served.

        Before the relay has served once, only parked slots are left out. Later, slots
        that wait for their next start are left out too.
        """
        pids = self.serving_pids()
        left_out = [
            slot.closed if self._start.done else slot.parked for slot in self.slots.memory.all()
        ]
        return bool(pids) and all(
            slot in pids or left_out[slot] for slot in range(self.generations.serving.slots)
        )

    @property
    def ended(self) -> bool:
        """Whether the relay was told to end and every worker has ended."""
        return self.ending is not Shutdown.NO and not self.workers.processes

    @property
    def transition_pending(self) -> bool:
        """Whether a worker is about to change its state, or has a deadline soon."""
        following = self.generations.next
        return (
            (following is not None and not following.is_tried)
            or self.ending is not Shutdown.NO
            or any(
                worker.phase is Phase.STARTING or worker.aborted_at is not None
                for worker in self._views
            )
        )

    @property
    def next_start_at(self) -> float:
        """When the next worker starts; in the past if one is due."""
        return next_start_at(self._view())

    def serving_pids(self) -> dict[int, int]:
        """Slot -> pid of the workers of the serving generation that accept clients."""
        return {
            worker.slot: worker.pid
            for worker in self._views
            if worker.generation == self.generations.number
            and worker.phase is Phase.SERVING
            and worker.stop_requested_at is None
        }

    def outgoing(self) -> list[Worker]:
        """Workers of other generations that have not reported that they drain."""
        return [
            worker
            for worker in self._views
            if worker.generation != self.generations.number and worker.phase is not Phase.DRAINING
        ]

    def warn_of(self, outgoing: Iterable[Worker], after_s: float) -> None:
        """Log which of these workers still accept clients."""
        for worker in outgoing:
            if worker.phase is Phase.SERVING:
                log.warning(
                    "worker %d (pid %d) of generation %d has not stopped accepting %g s after it"
                    " was told to: clients that it accepts get the configuration of that"
                    " generation",
                    worker.slot,
                    worker.pid,
                    worker.generation,
                    after_s,
                )

    # Requests.

    def end(self, ending: Shutdown) -> None:
        """Begin to end.

        The supervisor's copies of the sockets are closed first. Each worker then
        accepts what is queued, and new clients are refused instead of left waiting.
        """
        self.ending = ending
        self.generations.close_files()

    def take(self, workers: Iterable[WorkerProcess]) -> None:
        """Take over the workers of the version before an upgrade.

        The relay has served, so from now on no failure is a failed start.
        """
        self.workers.take(workers)
        self._start.done = True

    def excuse_heartbeats(self, now: float) -> None:
        """Do not count missing heartbeats before now: the supervisor did not run."""
        self._trusted_from_at = now

    def start_next(self, prepared: Prepared, now: float, *, canary: bool = False) -> None:
        """Start another generation beside the serving one, or only a canary of it.

        Raises StartupError and OSError; then the serving one goes on.
        """
        self.slots.reopen_all(now)
        if canary:
            self.workers.updates.begin_canary(prepared.generation.number)
        self.generations.start_next(prepared, now, canary=canary)
        self.slots.memory.forget(prepared.slots)

    def retry_slots(self, now: float) -> None:
        """After a reload that starts no generation: no slot waits any more."""
        try:
            self.slots.reopen_all(now)
        except StartupError as error:
            log.error("a slot stays closed: %s", error)
        else:
            self.slots.memory.forget(self.generations.serving.slots)

    # Actions.

    def step(self, now: float) -> Decision | None:
        """Reap, plan, act.

        Returns the decision about the next generation if one was carried out.
        Raises StartupError if the relay cannot start.
        """
        for ended in self.workers.reap():
            self._actions.on_end(now, ended, self.ending)
        self.workers.updates.step()
        decision = self._carry_out(now)
        self.retire()
        self.slots.served(self.serving_pids())
        if not self._start.done and self.ending is Shutdown.NO:
            self._start.fork_error = self._actions.fork_error
            self._start.check(
                now, complete=self.complete, failing_slot=self.slots.memory.failing(ATTEMPTS)
            )
        return decision

    def _carry_out(self, now: float) -> Decision | None:
        """Do what is planned. After a decision the plan is made again at once."""
        spawning_until_at = time.monotonic() + SPAWNING_S
        decision: Decision | None = None
        decided = True
        while decided:
            self._views = self.workers.views()
            decided = False
            actions = plan(now, self._view(), self._rules)
            following = self.generations.next
            if following is not None and not any(isinstance(one, Commit) for one in actions):
                following.closing.cancel()
            for action in actions:
                match action:
                    case GiveUp():
                        self.generations.give_up()
                        decision, decided = action, True
                    case Commit() if self.generations.may_commit(now):
                        self._commit()
                        decision, decided = action, True
                    case Commit():
                        pass  # until the sockets that it closes are empty
                    case Spawn() if time.monotonic() > spawning_until_at:
                        pass  # it is planned again at the next turn
                    case _:
                        self._actions.do(now, action, self.ending)
        self._views = self.workers.views()
        return decision

    def retire(self) -> None:
        """Free the memory of generations that have no process any more."""
        self.workers.scoreboards.retire(self.generations.wanted_numbers)

    def _view(self) -> View:
        following = self.generations.next
        return View(
            workers=self._views,
            slots=self.slots.memory.all(),
            serving=Target(self.generations.number, self.generations.serving.slots),
            next=following.target if following is not None else None,
            ending=self.ending,
            kept=self.generations.kept,
            trusted_from_at=self._trusted_from_at,
        )

    def _commit(self) -> None:
        """The next generation becomes the serving one; some limits come with it."""
        self.generations.commit()
        relay = self.generations.serving.config.relay
        self._rules = self._actions.rules = configured_rules(self._rules, relay)
        self.workers.limit_drains(relay.reload_drain_s)

    def close(self) -> None:
        """Close the sockets; after a failed start also kill the workers.

        If the supervisor ends by a bug, the workers see that at the lifeline pipe and
        let their sessions finish.
        """
        if not self._start.done:
            self.generations.remove_names()
        self.generations.close_files()
        if self._start.done and self.ending is Shutdown.NO:
            return
        self.workers.kill_all()
