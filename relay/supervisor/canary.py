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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from relay.core.canary import Counts, Difference, Part, differences
from relay.core.fleet_view import CANARY_SLOT, Phase, Shutdown
from relay.errors import describe_error
from relay.shared.canary_replies import CanaryStatus
from relay.shared.failure_reports import FailureReport
from relay.sockets import inode_of
from relay.supervisor.canary_counts import WorkerCounts
from relay.supervisor.fleet import Fleet
from relay.supervisor.generations import NextGeneration
from relay.supervisor.prepared import without_files_of
from relay.supervisor.worker_process import WorkerProcess
from relay.worker.accepting import AcceptUpdate

LOOK_S = 1.0
NEWS_S = 5.0
_EXAMPLES = 3  # of each reason
_REPORTS_A_LOOK = 100
_REASONS_NAMED = 3
_NO_CANARY = "no canary is tried now; see: relay status"
_FAILED = {
    Part.CLIENT: "clients refused",
    Part.BACKEND: "connections to backends failed",
    Part.SESSION: "sessions ended",
}

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Trial:
    """What is known while the canary's worker serves."""

    until_at: float
    others: WorkerCounts
    own: WorkerCounts = field(default_factory=WorkerCounts)
    look_at: float = 0.0
    news_at: float = 0.0
    is_compared: bool = True
    counts: Counts = field(default_factory=Counts)
    others_counts: Counts = field(default_factory=Counts)


class Canary:
    """The canary of the next generation, if that has one."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._duration_s = 0.0
        self._trial: _Trial | None = None
        self._examples: dict[tuple[str, str], list[FailureReport]] = {}
        self._left_by: set[int] = set()  # pids of serving workers that leave clients to it
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
        own, others = (trial.counts, trial.others_counts) if trial else (Counts(), Counts())
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
        self._examples.clear()

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
            self._trial = _Trial(now + self._duration_s, WorkerCounts(self._others()))
            following.is_tried = True
            generations = self._fleet.generations
            generations.serving = without_files_of(generations.serving, following.prepared)
            text = (
                f"generation {following.number} is tried as a canary in worker {CANARY_SLOT}"
                f" for {self._duration_s:g} s"
            )
            log.info("%s", text)
            yield text
        self._leave_clients()
        trial = self._trial
        over = now >= trial.until_at
        if now < trial.look_at and not over:
            return
        trial.look_at = now + LOOK_S
        self._look(trial, [process])
        worse = differences(trial.counts, trial.others_counts, at_end=over)
        if worse and trial.is_compared:
            following.withdrawn = f"the canary was withdrawn: {self._describe(worse)}"
        elif over and may_promote:
            self._promote(now, following, trial)
            yield f"the canary is over: {self._summary(trial)}; the other workers follow"
        elif now >= trial.news_at:
            trial.news_at = now + NEWS_S
            yield f"{max(0.0, trial.until_at - now):.0f} s left: {self._summary(trial)}"

    def _promote(self, now: float, following: NextGeneration, trial: _Trial) -> None:
        """Let the other slots follow."""
        self.note = _warning(trial)
        if self.note:
            log.warning("the canary was not withdrawn, but %s", self.note)
        log.info("the canary is over: %s; the other workers follow", self._summary(trial))
        following.promote(now)
        self._fleet.workers.updates.end_canary()

    def promote(self) -> str:
        """Compare no more. Returns why there is nothing to promote; "" if there is."""
        if not self.is_tried or self._trial is None:
            return _NO_CANARY
        self._trial.until_at, self._trial.is_compared = 0.0, False
        return ""

    def hurry(self) -> None:
        """Judge it now: revocation lists were renewed, and it has the earlier ones."""
        if self._trial is not None:
            self._trial.until_at = 0.0

    def withdraw(self) -> str:
        """An operator withdraws it. Returns why it cannot be; "" if it is."""
        following = self._following
        if following is None:
            return _NO_CANARY
        following.withdrawn = "the canary was withdrawn by an operator"
        return ""

    def over(self) -> None:
        """The next generation serves, or was given up."""
        self._fleet.workers.updates.end_canary()
        self._trial = None
        for process in self._fleet.workers.processes.values():
            if process.pid in self._left_by and process.stop_requested_at is None:
                self._send(process, frozenset())
        self._left_by.clear()

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
                self._send(process, frozenset(inode_of(one) for one in shared))

    def _send(self, process: WorkerProcess, left: frozenset[int]) -> None:
        data = pickle.dumps(AcceptUpdate(left), pickle.HIGHEST_PROTOCOL)
        try:
            self._fleet.workers.updates.send_to(process.sender, data)
        except (OSError, MemoryError) as error:
            log.error(
                "%s cannot be told which clients are its own: %s; it goes on as before",
                process,
                describe_error(error),
            )

    # Words.

    def _look(self, trial: _Trial, own: Iterable[WorkerProcess]) -> None:
        trial.counts = trial.own.read(own)
        trial.others_counts = trial.others.read(self._others())
        for report in self._fleet.workers.updates.receive_failures(_REPORTS_A_LOOK):
            known = self._examples.setdefault((report.part, report.reason), [])
            if len(known) < _EXAMPLES and report not in known:
                known.append(report)

    def _describe(self, worse: list[Difference]) -> str:
        """The reasons, with numbers and examples."""
        texts = []
        for one in worse[:_REASONS_NAMED]:
            examples = self._examples.get((one.part, one.reason), [])
            named = f", for example {' and '.join(map(str, examples))}" if examples else ""
            texts.append(
                f"{_FAILED[one.part]}, {one.reason}: {one.failed} of {one.attempts}"
                f" (the other workers: {one.others_failed} of {one.others_attempts}){named}"
            )
        more = len(worse) - _REASONS_NAMED
        return "; ".join(texts) + (f"; and {more} more reasons" if more > 0 else "")

    def _summary(self, trial: _Trial) -> str:
        own, others = trial.counts, trial.others_counts
        return (
            f"{own.of(Part.CLIENT)} clients, {own.failed(Part.CLIENT)} refused (the other workers:"
            f" {others.of(Part.CLIENT)}, {others.failed(Part.CLIENT)} refused)"
        )


def _warning(trial: _Trial) -> str:
    """Why the comparison means little, if it does."""
    if not trial.counts.of(Part.CLIENT) and not trial.counts.of(Part.SESSION):
        return "no client came to it, so nothing was compared"
    if not trial.others_counts.of(Part.CLIENT) and not trial.others_counts.of(Part.SESSION):
        return "no client came to the other workers, so nothing was compared"
    return ""
