"""Leaving: accept nobody any more, let the sessions finish, and close what is left when the time is over.

Never: closes a session before its time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from relay.core.lifecycle import Event, State
from relay.errors import Reason
from relay.shared.scoreboard import PHASE, PHASE_DRAINING

if TYPE_CHECKING:
    from relay.worker.listener import Acceptor
    from relay.worker.worker import Worker

log = logging.getLogger(__name__)


class Drain:
    """The end of one worker. `begin` once, then `check` on every tick and when a session closes."""

    def __init__(self, worker: Worker, acceptors: Sequence[Acceptor], timeout_s: float) -> None:
        self._worker = worker
        self._acceptors = acceptors
        self._timeout_s = timeout_s
        self._until_at = 0.0  # 0 while nobody wants us to leave
        self._closed = False
        self._stopping = False

    def begin(self, why: str) -> None:
        """Stop accepting when this turn of the loop is through; whoever is in the kernel's queue by then is still taken."""
        if self._until_at:
            return
        self._until_at = time.monotonic() + self._timeout_s
        self._worker.loop.after_turn(lambda: self._close(why))

    def _close(self, why: str) -> None:
        self._worker.admission.forget_waiting()
        for acceptor in self._acceptors:
            acceptor.close()
        self._closed = True
        self._worker.cells[PHASE] = PHASE_DRAINING  # a reload answers when it reads this
        log.info(
            "draining (%s): %d sessions have %g s to finish",
            why,
            len(self._worker.sessions),
            self._timeout_s,
        )
        if self._stopping:
            self.stop()  # asked for in the same turn: who was in the queues is told, too
        self.check()

    def check(self) -> None:
        """Whether it is over: no session left, or no time."""
        if not self._closed:
            return
        if not self._worker.sessions:
            self._worker.loop.running = False
        elif time.monotonic() >= self._until_at and not self._stopping:
            log.warning("drain_timeout_s is over: closing %d sessions", len(self._worker.sessions))
            self.stop()

    def stop(self) -> None:
        """Close every session now."""
        self._stopping = True  # each of them calls `check` when it closes
        overrun = Reason.GENERATION_ENDED if self._worker.scoreboard.overrun else None
        if overrun:
            log.warning(
                "relay.old_generations newer configurations have come: closing %d sessions",
                len(self._worker.sessions),
            )
        for session in list(self._worker.sessions):
            if session.state is not State.CLOSED:
                session.advance(Event.DRAIN, overrun)
        self._worker.loop.running = False
