"""Ends HTTP/1 connections between two messages, before their time is over.

Theory of operation. A session gets an end when its worker drains with a limit, or when
it has nearly reached `max_session_s`. Once a second, `on_tick` looks at these sessions,
some in each turn of the loop. One that speaks HTTP/1 gets a watch, which follows its
messages: after the next complete answer the connection is closed, and its close_notify
and FIN go out with the answer's last bytes. A session that is idle is closed if its
last exchange is known to be complete (`relay.worker.last_exchange`), and nothing has
moved for a while. Every other session is left until its next message or its deadline:
an answer may pause for any time.

If the client has sent something meanwhile, it is served first. What remains is the race
of RFC 9112, section 9.3.1: a request that is under way while the close is under way.

Other sessions (HTTP/2, WebSocket, protocols that are not HTTP) are not touched.

Never: ends a session in the middle of a message that it follows.
Next: `relay.worker.message_borders.MessageBorders`
"""

from __future__ import annotations

from collections import deque
from types import MethodType

from relay.core.lifecycle import Event, State
from relay.errors import Reason, Side
from relay.sockets import cork
from relay.tls import stream
from relay.tls.tcp_info import unread_bytes
from relay.worker import relaying
from relay.worker.driver import DrivenSession
from relay.worker.loop import IN
from relay.worker.session import INFINITY, UPDATE_QUEUE, Session
from relay.worker.watch import Watch
from relay.worker.worker import Worker

# Looking at a session takes 2 µs, closing it 50 µs.
PER_TURN = 200
# An idle session is closed after this time, or a part of the time that it has left.
QUIET_S = 5.0
QUIET_PART = 0.25
_HTTP1 = frozenset(("http/1.1", "http/1.0"))
_SWITCHING = b"101"


class QuietEnds:
    """The sessions of a worker that are to end at a quiet moment."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._until_at = INFINITY  # of the drain
        self._quiet_s = QUIET_S
        self._waiting: deque[Session] = deque()
        self._queued = False

    def drain(self, until_at: float, now: float) -> None:
        """The worker's sessions may go on until then. Called again in every tick."""
        if until_at >= self._until_at:
            return
        begins, self._until_at = not self._draining, until_at
        self._quiet_s = min(QUIET_S, QUIET_PART * max(0.0, until_at - now))
        if begins:
            self.on_tick()

    @property
    def _draining(self) -> bool:
        return self._until_at != INFINITY

    def on_tick(self) -> None:
        """Look at the sessions that are to end, from the next turn on."""
        worker = self._worker
        if not self._waiting and (self._draining or worker.outliving):
            self._waiting.extend(worker.sessions if self._draining else worker.outliving)
            self._ask()

    def _ask(self) -> None:
        if self._waiting and not self._queued:
            self._queued = True
            self._worker.loop.later(self, UPDATE_QUEUE)

    def step(self) -> None:
        """Look at the next sessions."""
        self._queued = False
        for _ in range(min(len(self._waiting), PER_TURN)):
            session = self._waiting.popleft()
            if isinstance(session, DrivenSession):
                self._look_at(session)
        self._ask()

    def on_bug(self) -> None:
        """Looking at a session raised. The others are looked at all the same."""
        self._ask()

    def _look_at(self, session: DrivenSession) -> None:
        watch = session.watch
        if session.state is not State.RELAY or session.inbound.ssl is None:
            return
        if watch is None:
            if _speaks_http1(session) is False:
                return
            watch = _begin_to_watch(session)
        if self._is_idle(session, watch):
            end_quietly(session)

    def _is_idle(self, session: Session, watch: Watch | None) -> bool:
        """Whether the session is between two messages, as far as can be seen."""
        if watch is not None and watch.borders.between:
            return True
        if watch is not None and (watch.borders.pending or watch.borders.lost):
            return False
        quiet_s = self._quiet_s
        if not self._draining:
            quiet_s = min(QUIET_S, QUIET_PART * (session.ends_at - self._worker.loop.now))
        quiet_from_at = max(session.active_at, session.answered_at)
        if self._worker.loop.now - quiet_from_at < quiet_s or not _speaks_http1(session):
            return False
        if not session.bytes_out:
            return not session.bytes_in
        last, ended = session.last, watch is not None and watch.borders.last_chunk
        return last is not None and last.is_complete(
            session.bytes_in, session.bytes_out, last_chunk=ended
        )


def _speaks_http1(session: Session) -> bool | None:
    """Whether its messages are those of HTTP/1; None if that is not known yet."""
    alpn, first, reply = session.inbound_tls.alpn, session.first, session.first_reply
    if alpn and alpn not in _HTTP1:
        return False
    if reply:
        return reply.startswith(b"HTTP/1.") and reply[9:12] != _SWITCHING
    if first is not None and first.found.http:
        return True
    return True if alpn in _HTTP1 else None


def _begin_to_watch(session: DrivenSession) -> Watch | None:
    """Follow its messages from now on, if nothing else is done with its bytes."""
    end, client, first, last = session.outbound, session.inbound, session.first, session.last
    if end is None or (first is not None and first.inserter is not None):
        return None
    if last is not None and last.lost:
        return None
    session.watch = watch = Watch()
    begun = last.under_way(session.bytes_in, session.bytes_out) if last is not None else None
    if last is None and session.bytes_in and len(session.asked) == session.bytes_in:
        begun = session.asked, b""
    if begun is not None:
        watch.borders.begin(*begun)
    elif session.active_at > session.answered_at:
        watch.borders.await_answer()
    loop = session.worker.loop
    # Bound methods, because the loop finds the session of a handler that raised.
    loop.handle(client.fd, MethodType(_on_inbound, session))
    loop.handle(end.fd, MethodType(_on_outbound, session))
    return watch


def _on_inbound(session: DrivenSession, mask: int) -> None:
    """The socket of a watched client is ready."""
    end = session.outbound
    # As long as it has not answered, it may have refused our certificate.
    if end is not None and not end.answered and session.state is State.RELAY:
        _on_outbound(session, IN)
        if session.state is not State.RELAY or session.outbound is not end:
            return
    session.follow(relaying.on_event(session, Side.INBOUND, mask))


def _on_outbound(session: DrivenSession, mask: int) -> None:
    """The socket of a watched backend is ready."""
    session.follow(relaying.on_event(session, Side.OUTBOUND, mask))
    watch = session.watch
    if session.bytes_out:
        session.note_answer()
    if watch is not None and watch.borders.between and not end_quietly(session):
        cork(session.inbound.sock, 0)


def end_quietly(session: Session) -> bool:
    """Close the session, unless something has come that is not delivered yet."""
    client, end = session.inbound, session.outbound
    if session.state is not State.RELAY or end is None:
        return session.state is State.CLOSED
    if client.held or end.held or client.ended or end.ended:
        return False
    if unread_bytes(client.fd) or unread_bytes(end.fd):
        return False
    cork(client.sock, 1)  # close_notify and FIN go out together
    for each in (client, end):
        if each.ssl is not None:
            stream.close_notify(each.ssl)
    outlived = session in session.worker.outliving
    session.advance(Event.REFUSED, Reason.MAX_SESSION if outlived else Reason.DRAINED)
    return True
