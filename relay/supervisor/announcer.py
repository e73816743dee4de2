"""Announces to scripts, systemd and the log where the relay accepts.

Never: changes what is served.
"""

from __future__ import annotations

import logging
import os

from relay.core.fleet_view import Shutdown
from relay.shared.messages import Endpoints
from relay.supervisor.fd_store import FdStore
from relay.supervisor.state_dir import StateDir
from relay.supervisor.status import RelayState, Status
from relay.supervisor.systemd import Notifier

_REMEDY = "start it again when it has stopped"
_REFUSALS = {
    RelayState.LEAVING: f"the relay drains after relay.drain_delay_s, and then stops; {_REMEDY}",
    RelayState.DRAINING: f"the relay is draining, and then stops; {_REMEDY}",
}

log = logging.getLogger(__name__)


class Announcer:
    """Keeps endpoints.json and the service manager up to date."""

    def __init__(
        self, status: Status, state_dir: StateDir, notifier: Notifier, store: FdStore
    ) -> None:
        self._status = status
        self._state_dir = state_dir
        self._notifier = notifier
        self._store = store
        self._announced: Endpoints | None = None
        self.took_over = False  # from the version before an upgrade, which has served

    @property
    def state(self) -> RelayState:
        """What the relay does."""
        return self._status.state

    @property
    def refusal(self) -> str:
        """Why no reload and no upgrade begins any more; empty while one may."""
        return _REFUSALS.get(self.state, "")

    @property
    def served(self) -> bool:
        """Whether the relay has served: after that, no error is a failed start."""
        return self._announced is not None or self.took_over

    @property
    def announced(self) -> bool:
        """Whether this version has served."""
        return self._announced is not None

    def announce(self) -> None:
        """Announce, when all slots are served and after every change."""
        fleet = self._status.fleet
        if fleet.ending is not Shutdown.NO or not fleet.complete:
            return
        endpoints = self._endpoints()
        if endpoints == self._announced:
            return
        first, self._announced = self._announced is None, endpoints
        if self.state is RelayState.STARTING:
            self._status.state = RelayState.SERVING
            self._status.publish()
        try:
            self._state_dir.write_endpoints(endpoints)
        except OSError as error:
            log.error(
                "%s: cannot write endpoints.json: %s; scripts read the old contents until a"
                " later try succeeds",
                self._state_dir.path,
                error.strerror or error,
            )
        self._ready()
        self._store.update(fleet.generations.sockets)
        if first:
            accepting = ", ".join(
                f"{address} ({name})"
                for name, addresses in endpoints["listeners"].items()
                for address in addresses
            )
            log.info("the relay accepts on %s", accepting, extra=endpoints)

    def _endpoints(self) -> Endpoints:
        """The content of endpoints.json."""
        fleet = self._status.fleet
        return {
            "generation": fleet.generations.number,
            "supervisor": {"pid": os.getpid()},
            "workers": [
                {"slot": slot, "pid": pid} for slot, pid in sorted(fleet.serving_pids().items())
            ],
            "listeners": fleet.generations.sockets.endpoints(),
            "admin": self._status.admin.address,
        }

    def reload_begins(self) -> None:
        """Tell systemd that a reload begins."""
        self._notifier.reloading()

    def reload_waits(self) -> None:
        """Tell systemd that a canary is tried: its commands do not wait for the end."""
        self._ready()

    def reload_is_over(self, *, succeeded: bool, why: str = "") -> None:
        """Tell systemd and the readers of metrics that the reload is over."""
        self._status.reload_is_over(succeeded=succeeded, why=why)
        self._ready()

    def _ready(self) -> None:
        """Tell systemd that the relay serves, unless it knows that the relay ends."""
        if self.state is RelayState.SERVING:
            self._notifier.ready(self._status.line())

    def leave(self, drain_at: float, within_s: float) -> None:
        """The relay drains at `drain_at`, and ends within that time."""
        self._status.state, self._status.drain_at = RelayState.LEAVING, drain_at
        self._status.publish()
        self._notifier.stopping("leaving: /readyz says no", within_s)

    def keep_no_sockets(self) -> None:
        """The service does not restart: its clients are refused at once."""
        self._store.clear()
        self._status.fleet.generations.remove_names()

    def end(self, ending: Shutdown, within_s: float, *, for_good: bool) -> None:
        """The relay was told to end, and ends within that time.

        `for_good`: the service does not restart.
        """
        if for_good or not self._notifier.present:
            self.keep_no_sockets()
        self._status.state = RelayState.DRAINING
        self._status.publish()
        self._notifier.stopping("draining" if ending is Shutdown.DRAIN else "stopping", within_s)
        self._state_dir.remove_endpoints()
