"""A reload from request to answer: prepare a generation, let it start beside the old one, and say how it went.

It goes on a little in every turn of the supervisor's loop, which meanwhile does everything else:

    preparing      a child judges the new configuration, then its contexts are built in steps
    starting       its workers start beside the old ones
    handing over   it is decided, and those who have lost stop accepting

The answer waits until those who have lost (the old workers, or those of a generation that was given up) have stopped accepting: whoever
connects after it meets the configuration it names.

Never: touches the generation that serves before the new one does.
"""

from __future__ import annotations

import logging
import selectors
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from relay.core.fleet_plan import Phase, Shutdown
from relay.errors import ConfigError, StartupError, describe_error, is_shortage
from relay.logs import messages
from relay.supervisor.control import Client
from relay.supervisor.host_lookup import known_addresses
from relay.supervisor.inspection import PrepareRequest
from relay.supervisor.prepare import TURN_S, Orphans, Preparation, UnchangedError
from relay.supervisor.prepared import Prepared, begin_scoreboard
from relay.supervisor.process import EXIT_BUG, EXIT_CANNOT_START, EXIT_CONFIG
from relay.tls.contexts import Generation, free_steps

if TYPE_CHECKING:
    from relay.supervisor.main import Supervisor  # main imports us

_SHORTAGE_HINT = "raise LimitNOFILE or MemoryMax, or lower relay.workers; then reload again"

log = logging.getLogger(__name__)


