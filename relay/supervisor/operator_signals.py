"""Does what a signal to the supervisor asks for, and ends the relay.

Never: runs in a signal handler; `relay.supervisor.signals` makes events of signals.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterable

from relay.core.fleet_view import Shutdown
from relay.supervisor.announcer import Announcer
from relay.supervisor.checker_process import CheckerProcess
from relay.supervisor.control import Client
from relay.supervisor.fleet import Fleet
from relay.supervisor.reload import Reloads
from relay.supervisor.upkeep import Upkeep

log = logging.getLogger(__name__)


class OperatorSignals:
    """HUP, TERM, INT, QUIT, USR1 and USR2 from operators and the service manager."""

    def __init__(
        self,
        fleet: Fleet,
        announcer: Announcer,
        reloads: Reloads,
        upkeep: Upkeep,
        checker: CheckerProcess,
        upgrade: Callable[[Client | None], None],
    ) -> None:
        self._fleet = fleet
        self._announcer = announcer
        self._reloads = reloads
        self._upkeep = upkeep
        self._checker = checker
        self._upgrade = upgrade

    def take(self, numbers: Iterable[signal.Signals]) -> None:
        """Act on signals, in order."""
        for number in numbers:
            if number is signal.SIGHUP:
                self._upkeep.look(self._fleet.generations.serving.identity)
                self._checker.fetch_lists()
                self._reloads.request(None)
            elif number in (signal.SIGTERM, signal.SIGINT):
                again = self._fleet.ending is not Shutdown.NO
                self.end(Shutdown.NOW if again else Shutdown.DRAIN, number.name)
            elif number is signal.SIGQUIT:
                self.end(Shutdown.NOW, number.name)
            elif number is signal.SIGUSR1:
                self._fleet.workers.signal_all(signal.SIGUSR1)
            elif number is signal.SIGUSR2:
                self._upgrade(None)
            # SIGCHLD only wakes the loop; every turn reaps.

    def end(self, ending: Shutdown, why: str) -> None:
        """Drain, or stop now; ignored if the relay does that already."""
        if self._fleet.ending in (ending, Shutdown.NOW):
            return
        how = "draining, then stopping" if ending is Shutdown.DRAIN else "stopping now"
        log.info("%s: %s", why, how)
        # A signal may be the first half of systemctl restart: stored sockets stay.
        self._announcer.end(ending, for_good=why.startswith("relay "))
        self._fleet.end(ending)
        self._reloads.abandon(why)
