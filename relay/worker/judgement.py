"""Judges the sessions of a worker again, when trust has changed.

A client is admitted once, but its session may last for days. After every update of
CAs, rules or revocation lists, the sessions are judged by them, a part in each turn,
and so are the backends that they use. Sessions that are in a handshake are judged at
its end: `worker.inbound` and `worker.outbound` compare the trust that it began with.

Never: judges by the clock (`expiry` does), or closes a session itself.
Next: `relay.worker.verdicts.Verdicts`
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from relay.core.lifecycle import State
from relay.errors import Reason, SessionError, Side
from relay.tls.generation import BackendTarget, Generation, InboundRoute
from relay.tls.revocation.revoked_set import RevokedSet
from relay.worker.session import HALF_OPEN, RELAYING, UPDATE_QUEUE, Session
from relay.worker.verdicts import PASSED, Check, Trust, Verdict, Verdicts
from relay.worker.worker import Worker

PER_TURN = 2_000
_NOT_JUDGED = HALF_OPEN | {State.CLOSED}

_BUG = Verdict(SessionError(Side.INBOUND, Reason.INTERNAL_ERROR), known=False)

Closing = tuple[Session, SessionError]
Place = InboundRoute | BackendTarget

log = logging.getLogger(__name__)


class _Basis(NamedTuple):
    """What sessions are judged by."""

    trust: Trust
    revoked: RevokedSet | None


class Judgement:
    """The judgement of one worker. `close` gets the sessions that do not pass."""

    def __init__(
        self,
        worker: Worker,
        generation: Generation,
        close: Callable[[Iterable[Closing]], None],
    ) -> None:
        self._worker = worker
        self._close = close
        self._routes: list[Place] = [
            each for several in generation.inbound.values() for each in several
        ]
        self._targets: list[Place] = [
            each for several in generation.targets.values() for each in several
        ]
        self._left: list[Session] = []
        self._queued = False
        self._verdicts: dict[Place, Verdicts] = {}
        self._checks: dict[tuple[Place, int], Check | None] = {}
        # What every session has passed, what this run judges by, and where they differ.
        self._passed = self._by_now()
        self._now = self._passed
        self._new_routes: set[Place] = set()
        self._new_targets: set[Place] = set()

    def _by_now(self) -> dict[Place, _Basis]:
        return {each: _Basis(each.trust, each.revoked) for each in (*self._routes, *self._targets)}

    def again(self) -> None:
        """Something has changed: judge every session, from the next turn on."""
        self._left = list(self._worker.sessions)
        self._verdicts, self._checks = {}, {}
        self._now = self._by_now()
        self._new_routes = set(filter(self._has_changed, self._routes))
        self._new_targets = set(filter(self._has_changed, self._targets))
        if not self._queued:
            self._queued = True
            self._worker.loop.later(self, UPDATE_QUEUE)

    def _has_changed(self, place: Place) -> bool:
        passed, now = self._passed[place], self._now[place]
        return passed.trust is not now.trust or passed.revoked is not now.revoked

    def step(self) -> None:
        """Judge the next sessions."""
        part = self._left[-PER_TURN:]
        del self._left[-PER_TURN:]
        closings = list(self._judge(part))
        if closings:
            self._close(closings)
        self._queued = bool(self._left)
        if self._queued:
            self._worker.loop.later(self, UPDATE_QUEUE)
        else:
            self._passed = self._now
            self._verdicts, self._checks = {}, {}
            self._worker.look_at_dates_at = 0.0  # sessions may expire at another time now

    def on_bug(self) -> None:
        """Judging raised: judge those that are left."""
        self._worker.loop.later(self, UPDATE_QUEUE)

    def _judge(self, sessions: Iterable[Session]) -> Iterator[Closing]:
        """The sessions that do not pass. Most have the trust of the one before them."""
        routes, targets, unjudged = self._new_routes, self._new_targets, 0
        at_route = at_trust = check = None
        for session in sessions:
            state, route, who = session.state, session.route, session.identity
            if state in _NOT_JUDGED or route is None or who is None:
                continue
            verdict = PASSED
            try:
                if route in routes:
                    trust = session.trust
                    if route is not at_route or trust is not at_trust:
                        at_route, at_trust = route, trust
                        check = self._check(Side.INBOUND, route, trust)
                    if check is not None:
                        verdict = check(who, session.chain)
                    # The dates of the CAs, and the grace time, may have changed too.
                    session.trust, session.expires_at = route.trust, 0.0
                if targets and verdict is PASSED and state in RELAYING:
                    verdict = self._judge_backend(session)
            except Exception:
                log.exception("bug: a session cannot be judged, and is closed; please report this")
                verdict = _BUG
            if verdict.error is not None:
                unjudged += not verdict.known
                yield session, verdict.error
        if unjudged:
            self._worker.counters.sessions_unjudged(unjudged)

    def _judge_backend(self, session: Session) -> Verdict:
        end, backend = session.outbound, session.backend
        if end is None or backend is None or end.peer is None:
            return PASSED
        peer, trust, target = end.peer, end.trust, backend.tls
        if target is None or target not in self._new_targets:
            return PASSED
        end.trust, session.expires_at = target.trust, 0.0
        check = self._check(Side.OUTBOUND, target, trust)
        return check(peer.identity, peer.chain) if check is not None else PASSED

    def _check(self, side: Side, place: Place, then: Trust | None) -> Check | None:
        """What judges a peer of this place that the trust of then has admitted."""
        key = (place, id(then))
        if key not in self._checks:
            verdicts = self._verdicts.get(place)
            if verdicts is None:
                has_new_lists = self._now[place].revoked is not self._passed[place].revoked
                verdicts = Verdicts(side, place, has_new_lists=has_new_lists)
                self._verdicts[place] = verdicts
            self._checks[key] = verdicts.since(then) if then is not None else None
        return self._checks[key]
