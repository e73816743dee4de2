"""How a worker ends: it stops accepting, and lets its sessions finish in time.

The time depends on why it ends. The supervisor writes it into the scoreboard, and may
change it later: `reload_drain_s` from its replacement by a reload, `drain_timeout_s`
from the stop of the relay. Without the supervisor, and after a SIGTERM of somebody
else, it is the `drain_timeout_s` of the worker's own configuration.

Never: closes a session before its time, unless it speaks HTTP/1 and is between two
messages (see `relay.worker.quiet_ends`).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from relay.core.lifecycle import Event, State
from relay.errors import Reason
from relay.shared.scoreboard import PHASE, PHASE_DRAINING
from relay.worker.quiet_ends import QuietEnds
from relay.worker.worker import Worker

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DrainUpdate:
    """Until when workers of the version before an upgrade may drain; 0 is no change.

    Only they can write to their scoreboard.
    """

    replaced_until_at: float = 0
    stop_until_at: float = 0


class Closable(Protocol):
    """A listening socket; see `relay.worker.listener.Acceptor.close`."""

    def close(self) -> None:
        """Accept the clients in the queue, and stop listening."""


class Drain:
    """The end of one worker: `begin` once, then `check` on every tick."""

    def __init__(
        self,
        worker: Worker,
        acceptors: Sequence[Closable],
        timeout_s: float,
        quiet_ends: QuietEnds | None = None,
    ) -> None:
        self._worker = worker
        self._acceptors = acceptors
        self._timeout_s = timeout_s
        self._quiet_ends = quiet_ends
        self._begun = False
        self._until_at = math.inf  # set without the supervisor
        self._limits_at: tuple[float, float] | None = None  # at the last SIGTERM
        self._closed = False
        self._stopping = False

    def begin(self, why: str, *, supervised: bool = True) -> None:
        """Stop accepting after this turn. Clients that wait then are still served.

        `supervised`: the supervisor may be the one that asks.
        """
        limits_at = self._worker.scoreboard.drain_limits_at
        by_supervisor = any(limits_at) and limits_at != self._limits_at
        self._limits_at = limits_at
        if not (supervised and by_supervisor):
            self._until_at = min(self._until_at, time.monotonic() + self._timeout_s)
        if not self._begun:
            self._begun = True
            self._worker.loop.after_turn(lambda: self._close(why))

    def _limit(self) -> tuple[float, str]:
        """Until when sessions may go on, and the key that says so."""
        replaced_at, stop_at = self._worker.scoreboard.drain_limits_at
        limits = [(self._until_at, "drain_timeout_s")]
        limits += [(stop_at, "drain_timeout_s")] if stop_at else []
        limits += [(replaced_at, "reload_drain_s")] if replaced_at else []
        return min(limits)

    def _close(self, why: str) -> None:
        worker = self._worker
        worker.admission.forget_waiting()
        for acceptor in self._acceptors:
            acceptor.close()
        self._closed = worker.stops_when_empty = True
        worker.cells[PHASE] = PHASE_DRAINING  # a reload answers when it reads this
        until_at, _ = self._limit()
        left_s = round(until_at - time.monotonic(), 1)
        how_long = "may go on" if math.isinf(until_at) else f"have {left_s:g} s to finish"
        log.info("draining (%s): %d sessions %s", why, len(worker.sessions), how_long)
        if self._stopping:
            self.stop()  # requested in the same turn; it now includes the queued clients
        self.check()

    def check(self) -> None:
        """End the worker if no session is left, or if the time is over."""
        if not self._closed:
            return
        if not self._worker.sessions:
            self._worker.loop.running = False
            return
        until_at, key = self._limit()
        now = time.monotonic()
        if self._quiet_ends is not None and not self._stopping:
            self._quiet_ends.drain(until_at, now)
        if now >= until_at and not self._stopping:
            log.warning("%s is over: closing %d sessions", key, len(self._worker.sessions))
            self.stop()

    def stop(self) -> None:
        """Close every session now."""
        self._stopping = True
        worker = self._worker
        overrun = Reason.GENERATION_ENDED if worker.scoreboard.overrun else None
        if overrun:
            log.warning(
                "closing %d sessions of this old generation: more old generations drain than"
                " relay.old_generations allows",
                len(worker.sessions),
            )
        for session in list(worker.sessions):
            if session.state is not State.CLOSED:
                session.advance(Event.DRAIN, overrun)
        worker.loop.running = False
