"""The body to the brain in `core.fleet_plan`: which generations there are, what the slots remember, and carrying out the plan.

Never: decides; whatever is done here was planned there, or asked for by the operator.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any

from relay.core.fleet_actions import (
    Abort,
    Close,
    Commit,
    Drain,
    GiveUp,
    Kill,
    Overrun,
    Park,
    Quit,
    Reopen,
    Spawn,
)
from relay.core.fleet_plan import Line, Phase, Rules, Shutdown, View, Worker, next_start_at, plan
from relay.errors import StartupError
from relay.supervisor.prepared import Prepared
from relay.supervisor.process import ExitStatus
from relay.supervisor.slot_memory import SlotMemory
from relay.supervisor.slot_sockets import Leaving, SlotSockets
from relay.supervisor.workers import Child, Workers

START_ATTEMPTS = 3
SPAWNING_S = (
    0.02  # how long workers are started before the loop turns: a fork of a large relay takes 6 ms
)

log = logging.getLogger(__name__)


class Fleet:
    """All generations of workers. `step` does what is to be done now."""

    def __init__(
        self, crew: Workers, prepared: Prepared, sockets: SlotSockets, rules: Rules
    ) -> None:
        self.crew = crew
        self.prepared = prepared
        self.ending = Shutdown.NO
        self.candidate: Prepared | None = None
        self._rules = rules
        self._sockets = sockets
        self._candidate_sockets: SlotSockets | None = None
        self._leaving = Leaving(set())
        self._candidate_since_at = 0.0
        self._candidate_deaths = 0
        self._last_number = prepared.generation.number
        self._memory = SlotMemory(prepared.slots, rules)
        self._ready = False
        self._fork_error: Exception | None = None
        self._opened_at: float | None = None
        self._trusted_from_at = 0.0
        self._workers: tuple[Worker, ...] = ()

    # What others ask.

    @property
    def generation(self) -> int:
        """The number of the generation that serves."""
        return self.prepared.generation.number

    @property
    def next_generation(self) -> int:
        """The number for the next candidate; one that was given up may still have workers that drain, so its number is not used again."""
        return self._last_number + 1

    @property
    def complete(self) -> bool:
        """Every slot is served that is not parked, or once all were: that does not wait for its next start."""
        pids = self.serving_pids()
        waits = [slot.closed if self._ready else slot.parked for slot in self._memory.all()]
        return bool(pids) and all(
            slot in pids or waits[slot] for slot in range(self.prepared.slots)
        )

    @property
    def ended(self) -> bool:
        """Nothing is left to wait for."""
        return self.ending is not Shutdown.NO and not self.crew.children

    @property
    def transition_pending(self) -> bool:
        """Something is about to change in the scoreboard or has a deadline within the second."""
        return (
            self.candidate is not None
            or self.ending is not Shutdown.NO
            or any(
                worker.phase is Phase.STARTING or worker.aborted_at is not None
                for worker in self._workers
            )
        )

    @property
    def next_start_at(self) -> float:
        """When the next slot wants a worker; long past when it is due."""
        return next_start_at(self._view())

    def serving_pids(self) -> dict[int, int]:
        """Slot -> pid of the workers of this generation that accept."""
        return {
            w.slot: w.pid
            for w in self._workers
            if w.generation == self.generation
            and w.phase is Phase.SERVING
            and w.stop_requested_at is None
        }

    def outgoing(self) -> list[Worker]:
        """Workers of other generations that may still accept: they have not said yet that they stopped."""
        return [
            w
            for w in self._workers
            if w.generation != self.generation and w.phase is not Phase.DRAINING
        ]

    def close_files(self) -> None:
        """Let go of every listening socket, at the end and in a child that accepts nothing."""
        if self._candidate_sockets is not None:
            self._candidate_sockets.close_all_but()
        self._sockets.close_all_but()

    def endpoints(self) -> dict[str, list[str]]:
        """Listener names and the addresses they are bound to."""
        return self._sockets.endpoints()

    def slot_status(self, now: float) -> list[dict[str, Any]]:
        """The slots for `relay status`."""
        return self._memory.status(now, self.prepared.slots)

    # What the operator asks for.

    def end(self, ending: Shutdown) -> None:
        """Begin to end. Our copies of the sockets are closed first: the workers empty the queues, and new clients are refused instead of left hanging."""
        self.ending = ending
        self.close_files()

    def excuse_heartbeats(self, now: float) -> None:
        """Heartbeats before now do not count."""
        self._trusted_from_at = now

    def try_candidate(self, prepared: Prepared, now: float) -> None:
        """Open the sockets of another generation and let it start beside the one that serves. Raises StartupError; then nothing has changed."""
        for slot in range(self.prepared.slots):
            if self._memory[slot].closed:
                self._sockets.reopen(slot)
            if self._memory[slot].parked:
                self._memory.reopen(now, slot)
        self._candidate_sockets = self._sockets.extend(prepared.config, prepared.slots)
        self._leaving = Leaving(self._sockets.all() - self._candidate_sockets.all())
        self.candidate = prepared
        self._candidate_since_at = now
        self._candidate_deaths = 0
        self._last_number = prepared.generation.number
        self._memory.forget(prepared.slots)

    # Carrying out.

    def step(self, now: float) -> str | None:
        """Reap, plan, do. Returns what came of the candidate: None nothing yet, "" it serves, else why it was given up. Raises StartupError."""
        self._reap(now)
        spawning_until_at = time.monotonic() + SPAWNING_S
        outcome: str | None = None
        decided = True
        while decided:
            self._workers = self.crew.views()
            decided = False
            actions = plan(now, self._view(), self._rules)
            if not any(isinstance(action, Commit) for action in actions):
                self._leaving.stay()
            for action in actions:
                if isinstance(action, GiveUp):
                    outcome, decided = self._give_up(action.why), True
                elif isinstance(action, Spawn) and time.monotonic() > spawning_until_at:
                    continue  # it is planned again at the next turn
                elif not isinstance(action, Commit):
                    self._do(now, action)
                elif self._leaving.settled(now):
                    outcome, decided = self._commit(), True
        self._workers = self.crew.views()
        self.retire()
        for slot in self.serving_pids():
            self._sockets.listen(slot)
            self._memory.served(slot)
        self._check_start(now)
        return outcome

    def retire(self) -> None:
        """Generations that no process is of give their memory back."""
        keep = {self.generation} | (
            {self.candidate.generation.number} if self.candidate is not None else set()
        )
        self.crew.scoreboards.retire(keep)

    def _view(self) -> View:
        candidate = self.candidate
        return View(
            workers=self._workers,
            slots=self._memory.all(),
            serving=Line(self.generation, self.prepared.slots),
            candidate=Line(
                candidate.generation.number,
                candidate.slots,
                self._candidate_since_at,
                self._candidate_deaths,
            )
            if candidate
            else None,
            ending=self.ending,
            trusted_from_at=self._trusted_from_at,
        )

    def _do(
        self,
        now: float,
        action: Spawn | Drain | Quit | Overrun | Abort | Kill | Close | Park | Reopen,
    ) -> None:
        match action:
            case Spawn(slot, generation):
                self._spawn(now, slot, generation)
            case Drain(pid):
                self.crew.drain(pid)
            case Quit(pid):
                self.crew.quit(pid)
            case Overrun(generation, pids):
                self.crew.overrun(generation, pids)
            case Abort(pid, why):
                self.crew.abort(pid, why)
            case Kill(pid, why):
                self.crew.kill(pid, why)
            case Close(slot):
                self._sockets.park(slot)
                self._memory.close(slot)
            case Park(slot, deaths):
                log.error(
                    "slot %d is parked after %d early deaths of its workers: its sockets are closed and the others take its clients; tried again in %g s, earlier when no slot is served, or after a reload",
                    slot,
                    deaths,
                    self._rules.park_s,
                )
                self._sockets.park(slot)
                self._memory.park(now, slot)
            case Reopen(slot):
                self._reopen(now, slot)

    def _spawn(self, now: float, slot: int, number: int) -> None:
        of_candidate = self.candidate is not None and number == self.candidate.generation.number
        prepared, own = (
            (self.candidate, self._candidate_sockets)
            if of_candidate
            else (self.prepared, self._sockets)
        )
        assert prepared is not None  # noqa: S101  for mypy
        assert own is not None  # noqa: S101
        try:
            if not of_candidate and self._memory[slot].closed:
                self._sockets.reopen(slot)
            self.crew.spawn(
                slot,
                prepared.generation,
                [s for s in (self._sockets, self._candidate_sockets) if s is not None],
                own,
                prepared.identity,
            )
        except (OSError, StartupError) as error:
            if of_candidate:
                self._candidate_deaths += 1
                log.error("worker %d cannot be started: %s", slot, error)
            else:
                self._cannot_start(now, slot, error)

    def _cannot_start(self, now: float, slot: int, error: Exception) -> None:
        self._fork_error = error
        log.error(
            "worker %d cannot be started: %s; tried again %s",
            slot,
            error,
            self._memory.failed(now, slot),
        )

    def _reopen(self, now: float, slot: int) -> None:
        try:
            self._sockets.reopen(slot)
        except StartupError as error:
            log.error("slot %d stays parked: %s", slot, error)
            self._memory.park(now, slot)
        else:
            log.info("slot %d is tried again", slot)
            self._memory.reopen(now, slot)

    def _commit(self) -> str:
        assert self.candidate is not None  # noqa: S101  for mypy
        assert self._candidate_sockets is not None  # noqa: S101
        before, self.prepared = self.prepared.config, self.candidate
        # Our copies go first: the old workers empty what is queued on theirs when they are told to drain.
        self._sockets.close_all_but(self._candidate_sockets)
        self._sockets, self._candidate_sockets, self.candidate, self._leaving = (
            self._candidate_sockets,
            None,
            None,
            Leaving(set()),
        )
        drain_timeout_s = max(
            before.relay.drain_timeout_s, self.prepared.config.relay.drain_timeout_s
        )
        self._rules = replace(
            self._rules,
            drain_timeout_s=drain_timeout_s,
            old_generations=self.prepared.config.relay.old_generations,
        )
        return ""

    def _give_up(self, why: str) -> str:
        if self._candidate_sockets is not None:
            self._candidate_sockets.close_all_but(self._sockets)
        self.candidate, self._candidate_sockets = None, None
        return why

    def _reap(self, now: float) -> None:
        for child, worker, end in self.crew.reap():
            age_s = now - child.started_at
            if child.stop_requested_at is not None or self.ending is not Shutdown.NO:
                log.info(
                    "worker %d (pid %d) of generation %d %s after %.1f s, as asked",
                    child.slot,
                    child.pid,
                    child.generation,
                    end,
                    age_s,
                )
            elif (
                self.candidate is not None and child.generation == self.candidate.generation.number
            ):
                self._candidate_deaths += 1
                log.error(
                    "worker %d (pid %d) of the new generation %d %s after %.1f s",
                    child.slot,
                    child.pid,
                    child.generation,
                    end,
                    age_s,
                )
            else:
                self._on_worker_death(now, child, worker, end)

    def _on_worker_death(self, now: float, child: Child, worker: Worker, end: ExitStatus) -> None:
        self.crew.count_restart()
        when = self._memory.died(now, child.slot, worker)
        log.error(
            "worker %d (pid %d) %s after %.1f s; it is replaced %s",
            child.slot,
            child.pid,
            end,
            now - child.started_at,
            when,
        )

    def _check_start(self, now: float) -> None:
        if self._ready or self.ending is not Shutdown.NO:
            return
        self._opened_at = self._opened_at if self._opened_at is not None else now
        self._ready = self.complete
        failing = self._memory.failing(START_ATTEMPTS)
        if failing is not None:
            if self._fork_error is not None:
                raise StartupError(
                    f"worker {failing} cannot be started: {self._fork_error}",
                    "raise TasksMax= or the memory limit of the relay, or lower relay.workers",
                )
            raise StartupError(
                f"worker {failing} died {START_ATTEMPTS} times before the relay served",
                "why is in the messages above, by the worker itself",
            )
        if not self._ready and now - self._opened_at > self._rules.start_timeout_s:
            raise StartupError(
                f"the workers did not serve within {self._rules.start_timeout_s:g} s",
                "why is in the messages above, by the workers themselves",
            )

    def close(self) -> None:
        """Let go of whatever is left: nothing after an orderly end, failed beginners after a failed start."""
        self.close_files()
        if self._ready and self.ending is Shutdown.NO:
            return  # we end by a bug of ours; the workers see it at the lifeline and let their sessions finish
        self.crew.kill_all()
