"""How the relay ends: now, or by a drain, which `relay.drain_delay_s` may put off.

During the delay the relay still accepts clients, but /readyz says no and the service
manager knows. So load balancers look elsewhere before the first client is refused.

Never: ends a session (the workers do).
"""

from __future__ import annotations

import logging
import time

from relay.core.fleet_view import Shutdown
from relay.supervisor.announcer import Announcer
from relay.supervisor.fleet import Fleet
from relay.supervisor.reload import Reloads
from relay.supervisor.status import RelayState

# What the end may need beside the delay and drain_timeout_s: SIGKILL, and the files.
GRACE_S = 15.0

log = logging.getLogger(__name__)


class Ending:
    """The end of the relay. `step` begins the drain when its delay is over."""

    def __init__(self, fleet: Fleet, announcer: Announcer, reloads: Reloads) -> None:
        self._fleet = fleet
        self._announcer = announcer
        self._reloads = reloads
        self.drain_at = float("inf")
        self._for_good = False

    @property
    def begun(self) -> bool:
        """Whether the relay was told to end."""
        return self.drain_at != float("inf") or self._fleet.ending is not Shutdown.NO

    def stop_by_command(self, command: str) -> None:
        """End by `relay drain` or `relay stop`.

        A signal may be the first half of `systemctl restart`, so stored sockets stay.
        These commands are not: their clients are refused at once.
        """
        self._for_good = True
        if self._fleet.ending is not Shutdown.NO:  # begun by a signal, which keeps them
            self._announcer.keep_no_sockets()
        self.begin(Shutdown.DRAIN if command == "drain" else Shutdown.NOW, f"relay {command}")

    def stop_by_signal(self, name: str) -> None:
        """End by TERM or INT. A second one skips the delay, or ends the drain."""
        again = self._fleet.ending is not Shutdown.NO
        self.begin(Shutdown.NOW if again else Shutdown.DRAIN, name)

    def begin(self, ending: Shutdown, why: str) -> None:
        """Drain, or stop now; ignored if the relay does that already.

        The first request of a drain begins its delay, the second one skips the rest.
        """
        if self._fleet.ending in (ending, Shutdown.NOW):
            return
        settings = self._fleet.generations.serving.config.relay
        delays = ending is Shutdown.DRAIN and settings.drain_delay_s > 0
        if delays and self._announcer.state is RelayState.SERVING:
            self.drain_at = time.monotonic() + settings.drain_delay_s
            log.info(
                "%s: /readyz says no from now on; draining in %g s, then stopping",
                why,
                settings.drain_delay_s,
            )
            within_s = settings.drain_delay_s + settings.drain_timeout_s + GRACE_S
            self._announcer.leave(self.drain_at, within_s)
            return
        self._end(ending, why)

    def _end(self, ending: Shutdown, why: str) -> None:
        how = "draining, then stopping" if ending is Shutdown.DRAIN else "stopping now"
        log.info("%s: %s", why, how)
        self.drain_at = float("inf")
        drain_timeout_s = self._fleet.generations.serving.config.relay.drain_timeout_s
        within_s = GRACE_S + (drain_timeout_s if ending is Shutdown.DRAIN else 0)
        self._announcer.end(ending, within_s, for_good=self._for_good)
        self._fleet.end(ending)
        self._reloads.abandon(why)

    def step(self, now: float) -> None:
        """Begin the drain if its delay is over."""
        if now >= self.drain_at:
            self._end(Shutdown.DRAIN, "relay.drain_delay_s is over")
