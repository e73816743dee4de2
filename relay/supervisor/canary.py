"""A canary: one worker with new settings, tried beside the serving generation.

It takes the clients of one slot. The serving worker of this slot keeps its sessions and
its sockets, and leaves new clients to the canary. The other slots go on as before, and
are what the canary is compared with (`relay.core.canary`). If the canary is worse, it
is withdrawn at once: the plan gives up its generation, and the serving worker takes
the clients back. If it is not, the rest of its generation starts, as in every reload.

Never: closes a socket; decides about another generation than that of the canary.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Iterator, Sequence

from relay.core.canary import Counts, Part
from relay.core.fleet_view import CANARY_SLOT, Phase, Shutdown
from relay.errors import describe_error
from relay.shared.canary_replies import CanaryStatus
from relay.shared.label_values import BY_OPERATOR, PROMOTED, WITHDRAWN
from relay.sockets import inode_of
from relay.supervisor.fleet import Fleet
from relay.supervisor.generations import NextGeneration
from relay.supervisor.prepared import without_files_of
from relay.supervisor.trial import Trial
from relay.supervisor.worker_process import WorkerProcess
from relay.worker.accepting import AcceptUpdate
from relay.worker.examples import TellUpdate

LOOK_S = 1.0
NEWS_S = 5.0
_NO_CANARY = "no canary is tried now; see: relay status"

log = logging.getLogger(__name__)


class Canary:
    """The canary of the next generation, if that has one."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._duration_s = 0.0
        self._trial: Trial | None = None
        self._left_by: set[int] = set()  # pids of serving workers that leave clients to it
        self._told: set[int] = set()  # pids of the workers that tell what fails
        self.note = ""
        """What an operator should know although the canary was not withdrawn."""

    # Questions.

    @property
    def wanted(self) -> bool:
        """Whether the reload that is under way begins with a canary."""
        return self._duration_s > 0

    @property
    def number(self) -> int:
        """The generation that is started now, or the serving one."""
        generations = self._fleet.generations
        return generations.next.number if generations.next is not None else generations.number

    @property
    def problem(self) -> str:
        """Why no canary can be tried; empty if one can be."""
        if self._fleet.generations.serving.slots < 2:
            return (
                "a canary needs a second worker to be compared with; set relay.workers to 2 or"
                " more, or reload without --canary"
            )
        return ""

    @property
    def _following(self) -> NextGeneration | None:
        following = self._fleet.generations.next
        return following if following is not None and following.canary else None

    @property
    def is_tried(self) -> bool:
        """Whether it serves, and its end is not decided."""
        following = self._following
        return self._trial is not None and following is not None and not following.withdrawn

    def status(self, now: float) -> CanaryStatus | None:
        """It for `relay status`; None if there is none."""
        following, trial = self._following, self._trial
        if following is None:
            return None
        own, others = (trial.own, trial.others) if trial else (Counts(), Counts())
        return {
            "generation": following.number,
            "slot": CANARY_SLOT,
            "left_s": round(max(0.0, trial.until_at - now), 1) if trial else self._duration_s,
            "clients": own.of(Part.CLIENT),
            "refused": own.failed(Part.CLIENT),
            "others_clients": others.of(Part.CLIENT),
            "others_refused": others.failed(Part.CLIENT),
        }

    # What happens.

    def begin(self, duration_s: float) -> None:
        """The next generation begins with a canary, for this long."""
        self._duration_s, self._trial, self.note = duration_s, None, ""

    def step(self, now: float, *, may_promote: bool) -> Iterator[str]:
        """Look, and decide if it is time. Yields lines for people who wait.

        It waits for the others as long as `may_promote` is False.
        """
        following = self._following
        if following is None or following.withdrawn or self._fleet.ending is not Shutdown.NO:
            return
        process = self._process(following)
        if process is None:
            return
        if self._trial is None:
            self._trial = Trial(now + self._duration_s, self._others())
            following.is_tried = True
            self._told.add(process.pid)
            generations = self._fleet.generations
            generations.serving = without_files_of(generations.serving, following.prepared)
            text = (
                f"generation {following.number} is tried as a canary in worker {CANARY_SLOT}"
                f" for {self._duration_s:g} s"
            )
            log.info("%s", text)
            yield text
        self._leave_clients()
        self._let_others_tell()
        trial = self._trial
        over = now >= trial.until_at
        if now < trial.look_at and not over:
            return
        trial.look_at = now + LOOK_S
        trial.look([process], self._others(), self._fleet.workers.updates)
        worse = trial.worse(at_end=over)
        if worse and trial.is_compared:
            self._count(WITHDRAWN)
            following.withdrawn = f"the canary was withdrawn: {trial.describe(worse)}"
        elif over and may_promote:
            self._promote(now, following, trial)
            yield f"the canary is over: {trial.summary()}; the other workers follow"
        elif now >= trial.news_at:
            trial.news_at = now + NEWS_S
            yield f"{max(0.0, trial.until_at - now):.0f} s left: {trial.summary()}"

    def _promote(self, now: float, following: NextGeneration, trial: Trial) -> None:
        """Let the other slots follow."""
        self.note = trial.warning()
        if self.note:
            log.warning("the canary was not withdrawn, but %s", self.note)
        log.info("the canary is over: %s; the other workers follow", trial.summary())
        self._count(PROMOTED)
        following.promote(now)
        self._fleet.workers.updates.end_canary()

    def promote(self) -> str:
        """Compare no more. Returns why there is nothing to promote; "" if there is."""
        if not self.is_tried or self._trial is None:
            return _NO_CANARY
        self._trial.until_at, self._trial.is_compared = 0.0, False
        return ""

    def _count(self, result: str) -> None:
        self._fleet.workers.scoreboards.count("relay_canaries_total", labels=(result,))

    def hurry(self) -> None:
        """Judge it now: revocation lists were renewed, and it has the earlier ones."""
        if self._trial is not None:
            self._trial.until_at = 0.0

    def withdraw(self) -> str:
        """An operator withdraws it. Returns why it cannot be; "" if it is."""
        following = self._following
        if following is None:
            return _NO_CANARY
        if not following.withdrawn:
            self._count(BY_OPERATOR)
        following.withdrawn = "the canary was withdrawn by an operator"
        return ""

    def over(self) -> None:
        """The next generation serves, or was given up."""
        self._fleet.workers.updates.end_canary()
        self._trial = None
        for process in self._fleet.workers.processes.values():
            if process.stop_requested_at is None:
                if process.pid in self._left_by:
                    self._send(process, AcceptUpdate(frozenset()))
                if process.pid in self._told:
                    self._send(process, TellUpdate())
        self._left_by.clear()
        self._told.clear()

    # The workers.

    def _process(self, following: NextGeneration) -> WorkerProcess | None:
        """The canary's worker, when it serves."""
        now = time.monotonic()
        for process in self._fleet.workers.processes.values():
            if process.generation == following.number:
                view = process.view(now)
                if view.phase is Phase.SERVING and view.stop_requested_at is None:
                    return process
        return None

    def _serving(self) -> Iterator[WorkerProcess]:
        number = self._fleet.generations.number
        for process in self._fleet.workers.processes.values():
            if process.generation == number and process.stop_requested_at is None:
                yield process

    def _others(self) -> list[WorkerProcess]:
        return [each for each in self._serving() if each.slot != CANARY_SLOT]

    def _leave_clients(self) -> None:
        """Let the serving worker of the slot leave the canary's clients to it."""
        generations = self._fleet.generations
        following = generations.next
        if following is None:
            return
        for process in self._serving():
            if process.slot == CANARY_SLOT and process.pid not in self._left_by:
                self._left_by.add(process.pid)
                own = {one for _, one in following.sockets.of_slot(CANARY_SLOT)}
                shared = own & {one for _, one in generations.sockets.of_slot(CANARY_SLOT)}
                self._send(process, AcceptUpdate(frozenset(map(inode_of, shared))))

    def _let_others_tell(self) -> None:
        """Let the workers beside the canary tell whom they serve and refuse."""
        for process in self._others():
            if process.pid not in self._told:
                self._told.add(process.pid)
                channel = self._fleet.workers.updates.others_failures()
                if channel is not None:
                    with channel:
                        self._send(process, TellUpdate(), [channel.fileno()])

    def _send(
        self, process: WorkerProcess, update: AcceptUpdate | TellUpdate, files: Sequence[int] = ()
    ) -> None:
        data = pickle.dumps(update, pickle.HIGHEST_PROTOCOL)
        try:
            self._fleet.workers.updates.send_to(process.sender, data, files)
        except (OSError, MemoryError) as error:
            log.error(
                "%s cannot be told about the canary: %s; it goes on as before",
                process,
                describe_error(error),
            )
