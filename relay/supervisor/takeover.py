"""The end of an upgrade, in the new program: its workers serve, the earlier ones drain.

Never: changes what serves (`relay.supervisor.generations.Generations` does).
"""

from __future__ import annotations

import logging
import socket

import relay
from relay.core.fleet_view import Phase, Rules, Shutdown
from relay.supervisor.admin_process import AdminProcess
from relay.supervisor.announcer import Announcer
from relay.supervisor.control import Client, ControlServer
from relay.supervisor.fleet import Fleet
from relay.supervisor.handover import State

log = logging.getLogger(__name__)


class Takeover:
    """Call `step` every turn until it is `done`."""

    def __init__(
        self, state: State, fleet: Fleet, admin: AdminProcess, announcer: Announcer, rules: Rules
    ) -> None:
        self.before: str = state["version"]
        self.done = False
        self._fleet = fleet
        self._admin = admin
        self._announcer = announcer
        self._rules = rules
        self._clients: list[Client] = []
        self._renewed = False  # the admin process was told to end
        self._until_at: float | None = None

    def take_clients(self, state: State, control: ControlServer) -> None:
        """Serve the clients that have connected to the version before."""
        for one in state["clients"]:
            connection = socket.socket(fileno=one["fd"])
            connection.setblocking(False)
            if one["waits"]:
                self._clients.append(control.take(connection))
            else:
                control.serve(connection)

    def step(self, now: float) -> None:
        """Answer when no worker of the version before accepts, or after a while."""
        if self._fleet.complete and not self._shows_before:
            self._fleet.generations.release_kept(now)
        if not self._announcer.announced:
            return
        if not self._renewed:
            self._renewed = True
            self._admin.renew()
        if self._fleet.generations.kept:
            return
        if self._until_at is None:
            self._until_at = now + self._rules.handover_s
        if self._accepting() and now < self._until_at:
            return
        self.done = True
        number = self._fleet.generations.number
        log.info(
            "upgraded from relay %s to %s: generation %d serves, and the earlier workers drain",
            self.before,
            relay.__version__,
            number,
        )
        for client in self._clients:
            client.reply(
                {
                    "ok": True,
                    "before": self.before,
                    "version": relay.__version__,
                    "generation": number,
                }
            )

    @property
    def _shows_before(self) -> bool:
        """Whether the admin process is still that of the version before.

        It sees no worker of this version. If the others drained first, its /readyz
        would say that nobody serves.
        """
        if self._fleet.ending is not Shutdown.NO:
            return False
        return not self._renewed or self._admin.ending

    def _accepting(self) -> bool:
        return any(worker.phase is Phase.SERVING for worker in self._fleet.outgoing())
