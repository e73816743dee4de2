"""Reloads and renewals, from the request to the answer.

Every turn of the supervisor's loop does a little of what is under way:

    preparing      a child inspects the configuration and its files; if a setting has
                   changed, the TLS contexts of the next generation are built
    renewing       no setting has changed: the running processes get the renewed files
    starting       otherwise the new workers start beside the serving ones
    trying         a canary: one new worker is compared with the serving ones first
    handing over   one of the two generations has lost, and its workers stop
                   accepting

The answer is sent after the workers of the generation that lost have stopped accepting,
or after all workers use the renewed files. So a client that connects after the answer
meets what the answer names.

Never: touches the serving generation before the next one serves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from relay.core.fleet_actions import Decision, GiveUp
from relay.core.fleet_view import Rules, Shutdown
from relay.shared.replies import FailureReply, ReloadReply
from relay.supervisor.announcer import Announcer
from relay.supervisor.canary import Canary
from relay.supervisor.control import Client
from relay.supervisor.disabled import Disabled
from relay.supervisor.fleet import Fleet
from relay.supervisor.prepared import Prepared
from relay.supervisor.preparer import Preparer
from relay.supervisor.process import EXIT_CANNOT_START
from relay.supervisor.reload_refusals import (
    bug_reply,
    in_one_line,
    known_refusal,
    log_refusal,
    reasons_of,
    refuse,
)
from relay.supervisor.renewal_check import Renewed
from relay.supervisor.renewals import Renewals, reply_to
from relay.supervisor.status import RelayState
from relay.supervisor.switchover import Switchover
from relay.tls.certificates.file_sets import SetKey

log = logging.getLogger(__name__)


class Reloads:
    """One reload at a time.

    A request waits during another reload, and while the relay starts, because the file
    may have changed after it was read. One reload then answers all requests that wait.

    Without a request, the relay renews files in place when they have changed.
    """

    def __init__(
        self,
        fleet: Fleet,
        preparer: Preparer,
        switchover: Switchover,
        announcer: Announcer,
        disabled: Disabled,
        renewals: Renewals,
        canary: Canary,
        rules: Rules,
    ) -> None:
        self._fleet = fleet
        self._preparer = preparer
        self._switchover = switchover
        self._announcer = announcer
        self._disabled = disabled
        self._renewals = renewals
        self._canary = canary
        self._rules = rules
        self._clients: list[Client] = []  # this reload answers them
        self._waiting: list[Client] = []  # the next reload answers them
        self._requested = False  # whether the next reload was requested
        self._canary_s = 0.0  # how long the next reload tries a canary; 0: not at all
        self._due: frozenset[SetKey] = frozenset()  # looked at without a request
        self._found: Renewed | None = None  # put into use for a request
        self._reply: ReloadReply | FailureReply | None = None  # set while handing over
        self._handover_until_at = 0.0
        self.upgrading: Callable[[], bool] = lambda: False

    @property
    def eager(self) -> bool:
        """Whether there is something to do at once, so that the loop must not wait."""
        return (
            self._preparer.building
            or self._renewals.building
            or self._switchover.dismantling
            or (self._requested and not self._busy)
        )

    @property
    def handing_over(self) -> bool:
        """Whether the reload is decided, and workers that lost may still accept."""
        return self._reply is not None

    @property
    def renewing(self) -> bool:
        """Whether workers are about to use renewed files."""
        return self._renewals.busy

    @property
    def busy(self) -> bool:
        """Whether a reload or a renewal is under way."""
        return self._in_work or self._starting

    @property
    def _in_work(self) -> bool:
        return (
            self._preparer.running
            or self._renewals.busy
            or self._found is not None
            or self.handing_over
            or self._announcer.state is RelayState.STARTING
        )

    @property
    def _starting(self) -> bool:
        return self._fleet.generations.next is not None and self._fleet.ending is Shutdown.NO

    @property
    def _busy(self) -> bool:
        return self.busy or self.upgrading()

    def take_waiting(self) -> list[Client]:
        """The clients that wait for the next reload: an upgrade answers them."""
        waiting, self._waiting, self._requested = self._waiting, [], False
        return waiting

    # Requests.

    def request(self, client: Client | None, canary_s: float = 0.0) -> None:
        """Reload, perhaps with a canary, for a client or for SIGHUP (None)."""
        if self._announcer.refusal:
            refuse(client, self._announcer.refusal)
            return
        self._requested, self._canary_s = True, max(self._canary_s, canary_s)
        if client is not None:
            self._waiting.append(client)
        if self._due:  # the requested reload looks at all sets
            self._preparer.close()
            self._renewals.failed(self._due)
            self._due = frozenset()
        self._begin_requested()

    def abandon(self, why: str) -> None:
        """The relay was told to end: give up, and answer all waiting clients."""
        self._preparer.close()
        self._renewals.failed(self._due)
        self._renewals.abandon()
        self._reply, self._found, self._requested, self._due = None, None, False, frozenset()
        self._clients += self._waiting
        self._waiting = []
        self._answer(
            {
                "ok": False,
                "code": EXIT_CANNOT_START,
                "error": f"the relay was told to end ({why}) before the reload was done",
            }
        )

    # Every turn.

    def step(self, now: float) -> None:
        """Go on with what is under way."""
        self._preparer.reap(now)
        self._switchover.step(now)
        for line in self._canary.step(now, may_promote=not self._in_work):
            self._announcer.reload_waits()
            for client in (*self._clients, *self._waiting):
                client.tell(line)
        self._begin_requested()
        self._begin_renewal(now)
        self._prepare(now)
        self._renewals.step(now)
        if self._found is not None and not self._renewals.busy and self._switchover.stay(now):
            self._answer_renewed(self._found)
        if self._reply is not None:
            self._hand_over(now, self._reply)

    def _begin_requested(self) -> None:
        """Begin the reload that was requested, if none is under way."""
        if not self._requested or self._busy:
            return
        self._requested = False
        self._clients, self._waiting = self._waiting, []
        self._announcer.reload_begins()
        self._canary.begin(self._canary_s)
        self._canary_s = 0.0
        with self._refusing():
            self._preparer.begin(canary=self._canary.wanted)

    def _begin_renewal(self, now: float) -> None:
        """Look at files that have changed or are awaited, also while it drains."""
        reloads = (self._starting or self._requested) and not self._canary.is_tried
        if self._in_work or self.upgrading() or reloads or self._fleet.ending is Shutdown.NOW:
            return
        self._due = self._renewals.due(now, lambda: self._disabled.awaited)
        if self._due:
            with self._refusing():
                self._preparer.begin(self._due)

    def _prepare(self, now: float) -> None:
        """Go on preparing. When done, start the next generation, or renew files."""
        with self._refusing():
            prepared = self._preparer.step(now)
            if isinstance(prepared, Prepared):
                self._switchover.start(prepared, canary=self._canary.wanted)
            elif prepared is not None:
                self._preparer.close()
                self._found = None if self._due else prepared
                self._due = frozenset()
                self._renewals.begin(now, prepared)
                if prepared.revoked:
                    self._canary.hurry()

    def _answer_renewed(self, found: Renewed) -> None:
        """All workers use what could be renewed."""
        self._found = None
        reply = reply_to(found, self._fleet.generations.number, self._renewals.problem)
        if reply["ok"]:
            if not found.names:
                log.info("nothing has changed; generation %d goes on", reply["generation"])
            self._announcer.reload_is_over(succeeded=True)
            self._answer(reply)
            return
        for problem in reply.get("problems", ()):
            log.error("reload refused: %s", problem)
        self._fail(reply)

    def decided(self, now: float, decision: Decision) -> None:
        """The next generation serves or was given up: begin to hand over."""
        self._switchover.finish(decision)
        self._canary.over()
        self._handover_until_at = now + self._rules.handover_s
        number = self._fleet.generations.number
        if isinstance(decision, GiveUp):
            error = f"{decision.why}; generation {number} goes on"
            log.error("reload given up: %s", error)
            self._reply = {"ok": False, "code": EXIT_CANNOT_START, "error": error}
        else:
            self._reply = {"ok": True, "generation": number}
            if self._canary.note:
                self._reply["warning"] = self._canary.note

    def _hand_over(self, now: float, reply: ReloadReply | FailureReply) -> None:
        """Answer when no outgoing worker accepts, or when that takes too long."""
        outgoing = self._fleet.outgoing()
        if outgoing and now < self._handover_until_at:
            return
        self._fleet.warn_of(outgoing, self._rules.handover_s)
        self._reply = None
        if reply["ok"]:
            log.info("generation %d serves; the earlier workers drain", reply["generation"])
            self._announcer.reload_is_over(succeeded=True)
            self._announcer.announce()
            self._answer(reply)
        else:
            self._fail(reply)

    # Refusals.

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """An exception in this context ends the reload, and nothing else."""
        try:
            yield
        except Exception as error:
            self._preparer.close()
            refusal = known_refusal(error)
            if refusal is None:
                log.exception(
                    "bug: the reload failed; the old generation goes on; please report this"
                )
                self._fail(bug_reply(error))
            elif self._due:
                self._renewals.failed(self._due, "; ".join(reasons_of(refusal)))
                self._due = frozenset()
            else:
                self._fail(log_refusal(refusal))

    def _fail(self, reply: FailureReply) -> None:
        self._announcer.reload_is_over(succeeded=False, why=in_one_line(reply))
        self._answer(reply)

    def _answer(self, reply: ReloadReply | FailureReply) -> None:
        """Answer the clients of this reload."""
        clients, self._clients = self._clients, []
        for client in clients:
            client.reply(reply)
