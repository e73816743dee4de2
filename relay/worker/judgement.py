"""Judges the sessions of a worker again, when their trust has changed.

A client is admitted once, but its session may last for days. After every update of
CAs, rules or revocation lists, the sessions are judged by them, a part in each turn.
Sessions whose client has not shown its certificate yet are judged when they are
admitted: the same function compares the trust that the handshake began with.

Nearly all sessions share their route's trust and the end of their chain, so what is
found for one holds for the others, and a session costs about 0.3 µs.

Never: judges by the clock (`expiry` does), or closes a session itself.
Next: `relay.tls.standing.standing`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from relay.core.lifecycle import State
from relay.errors import Reason, SessionError, Side
from relay.tls.explain import Failure
from relay.tls.identity import Identity
from relay.tls.standing import Standing, has_lost_none, standing
from relay.tls.trust import ClientTrust
from relay.tls.verification import Chain
from relay.worker.session import HALF_OPEN, UPDATE_QUEUE, Session
from relay.worker.worker import Worker

PER_TURN = 4_000
_LOST = "the CA that the client's certificate leads to is no longer in client_ca"
_UNKNOWN = (
    "client_ca has lost CAs, and the client had resumed an earlier TLS session, which does not"
    " tell which CA issued its certificate"
)

Closing = tuple[Session, SessionError]


class Verdict(NamedTuple):
    """Why a client is not trusted, or None, and whether that could be told at all."""

    failure: Failure | None = None
    known: bool = True


_TRUSTED = Verdict()


def judge_cas(who: Identity, chain: Chain, then: ClientTrust, now: ClientTrust) -> Verdict:
    """Whether the CAs of now lead to a client that those of then verified."""
    found = standing(who, chain, then.cas, now.cas)
    if found is Standing.TRUSTED:
        return _TRUSTED
    known = found is Standing.GONE
    return Verdict(Failure(Reason.UNKNOWN_CA, _LOST if known else _UNKNOWN), known)


class _Changes:
    """What a change of trust means for the sessions of one route.

    What was found is kept by the address of what it was found for: all of that lives at
    least as long as the sessions that are judged.
    """

    __slots__ = ("_by_anchor", "_by_client", "_changed", "now")

    def __init__(self, now: ClientTrust) -> None:
        self.now = now
        self._changed: dict[int, tuple[bool, bool]] = {}
        self._by_anchor: dict[tuple[int, int], tuple[SessionError | None, bool]] = {}
        self._by_client: dict[int, SessionError | None] = {}

    def since(self, then: ClientTrust) -> tuple[bool, bool]:
        """Whether CAs have gone, and whether the rules are others."""
        changed = self._changed.get(id(then))
        if changed is None:
            lost = not has_lost_none(then.cas, self.now.cas)
            changed = self._changed[id(then)] = (lost, then.rules != self.now.rules)
        return changed

    def judge_cas(
        self, who: Identity, chain: Chain, then: ClientTrust
    ) -> tuple[SessionError | None, bool]:
        """The error of sessions whose CA has gone, and whether that could be told."""
        key = (id(then), id(chain[-1] if chain else who))
        found = self._by_anchor.get(key)
        if found is None:
            failure, known = judge_cas(who, chain, then, self.now)
            error = _error(failure.detail) if failure is not None else None
            found = self._by_anchor[key] = (error, known)
        return found

    def judge_rules(self, who: Identity) -> SessionError | None:
        """The error of sessions that the rules do not admit."""
        if id(who) not in self._by_client:
            rules = self.now.rules
            self._by_client[id(who)] = None if rules.allow(who) else _error(rules.why_not(who))
        return self._by_client[id(who)]


def _error(detail: str) -> SessionError:
    return SessionError(Side.INBOUND, Reason.NOT_ALLOWED_DURING_SESSION, detail)


class Judgement:
    """The judgement of one worker. `close` gets the sessions that do not pass."""

    def __init__(self, worker: Worker, close: Callable[[Iterable[Closing]], None]) -> None:
        self._worker = worker
        self._close = close
        self._left: list[Session] = []
        self._changes: dict[int, _Changes] = {}
        self._queued = False

    def again(self) -> None:
        """Something has changed: judge every session, from the next turn on."""
        self._left = list(self._worker.sessions)
        self._changes = {}
        self._ask()

    def _ask(self) -> None:
        if self._left and not self._queued:
            self._queued = True
            self._worker.loop.later(self, UPDATE_QUEUE)

    def step(self) -> None:
        """Judge the next sessions."""
        self._queued = False
        part = self._left[-PER_TURN:]
        del self._left[-PER_TURN:]
        closings = list(self._judge(part))
        if closings:
            self._close(closings)
        self._worker.look_at_dates_at = 0.0  # sessions may expire at another time now
        self._ask()

    def on_bug(self) -> None:
        """Judging raised: judge those that are left."""
        self._ask()

    def _judge(self, sessions: Iterable[Session]) -> Iterator[Closing]:
        unjudged, at_route, at_trust = 0, None, None
        for session in sessions:
            route, then = session.route, session.trust
            if route is None or then is None or then is route.trust:
                continue
            who = session.identity
            if who is None or session.state in _NOT_JUDGED:
                continue
            if route is not at_route or then is not at_trust:
                at_route, at_trust = route, then
                change = self._change_of(route.trust)
                lost, rules_differ = change.since(then)
            error = None
            if lost:
                error, known = change.judge_cas(who, session.chain, then)
                unjudged += not known
            if rules_differ and error is None:
                error = change.judge_rules(who)
            if error is not None:
                yield session, error
                continue
            # The dates of the CAs, and what follows an expiry, may have changed too.
            session.trust, session.expires_at = change.now, 0.0
        if unjudged:
            self._worker.counters.sessions_unjudged(unjudged)

    def _change_of(self, now: ClientTrust) -> _Changes:
        change = self._changes.get(id(now))
        if change is None:
            change = self._changes[id(now)] = _Changes(now)
        return change


_NOT_JUDGED = HALF_OPEN | {State.CLOSED}