class Reloads:
    """One reload at a time.

    SIGHUP and `relay reload` wait for their turn during one, and while the relay starts: the file
    may have changed since it was read. One reload then answers all that wait.
    """

    def __init__(self, supervisor: Supervisor, handover_s: float, recheck_s: float) -> None:
        self._supervisor = supervisor
        self._handover_s = handover_s
        self._clients: list[Client] = []  # this reload answers them
        self._waiting: list[Client] = []  # the next one does
        self._again = False
        self._preparation: Preparation | None = None
        self._recheck_s = recheck_s
        self._recheck_at = 0.0
        self._is_renewal = False  # nobody has asked for what is under way
        self._renewal_problem = ""
        self._orphans = Orphans()
        self._reply: dict[str, Any] = {}  # decided, but not said yet
        self._until_at = 0.0
        self._rivals: tuple[Generation, Generation] | None = None
        self._losing: Generation | None = None
        self._dismantling: Iterator[None] = iter(())

    @property
    def eager(self) -> bool:
        """There is something to do at once: the loop must not wait."""
        building = self._preparation is not None and self._preparation.building
        return building or self._losing is not None or (self._again and not self._busy)

    @property
    def _busy(self) -> bool:
        supervisor = self._supervisor
        under_way = self._preparation is not None or supervisor.fleet.candidate is not None
        return under_way or self.handing_over or supervisor.state_word == "starting"

    @property
    def handing_over(self) -> bool:
        """The reload is decided, and those who have lost may still accept."""
        return bool(self._reply)

    def begin(self, client: Client | None) -> None:
        """Start a reload for a client, or for SIGHUP (None). The client is answered when it is decided."""
        if self._supervisor.fleet.ending is not Shutdown.NO:
            _refuse(client, f"the relay is {self._supervisor.state_word}")
            return
        self._again = True
        if client is not None:
            self._waiting.append(client)
        self._drop_renewal()
        self._take_turn()

    def _take_turn(self) -> None:
        """Begin the next reload, if one is wanted and none is under way."""
        if not self._again or self._busy:
            return
        self._again = self._is_renewal = False
        self._clients, self._waiting = self._waiting, []
        self._supervisor.notifier.reloading()
        self._try()

    def _try(self) -> None:
        with self._refusing():
            supervisor = self._supervisor
            fleet = supervisor.fleet
            renews = supervisor.disabled.awaited if self._is_renewal else frozenset()
            scoreboard = supervisor.scoreboards.generation(fleet.generation)
            known = known_addresses(fleet.prepared.generation.addresses, scoreboard)
            running = fleet.prepared.config
            wish = PrepareRequest(supervisor.config_path, running, known, supervisor.strict, renews)
            self._preparation = Preparation(
                wish, fleet.next_generation, self._orphans, supervisor.let_go_of_all
            )
            supervisor.selector.register(self._preparation.fd, selectors.EVENT_READ, _nothing)

    def _renew(self, now: float) -> None:
        """While something is disabled, look now and then whether what it needs was renewed."""
        if now < self._recheck_at:
            return
        self._recheck_at = now + self._recheck_s
        supervisor = self._supervisor
        fleet = supervisor.fleet
        idle = not self._busy and not self._again
        if idle and fleet.ending is Shutdown.NO and supervisor.disabled.awaited:
            self._is_renewal = True
            self._try()

    def _drop_renewal(self) -> None:
        """What is asked for comes first, and renews as well."""
        if self._is_renewal and self._preparation is not None:
            self._close_preparation()

    def _renewal_refused(self, problems: Iterable[object]) -> None:
        """Nobody has asked for it, so it is said once, and nobody is answered."""
        said = "; ".join(map(str, problems))
        if said != self._renewal_problem:
            log.warning("what is disabled stays disabled: %s", said)
        self._renewal_problem = said
        self._supervisor.notifier.ready(self._supervisor.status_line())

    def _go_on(self, now: float) -> None:
        """A turn's worth of preparing; when it is done, the candidate starts."""
        if self._preparation is None:
            return
        with self._refusing():
            prepared = self._preparation.step(now)
            if prepared is None:
                if (
                    self._preparation.building
                    and self._preparation.fd in self._supervisor.selector.get_map()
                ):
                    self._supervisor.selector.unregister(self._preparation.fd)
                return
            self._close_preparation()
            if self._is_renewal:
                log.info("a file of something disabled was renewed: reloading")
                self._renewal_problem = ""
                self._supervisor.notifier.reloading()
            self._start_candidate(prepared)

    def close_files(self) -> None:
        """Let go of the pipe to a child: what its siblings do."""
        if self._preparation is not None:
            self._preparation.close_files()

    def _close_preparation(self) -> None:
        if self._preparation is not None:
            if self._preparation.fd in self._supervisor.selector.get_map():
                self._supervisor.selector.unregister(self._preparation.fd)
            self._preparation.close()
            self._preparation = None

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Whatever is raised here ends this reload, and nothing else."""
        try:
            yield
        except UnchangedError:
            self._close_preparation()
        except (ConfigError, StartupError) as error:
            self._close_preparation()
            self._refused(error)
        except Exception as error:
            self._close_preparation()
            if is_shortage(error):
                what = f"this machine gave the relay too little: {describe_error(error)}"
                self._refused(StartupError(what, _SHORTAGE_HINT))
                return
            log.exception("reload refused by a bug; the old generation goes on")
            self._failed(
                {
                    "code": EXIT_BUG,
                    "error": f"{type(error).__name__}: {error}; this is a bug, its traceback is in the log; the old generation goes on",
                }
            )

    def _refused(self, error: ConfigError | StartupError) -> None:
        if self._is_renewal:
            self._renewal_refused([error] if isinstance(error, StartupError) else error.problems)
        elif isinstance(error, ConfigError):
            for problem in error.problems:
                log.error("reload refused: %s", problem)
            self._failed(
                {
                    "code": EXIT_CONFIG,
                    "error": "the new configuration was refused, the old one goes on",
                    "problems": [str(problem) for problem in error.problems],
                }
            )
        else:
            log.error("reload refused: %s", error)
            self._failed({"code": EXIT_CANNOT_START, "error": str(error)})

    def _start_candidate(self, prepared: Prepared) -> None:
        supervisor = self._supervisor
        fleet = supervisor.fleet
        supervisor.admin.prepare(prepared.config.admin, prepared.password)
        try:
            begin_scoreboard(supervisor.scoreboards, prepared)
            supervisor.overrides.write_cells()
            supervisor.publish()  # the new counters, before anybody counts
            before = fleet.prepared.generation
            fleet.try_candidate(prepared, time.monotonic())
            self._rivals = (before, prepared.generation)
        except BaseException:
            supervisor.admin.discard()
            fleet.retire()
            raise

    def finish(self, outcome: str) -> None:
        """The candidate serves ("") or was given up (why)."""
        supervisor = self._supervisor
        number = supervisor.fleet.generation
        if self._rivals is not None:
            self._losing = self._rivals[1 if outcome else 0]
            self._dismantling = free_steps(self._losing)
            self._rivals = None
        self._until_at = time.monotonic() + self._handover_s
        if outcome:
            log.error("reload given up: %s; generation %d goes on", outcome, number)
            supervisor.admin.discard()
            self._reply = {
                "ok": False,
                "code": EXIT_CANNOT_START,
                "error": f"{outcome}; generation {number} goes on",
            }
            return
        messages.setup(supervisor.fleet.prepared.config.log.level, process="supervisor")
        supervisor.admin.commit()
        supervisor.overrides.use(supervisor.fleet.prepared.config)
        supervisor.publish()
        self._reply = {"ok": True, "generation": number}

    def step(self, now: float) -> None:
        """Go on. Answer, once nobody accepts who should not, or once that has taken too long."""
        self._orphans.step(now)
        self._dismantle()
        self._take_turn()
        self._renew(now)
        self._go_on(now)
        if not self._reply:
            return
        outgoing = self._supervisor.fleet.outgoing()
        if outgoing and now < self._until_at:
            return
        for worker in [each for each in outgoing if each.phase is Phase.SERVING]:
            log.warning(
                "worker %d (pid %d) of generation %d has not stopped accepting %g s after it was told to: clients it accepts meet the configuration of that generation",
                worker.slot,
                worker.pid,
                worker.generation,
                self._handover_s,
            )
        reply, self._reply = self._reply, {}
        if reply["ok"]:
            log.info("generation %d serves; the workers before it drain", reply["generation"])
            self._supervisor.announce()
            self._answer(reply)
        else:
            self._failed(reply)

    def _dismantle(self) -> None:
        until = time.monotonic() + TURN_S
        while self._losing is not None and time.monotonic() < until:
            if next(self._dismantling, self) is self:
                self._losing = None

    def _failed(self, reply: dict[str, Any]) -> None:
        self._supervisor.notifier.ready(self._supervisor.status_line())
        self._answer({"ok": False, **reply})

    def abandon(self, why: str) -> None:
        """The relay is told to end: whoever waits is told so."""
        self._close_preparation()
        self._reply, self._again = {}, False
        self._clients += self._waiting
        self._waiting = []
        self._answer(
            {
                "ok": False,
                "code": EXIT_CANNOT_START,
                "error": f"the relay was told to end ({why}) before the reload was done",
            }
        )

    def _answer(self, reply: dict[str, Any]) -> None:
        """Tell the clients that wait for this reload."""
        clients, self._clients = self._clients, []
        for client in clients:
            client.reply(reply)


def _refuse(client: Client | None, why: str) -> None:
    log.warning("reload refused: %s", why)
    if client is not None:
        client.reply({"ok": False, "code": EXIT_CANNOT_START, "error": why})


def _nothing(_events: int) -> None:
    """The loop is awake; its next turn goes on."""
