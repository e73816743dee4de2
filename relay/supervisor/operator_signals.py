"""Does what a signal to the supervisor asks for.

Never: runs in a signal handler; `relay.supervisor.signals` makes events of signals.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable

from relay.core.fleet_view import Shutdown
from relay.supervisor.checker_process import CheckerProcess
from relay.supervisor.control import Client
from relay.supervisor.ending import Ending
from relay.supervisor.fleet import Fleet
from relay.supervisor.reload import Reloads
from relay.supervisor.upkeep import Upkeep


class OperatorSignals:
    """HUP, TERM, INT, QUIT, USR1 and USR2 from operators and the service manager."""

    def __init__(
        self,
        fleet: Fleet,
        ending: Ending,
        reloads: Reloads,
        upkeep: Upkeep,
        checker: CheckerProcess,
        upgrade: Callable[[Client | None], None],
    ) -> None:
        self._fleet = fleet
        self._ending = ending
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
                self._ending.stop_by_signal(number.name)
            elif number is signal.SIGQUIT:
                self._ending.begin(Shutdown.NOW, number.name)
            elif number is signal.SIGUSR1:
                self._fleet.workers.signal_all(signal.SIGUSR1)
            elif number is signal.SIGUSR2:
                self._upgrade(None)
            # SIGCHLD only wakes the loop; every turn reaps.
