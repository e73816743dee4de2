"""What a worker does once a second.

Never: takes longer than a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable

from relay.errors import Reason, SessionError, Side
from relay.logs import messages
from relay.shared.scoreboard import HEARTBEAT_MS, monotonic_ms
from relay.worker.backend import BackendState
from relay.worker.drain import Drain
from relay.worker.expiry import Expiry
from relay.worker.quiet_ends import QuietEnds
from relay.worker.session import RELAYING, Session
from relay.worker.worker import Worker


def tick(worker: Worker, drain: Drain, quiet_ends: QuietEnds, expiry: Expiry) -> None:
    """Send a heartbeat to the supervisor, and do what could wait."""
    worker.cells[HEARTBEAT_MS] = monotonic_ms()
    messages.flush()
    worker.usage.write(worker.cells)
    drain.check()
    quiet_ends.on_tick()
    for session in worker.busy:
        session.keep_exchanges()
    worker.busy.clear()
    worker.log.on_tick()
    if worker.examples is not None:
        worker.examples.on_tick()
    generations_ended = worker.scoreboard.forget_ended()
    for pool in worker.pools.values():
        if generations_ended:
            pool.find_worker_rows()
        for backend in pool.on_tick(worker.loop.now):
            _close_sessions(worker.sessions, backend)
    worker.admission.on_tick()
    expiry.on_tick(worker.loop.now)
    if worker.kicks is not None and worker.loop.now >= worker.kicks.until_at:
        worker.kicks = None


def _close_sessions(sessions: Iterable[Session], backend: BackendState) -> None:
    """Close the sessions of a backend that is DOWN.

    A session that is still connecting tries another backend when its attempt fails.
    """
    where = f"{backend.target.route} at {backend.target.address}"
    for session in [
        each for each in sessions if each.backend is backend and each.state in RELAYING
    ]:
        session.refuse(SessionError(Side.OUTBOUND, Reason.BACKEND_DOWN, where))
