"""When a session has taken too long: in its state, or altogether.

No timer is set for a byte: a session that makes progress only changes what `due_at`
returns (see `relay.worker.loop`).

`max_session_s` of the listener: each session gets a lifetime between 90 and 100 % of
it, so sessions that began together do not end together. In the last tenth of its
lifetime, an HTTP/1 connection ends at a quiet moment (see `relay.worker.quiet_ends`).

Never: moves a byte.
"""

from __future__ import annotations

from abc import abstractmethod

from relay.core.lifecycle import Event, State
from relay.errors import Reason, Side
from relay.tls import stream
from relay.worker.plain_session import PlainSession
from relay.worker.session import INFINITY, RELAYING, Session
from relay.worker.stages import STAGES, Work

SPREAD = 0.1  # of max_session_s
QUIET_PART = 0.1  # of the lifetime
# States whose step only reads, and does no harm if nothing has come.
_READING = frozenset((State.INTAKE, State.INBOUND_TLS, State.OUTBOUND_TLS))
_GOLDEN = 0.618_033_988_749_895  # spreads consecutive numbers evenly


def lifetime_s(session: Session) -> float:
    """How long the session may last; `max_session_s` is set."""
    part = 1 - SPREAD * (session.number * _GOLDEN % 1)
    return session.listener.max_session_s * part


def limit_lifetime(session: Session) -> None:
    """Let the session end in time. Call it before its first deadline is scheduled."""
    session.ends_at = session.started_at + (1 - QUIET_PART) * lifetime_s(session)


class TimedSession(PlainSession):
    """A session with its deadlines."""

    __slots__ = ()

    @abstractmethod
    def _run(self, work: Work | None, event: Event | None = None) -> None:
        """Do a stage's work, or follow an event, and enter the next stages."""

    @abstractmethod
    def step(self) -> None:
        """Take a step of the current stage."""

    @abstractmethod
    def on_bug(self) -> None:
        """A handler raised."""

    def due_at(self) -> float:
        """When the state has taken too long, or the session is to end."""
        state, patience_s = self.state, self.patience_s
        if state is State.CLOSED:
            return INFINITY
        if state in RELAYING:
            active_at, answered_at = self.active_at, self.answered_at
            at = (max(answered_at, active_at)) + patience_s[state]
        else:
            at = self.since_at + patience_s[state]
            end = self.outbound
            if state is State.OUTBOUND_TLS and end is not None and end.hurried:
                at = min(at, self.since_at + patience_s[State.CONNECT])
        return min(self.ends_at, at)

    def on_deadline(self) -> None:
        """The state has taken too long, or the session is to end."""
        if self.worker.loop.now >= self.ends_at:
            self._outlive()
            return
        too_slow = STAGES[self.state].too_slow
        if self._was_late():
            self.worker.loop.schedule(self)
        elif too_slow is not None:
            self._run(too_slow)
            self.worker.loop.schedule(self)  # if the state goes on, it has another deadline
        else:
            self.advance(Event.DEADLINE, side=Side.INBOUND)

    def _was_late(self) -> bool:
        """Read what came in time, as perhaps this worker is late, and not the peer.

        Whether that was so, and the session has another deadline.
        """
        state, since_at, was_queued = self.state, self.since_at, self.queued
        step = STAGES[state].step
        if step is None or not (was_queued or state in _READING):
            return False
        self.queued = False
        self._run(step)
        went_on = self.state is not state or self.since_at != since_at
        return was_queued or self.queued or went_on

    def _outlive(self) -> None:
        """End at a quiet moment from now on, and at the end of the lifetime at once."""
        worker, at = self.worker, self.started_at + lifetime_s(self)
        if self.ends_at < at:
            self.ends_at = at
            worker.outliving.add(self)
            worker.loop.schedule(self)
            return
        for end in (self.inbound, self.outbound):
            told = self.state in RELAYING and end is not None and not (end.held or end.shut)
            if told and end is not None and end.ssl is not None:
                stream.close_notify(end.ssl)
        self.advance(Event.REFUSED, Reason.MAX_SESSION)
