"""Puts renewed files into use without a fork, and remembers which ones cannot be used.

The child that inspects files has found and checked them (`renewal_check`). They are
applied to the objects of the serving generation, a few milliseconds per turn, so that
later forks inherit them. Then the running workers and the checker get the same.

Never: reads a file, ends a session, or waits.
Next: `relay.worker.updates.Updates`
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator

from relay.core.fleet_view import Rules
from relay.errors import ConfigError, describe_error
from relay.quick_pickle import dumps
from relay.shared.replies import FailureReply, ReloadReply
from relay.shared.scoreboard import UPDATE
from relay.supervisor.generations import Generations
from relay.supervisor.list_sets import all_sets
from relay.supervisor.pending_files import PendingFiles
from relay.supervisor.prepared import renewed
from relay.supervisor.process import EXIT_CANNOT_START, EXIT_CONFIG
from relay.supervisor.renewal_check import Renewed
from relay.supervisor.watcher import Watcher
from relay.supervisor.worker_process import WorkerProcess
from relay.supervisor.workers import Workers
from relay.tls.certificates.file_sets import FileSet, SetKey
from relay.tls.renewal import renew_steps
from relay.tls.revocation.revoked_set import RevokedSet, shared_set

TURN_S = 0.005
EVERY_S = 1.0

log = logging.getLogger(__name__)


class Renewals:
    """The renewals of the serving generation, one at a time.

    `publish` is called when what operators see has changed.
    """

    def __init__(
        self,
        generations: Generations,
        workers: Workers,
        watcher: Watcher,
        publish: Callable[[], None],
        rules: Rules,
    ) -> None:
        self.pending = PendingFiles()
        self._generations = generations
        self._workers = workers
        self._watcher = watcher
        self._publish = publish
        self._rules = rules
        self._number = 0  # the generation that all this is about
        self._recheck_at = self._tell_at = 0.0
        self._retry: frozenset[SetKey] = frozenset()
        self._failure = ""  # logged already
        self.problem = ""
        """Why the last renewal was not put into use, if it was not."""
        self._sets: tuple[FileSet, ...] = ()  # that are put into use
        self._steps: Iterator[None] | None = None
        self._sent = 0  # the number of the update that the workers must apply
        self._until_at = 0.0

    # What is due.

    def due(self, now: float, awaited: Callable[[], Collection[str]]) -> frozenset[SetKey]:
        """The sets to look at now.

        They have changed, or they are looked at again from time to time: those that
        could not be used, and those that the configuration keys of `awaited` name.
        """
        if self._number != self._generations.number:
            self._number = self._generations.number
            self._retry = frozenset()
            if self.pending.clear():
                self._publish()
        due, self._watcher.changed = self._watcher.changed, set()
        if now >= self._recheck_at:
            self._recheck_at = now + self._rules.recheck_s
            due |= self.pending.keys | self._retry
            self._retry = frozenset()
            if wheres := set(awaited()):
                sets = all_sets(self._generations.serving.config)
                due |= {each.key for each in sets if not wheres.isdisjoint(each.wheres)}
        if now >= self._tell_at:
            self._tell_at = now + EVERY_S
            self.pending.step(time.time(), self._rules.loud_s)
        return frozenset(due)

    def failed(self, keys: Collection[SetKey], why: str = "") -> None:
        """These sets could not be looked at; they are looked at again soon."""
        self._retry |= frozenset(keys)
        self._tell_failure(f"renewed files cannot be checked: {why}" if why else "")

    def _tell_failure(self, why: str) -> None:
        if why and why != self._failure:
            log.error("%s; what is in use stays in use, and the relay tries again", why)
        self._failure = why

    # Putting into use.

    @property
    def building(self) -> bool:
        """Whether contexts are built, so that `step` must be called at once."""
        return self._steps is not None

    @property
    def busy(self) -> bool:
        """Whether something is being put into use."""
        return self._steps is not None or bool(self._sent)

    def begin(self, now: float, found: Renewed) -> None:
        """Put into use what can be used, and note the rest."""
        self._failure = self.problem = ""
        changed = False
        for refused in found.refused:
            name, files = refused.name, refused.files
            if self.pending.add(refused.key, name, files, refused.problems, time.time()):
                self._count("refused")
                changed = True
        before = self.pending.keys
        for key in found.unchanged:
            self.pending.remove(key, renewed=False)
        if changed or before != self.pending.keys:
            self._publish()
        if found.sets or found.partial:
            self._until_at = now + self._rules.hang_s
            self._sets = found.sets
            self._steps = self._put_into_use(found)

    def step(self, now: float) -> None:
        """Go on for about TURN_S."""
        if self._steps is not None:
            self._build()
        elif self._sent:
            waiting = self._late_workers()
            if waiting and now < self._until_at:
                return
            for worker in waiting:
                log.warning(
                    "%s has not put renewed files into use within %g s: clients that it accepts"
                    " meet the earlier ones until it does",
                    worker,
                    self._rules.hang_s,
                )
            self._sent = 0

    def _build(self) -> None:
        assert self._steps is not None  # noqa: S101  for mypy
        until = time.monotonic() + TURN_S
        try:
            for _ in self._steps:
                if time.monotonic() >= until:
                    return
        except (ConfigError, MemoryError, OSError) as error:
            self._give_up(describe_error(error))
        except Exception as error:
            log.exception("bug: renewed files were not put into use; please report this")
            self._give_up(f"a bug ({type(error).__name__}: {error})")
        self._steps = None

    def _give_up(self, why: str) -> None:
        """Some routes may have the renewed files; all get them at the next try."""
        self.problem = f"renewed files cannot be put into use: {why}"
        self._retry |= {each.key for each in self._sets}
        self._count("failed")
        self._tell_failure(self.problem)

    def _put_into_use(self, found: Renewed) -> Iterator[None]:
        prepared = self._generations.serving
        sets: dict[str, RevokedSet] = {}
        for name in found.renewal.revoked:
            sets[name] = shared_set(name, found.revoked[name])
            yield
        yield from renew_steps(prepared.generation, found.renewal, sets)
        yield
        data = dumps(found.renewal)
        number = prepared.generation.number
        updates = self._workers.updates
        fds = [each.memory.fd for each in sets.values() if each.memory is not None]
        self._sent = updates.send(data, fds, lambda generation: generation == number)
        self._generations.serving = renewed(prepared, found)
        for problem in found.warnings:
            log.warning("%s", problem)
        for each in found.sets:
            self.pending.remove(each.key, renewed=True)
            self._count("renewed")
        if what := _renewed_in(found):
            log.info("renewed in place: %s; generation %d goes on", what, number)
        self._publish()

    def _late_workers(self) -> list[WorkerProcess]:
        """The serving workers that have not applied the update yet."""
        return [
            process
            for process in self._workers.processes.values()
            if process.generation == self._generations.number
            and process.stop_requested_at is None
            and process.scoreboard.row(process.row)[UPDATE] < self._sent
        ]

    def _count(self, result: str) -> None:
        self._workers.scoreboards.count("relay_renewals_total", labels=(result,))

    def abandon(self) -> None:
        """The relay was told to end. What is not in use yet is looked at again."""
        if self._steps is not None:
            self._retry |= {each.key for each in self._sets}
        self._steps, self._sent = None, 0


def _renewed_in(found: Renewed) -> str:
    """What was renewed, for people."""
    good_lists = (f"the good lists of {each}" for each in found.partial)
    return ", ".join((*found.names, *good_lists))


def reply_to(found: Renewed, generation: int, problem: str) -> ReloadReply | FailureReply:
    """The answer to a reload that had only files to renew. One bad set is a failure.

    `problem`: why nothing was put into use.
    """
    if problem:
        return {"ok": False, "code": EXIT_CANNOT_START, "error": problem}
    names = list(found.names)
    renewed = _renewed_in(found)
    problems = [str(problem) for refused in found.refused for problem in refused.problems]
    if not problems:
        return {"ok": True, "generation": generation, "renewed": names}
    others = f"; renewed in place: {renewed}" if renewed else ""
    return {
        "ok": False,
        "code": EXIT_CONFIG,
        "error": f"these files were refused, what is in use stays in use{others}",
        "problems": problems,
        "renewed": names,
    }
