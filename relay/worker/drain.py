"""How a worker ends: it stops accepting, and lets its sessions finish in time.

Never: closes a session before its time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Protocol

from relay.core.lifecycle import Event, State
from relay.errors import Reason
from relay.shared.scoreboard import PHASE, PHASE_DRAINING
from relay.worker.worker import Worker

log = logging.getLogger(__name__)


class Closable(Protocol):
    """A listening socket; see `relay.worker.listener.Acceptor.close`."""

    def close(self) -> None:
        """Accept the clients in the queue, and stop listening."""


class Drain:
    """The end of one worker: `begin` once, then `check` on every tick."""

    def __init__(self, worker: Worker, acceptors: Sequence[Closable], timeout_s: float) -> None:
        self._worker = worker
        self._acceptors = acceptors
        self._timeout_s = timeout_s
        self._until_at = 0.0  # 0 before `begin`
        self._closed = False
        self._stopping = False

    def begin(self, why: str) -> None:
        """Stop accepting after this turn. Clients that wait then are still served."""
        if self._until_at:
            return
        self._until_at = time.monotonic() + self._timeout_s
        self._worker.loop.after_turn(lambda: self._close(why))

    def _close(self, why: str) -> None:
        worker = self._worker
        worker.admission.forget_waiting()
        for acceptor in self._acceptors:
            acceptor.close()
        self._closed = worker.stops_when_empty = True
        worker.cells[PHASE] = PHASE_DRAINING  # a reload answers when it reads this
        log.info(
            "draining (%s): %d sessions have %g s to finish",
            why,
            len(worker.sessions),
            self._timeout_s,
        )
        if self._stopping:
            self.stop()  # requested in the same turn; it now includes the queued clients
        self.check()

    def check(self) -> None:
        """End the worker if no session is left, or if the time is over."""
        if not self._closed:
            return
        if not self._worker.sessions:
            self._worker.loop.running = False
        elif time.monotonic() >= self._until_at and not self._stopping:
            log.warning("drain_timeout_s is over: closing %d sessions", len(self._worker.sessions))
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
