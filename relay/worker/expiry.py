"""Ends sessions whose peer's certificate has expired.

Each session has one instant before which nothing of it expires. The smallest of them is
compared once a second. When it has come, the sessions that are due are looked at: a CA
may have been renewed meanwhile, or the route lets its sessions finish.

Certificates of one batch expire at the same second. So each session gets up to JITTER_S
more, and their clients do not all come back at once.

A clock that jumps must not end everybody's session. After a jump nothing ends for
SETTLE_S, in which the clock may be corrected. CLOCK_MONOTONIC shows the jump.

Never: lets an expired client in (see `relay.tls.identity.admit`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator

from relay.core.lifecycle import State
from relay.errors import Reason, SessionError, Side
from relay.tls.generation import InboundRoute
from relay.tls.identity import Identity
from relay.tls.standing import valid_until
from relay.tls.verification import Chain
from relay.worker.session import HALF_OPEN, INFINITY, Session
from relay.worker.verdicts import Trust
from relay.worker.worker import Worker

JITTER_S = 10.0
JUMP_S = 5.0  # a correction that is smaller than this is no jump
SETTLE_S = 10.0
# Looking at a session takes 1 µs. More of them wait for the next tick.
PER_TICK = 4_000
_GOLDEN = 0.618_033_988_749_895  # spreads consecutive numbers evenly
_REASONS = {
    Side.INBOUND: Reason.EXPIRED_DURING_SESSION,
    Side.OUTBOUND: Reason.BACKEND_EXPIRED_DURING_SESSION,
}
_NOT_LOOKED_AT = HALF_OPEN | {State.CLOSED}

Closing = tuple[Session, SessionError]

log = logging.getLogger(__name__)


class Expiry:
    """The expiries of one worker's sessions.

    `close` gets the sessions that are to be closed. The worker has the time at which
    the first of them may be due.
    """

    def __init__(self, worker: Worker, close: Callable[[Iterable[Closing]], None]) -> None:
        self._worker = worker
        self._close = close
        self._clock_ahead_s: float | None = None  # of CLOCK_MONOTONIC
        self._settled_at = 0.0

    def on_tick(self, now: float) -> None:
        """Once a second, with CLOCK_MONOTONIC: end the sessions that are due."""
        now_at = time.time()
        self._watch_clock(now_at - now, now)
        if now_at >= self._worker.look_at_dates_at and now >= self._settled_at:
            closings = list(self._due(now_at))
            if closings:
                self._close(closings)

    def _watch_clock(self, ahead_s: float, now: float) -> None:
        before_s, self._clock_ahead_s = self._clock_ahead_s, ahead_s
        if before_s is not None and abs(ahead_s - before_s) > JUMP_S:
            self._settled_at = now + SETTLE_S
            log.warning(
                "the clock was set %+.0f s; sessions with expired certificates end in %g s at the"
                " earliest; if the new time is wrong, correct it before",
                ahead_s - before_s,
                SETTLE_S,
            )

    def _due(self, now_at: float) -> Iterable[Closing]:
        """The sessions that end now. Finds the next instant, too."""
        next_at, looked_at = INFINITY, 0
        for session in self._worker.sessions:
            if session.expires_at <= now_at and session.state not in _NOT_LOOKED_AT:
                looked_at += 1
                if looked_at <= PER_TICK:
                    error = self._look_at(session, now_at)
                    if error is not None:
                        yield session, error
                        continue
            next_at = min(next_at, session.expires_at)
        self._worker.look_at_dates_at = next_at

    def _look_at(self, session: Session, now_at: float) -> SessionError | None:
        """Why the session ends now, or None. Sets when it is to be looked at again."""
        more_s = session.number * _GOLDEN % 1 * JITTER_S
        session.expires_at = INFINITY
        for side, until_at, grace_s in _dates(session):
            end_at = until_at + grace_s + more_s
            if end_at <= now_at:
                return SessionError(side, _REASONS[side], _when(until_at))
            session.expires_at = min(session.expires_at, end_at)
        return None


def _dates(session: Session) -> Iterator[tuple[Side, float, float]]:
    """Until when each peer is valid, and how long the session may outlive that."""
    route, who = session.route, session.identity
    if isinstance(route, InboundRoute) and who is not None:
        until_at = valid_until(who, session.chain, route.trust.cas)
        yield Side.INBOUND, until_at, route.trust.expiry_grace_s
    end, backend = session.outbound, session.backend
    if end is not None and end.peer is not None and backend is not None and backend.tls is not None:
        trust = backend.tls.trust
        until_at = valid_until(end.peer.identity, end.peer.chain, trust.cas)
        yield Side.OUTBOUND, until_at, trust.expiry_grace_s


def note(session: Session, who: Identity, chain: Chain, trust: Trust) -> None:
    """A peer was admitted: the session is looked at when something of it expires.

    A CA may be renewed in time, so this is only the earliest possible end.
    """
    at = trust.cas.valid_until.get(who.issuer_der, INFINITY)  # a resumption has no chain
    for each in (who, *chain):
        at = min(at, each.not_after_at)
    at += trust.expiry_grace_s
    if at < session.expires_at:
        session.expires_at, worker = at, session.worker
        worker.look_at_dates_at = min(worker.look_at_dates_at, at)


def _when(until_at: float) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(until_at))
    return f"valid until {stamp}"
