"""Does what a signal to the supervisor asks for, and ends the relay.

Never: runs in a signal handler; `relay.supervisor.signals` makes events of signals.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterable

from relay.core.fleet_view import Shutdown
from relay.supervisor.announcer import Announcer
from relay.supervisor.checker_process import CheckerProcess
from relay.supervisor.fleet import Fleet
from relay.supervisor.reload import Reloads
from relay.supervisor.upkeep import Upkeep

log = logging.getLogger(__name__)


class OperatorSignals:
    """HUP, TERM, INT, QUIT and USR1 from operators and the service manager."""

    def __init__(
        self,
        fleet: Fleet,
        announcer: Announcer,
        reloads: Reloads,
        upkeep: Upkeep,
        checker: CheckerProcess,
    ) -> None:
        self._fleet = fleet
        self._announcer = announcer
        self._reloads = reloads
        self._upkeep = upkeep
        self._checker = checker

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
            # SIGCHLD only wakes the loop; every turn reaps.

    def end(self, ending: Shutdown, why: str) -> None:
        """Drain, or stop now; ignored if the relay does that already."""
        if self._fleet.ending in (ending, Shutdown.NOW):
            return
        how = "draining, then stopping" if ending is Shutdown.DRAIN else "stopping now"
        log.info("%s: %s", why, how)
        self._announcer.end(ending)
        self._fleet.end(ending)
        self._reloads.abandon(why)
