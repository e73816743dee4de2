"""A reload from request to answer: prepare a generation, let it start beside the old one, and say how it went.

The answer waits until those who have lost (the old workers, or those of a generation that was given up) have stopped accepting: whoever
connects after it meets the configuration it names.

Never: touches the generation that serves before the new one does.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from relay.core.fleet import Ending, Phase
from relay.errors import ConfigError, StartupError
from relay.observe import messages
from relay.supervisor.control import Client
from relay.supervisor.prepare import begin_scoreboard, prepare
from relay.supervisor.process import EXIT_BUG, EXIT_CANNOT_START, EXIT_CONFIG

if TYPE_CHECKING:
    from relay.supervisor.main import Supervisor  # main imports us

log = logging.getLogger(__name__)


class Reloads:
    """One reload at a time. SIGHUP during one is remembered, a control client during one is told to come back."""

    def __init__(self, supervisor: Supervisor, handover_s: float) -> None:
        self._supervisor = supervisor
        self._handover_s = handover_s
        self._client: Client | None = None
        self._again = False
        self._reply: dict[str, Any] = {}  # decided, but not said yet
        self._until_at = 0.0

    @property
    def handing_over(self) -> bool:
        """The reload is decided, and those who have lost may still accept."""
        return bool(self._reply)

    def begin(self, client: Client | None) -> None:
        """Start a reload for a client, or for SIGHUP (None). The client is answered when it is decided."""
        fleet = self._supervisor.fleet
        if fleet.ending is not Ending.NO or self._supervisor.state_word != "serving":
            _refuse(client, f"the relay is {self._supervisor.state_word}")
        elif fleet.candidate is not None or self.handing_over:
            if client is None:
                self._again = True  # the file may have changed since it was read
            else:
                _refuse(client, "another reload is under way; try again when it is done")
        else:
            self._client = client
            self._supervisor.notifier.reloading()
            self._try()

    def _try(self) -> None:
        try:
            self._start_candidate()
        except ConfigError as error:
            for problem in error.problems:
                log.error("reload refused: %s", problem)  # noqa: TRY400  for operators, no traceback
            self._failed({"code": EXIT_CONFIG, "error": "the new configuration was refused, the old one goes on", "problems": [str(problem) for problem in error.problems]})
        except StartupError as error:
            log.error("reload refused: %s", error)  # noqa: TRY400
            self._failed({"code": EXIT_CANNOT_START, "error": str(error)})
        except Exception as error:
            log.exception("reload refused by a bug; the old generation goes on")
            self._failed({"code": EXIT_BUG, "error": f"{type(error).__name__}: {error}; this is a bug, its traceback is in the log; the old generation goes on"})

    def _start_candidate(self) -> None:
        supervisor = self._supervisor
        fleet = supervisor.fleet
        prepared = prepare(supervisor.config_path, fleet.next_generation, fleet.prepared.config)
        supervisor.admin.prepare(prepared.config.admin)
        try:
            begin_scoreboard(supervisor.boards, prepared)
            supervisor.overrides.write_cells()
            supervisor.publish()  # the new counters, before anybody counts
            fleet.try_candidate(prepared, time.monotonic())
        except BaseException:
            supervisor.admin.discard()
            fleet.retire()
            raise

    def finish(self, outcome: str) -> None:
        """The candidate serves ("") or was given up (why)."""
        supervisor = self._supervisor
        number = supervisor.fleet.generation
        self._until_at = time.monotonic() + self._handover_s
        if outcome:
            log.error("reload given up: %s; generation %d goes on", outcome, number)
            supervisor.admin.discard()
            self._reply = {"ok": False, "code": EXIT_CANNOT_START, "error": f"{outcome}; generation {number} goes on"}
            return
        messages.setup(supervisor.fleet.prepared.config.log.level, process="supervisor")
        supervisor.admin.commit()
        supervisor.overrides.use(supervisor.fleet.prepared.config)
        supervisor.publish()
        self._reply = {"ok": True, "generation": number}

    def step(self, now: float) -> None:
        """Answer, once nobody accepts who should not, or once that has taken too long."""
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
            self._repeat()
        else:
            self._failed(reply)

    def _failed(self, reply: dict[str, Any]) -> None:
        self._supervisor.notifier.ready(self._supervisor.status_line())
        self._answer({"ok": False, **reply})
        self._repeat()

    def _repeat(self) -> None:
        if self._again:
            self._again = False
            self.begin(None)

    def abandon(self, why: str) -> None:
        """The relay is told to end: whoever waits is told so."""
        self._reply, self._again = {}, False
        self._answer({"ok": False, "code": EXIT_CANNOT_START, "error": f"the relay was told to end ({why}) before the reload was done"})

    def _answer(self, reply: dict[str, Any]) -> None:
        """Tell the client that waits, if there is one."""
        client, self._client = self._client, None
        if client is not None:
            client.reply(reply)


def _refuse(client: Client | None, why: str) -> None:
    log.warning("reload refused: %s", why)
    if client is not None:
        client.reply({"ok": False, "code": EXIT_CANNOT_START, "error": why})
