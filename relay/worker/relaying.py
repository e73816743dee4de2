"""What is not usual in RELAY and HALF_CLOSED: a sink that takes no more, an end, a reset, an alert that comes late.

Theory of operation. Each direction has a source and a sink. Three rules:

- What the sink did not take is `held` by the sink; its source is not read until it is gone. That is all the back-pressure there is.
- The end of a source is passed on when nothing is held for its sink, as close_notify and FIN; the other direction goes on. Only
  a backend's bare FIN stays a bare FIN, so that the client can tell a cut answer from a whole one. A client's does not: many close
  like that, and a backend on OpenSSL 3 would answer with a fatal alert instead of with what the client is waiting for.
- A dead connection ends both directions it has a part in, but what was read from it before is still delivered, and what the
  other direction can still read is still read: a backend that answers and resets must not lose its answer.

Never: runs for an ordinary message (that is `Session.on_inbound` and `on_outbound`).
Next: `relay.worker.session.Session.advance`
"""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING

from relay.core.lifecycle import Event, State
from relay.errors import Reason, Side
from relay.tls import stream
from relay.tls.explain import Failure
from relay.tls.pump import Status, watch_alerts
from relay.tls.raw import WANT_WRITE, lib
from relay.worker import outbound
from relay.worker.backend_failure import blame, explain_late
from relay.worker.first_request import FirstRequest
from relay.worker.loop import GONE, IN, OUT
from relay.worker.relay_failure import may_still_refuse, note_fault, note_truncation

if TYPE_CHECKING:
    from relay.worker.connection import Connection
    from relay.worker.session import Session


def begin(session: Session) -> None:
    """Both handshakes are done: from now on bytes."""
    worker, client, backend = session.worker, session.inbound, session.outbound
    if backend is None:
        return
    session.active_at = worker.loop.now
    watch_alerts(client.ssl)
    watch_alerts(backend.ssl)
    loop = worker.loop
    loop.handle(backend.fd, session.on_first_reply)
    on_inbound = (
        session.on_inbound_unanswered if may_still_refuse(session, backend) else session.on_inbound
    )
    loop.handle(client.fd, on_inbound)
    if session.first is not None and not _forward_first(session, session.first, client, backend):
        return
    refresh(session, client, backend)
    refresh(session, backend, client)
    if session.early:
        session.early = False
        if not (backend.held or client.ended):
            on_inbound(IN)


def _forward_first(
    session: Session, first: FirstRequest, client: Connection, backend: Connection
) -> bool:
    """What was read to find the backend goes there before anything else; False when the session has gone on, or to another backend."""
    worker, member, head = session.worker, session.member, first.head
    first.inserter = (
        worker.pools[member.target.pool].inserter(member, first.found)
        if member is not None
        else None
    )
    if head:
        size = worker.pump.push(backend.ssl, head)
        if size < 0 and worker.pump.status is Status.SINK_FAILED:
            outbound.back_to_connect(session, stream.failure(Side.OUTBOUND))  # it has taken nothing
            return False
        first.forget_head()
        if size < 0:
            backend.held = head
        else:
            _count(session, Side.INBOUND, size)
    if client.ended:
        _pass_end(session, client, backend)
    return session.state is not State.CLOSED and session.outbound is backend


def _move(session: Session, side: Side, source: Connection, sink: Connection) -> int:
    """Like Pump.move; a backend's first answer may have to take our cookie along."""
    first, pump = session.first, session.worker.pump
    if side is Side.INBOUND or first is None or first.inserter is None:
        return pump.move(source.ssl, sink.ssl)
    data = pump.read(source.ssl)
    if isinstance(data, int):
        return data
    data = first.inserter.feed(data)
    if first.inserter.done:
        first.inserter = None
    return pump.push(sink.ssl, data)


def first_reply(session: Session) -> None:
    """The backend has answered: its TLS session can be resumed, if it gave us one."""
    end, member = session.outbound, session.member
    if end is None or member is None or session.replied:
        return
    session.replied = True
    member.keep_session(end.ssl, resumed=end.resumed, now_at=time.time())
    session.worker.pools[member.target.pool].answered(member, end.began_at)
    session.worker.loop.handle(end.fd, session.on_outbound)


def refresh(session: Session, end: Connection, other: Connection) -> None:
    """Watch an end for what can be done with it: read it unless it has ended, its sink holds something, or OpenSSL must write first; write what it holds."""
    mask = IN if not end.ended and not other.held and not end.wants_write else 0
    if end.held or end.closing or end.wants_write:
        mask |= OUT
    session.worker.loop.watch(end.fd, end.mask, mask)
    end.mask = mask


def _ends(session: Session, side: Side) -> tuple[Connection, Connection]:
    """(source, sink) of the direction that begins at this side."""
    client, backend = session.inbound, session.outbound
    if backend is None:
        raise RuntimeError("relaying without a backend")
    return (client, backend) if side is Side.INBOUND else (backend, client)


def _other(side: Side) -> Side:
    return Side.OUTBOUND if side is Side.INBOUND else Side.INBOUND


def _count(session: Session, side: Side, size: int) -> None:
    """Bytes that came from this side and were taken by the other."""
    cells = session.worker.cells
    if side is Side.INBOUND:
        session.bytes_in += size
        cells[session.cell_in] += size
    else:
        session.bytes_out += size
        cells[session.cell_out] += size
    session.active_at = session.worker.loop.now


def event(session: Session, side: Side, mask: int) -> None:
    """An event that is not just "readable": the socket takes bytes again, or is gone."""
    end, other = _ends(session, side)
    if end.wants_write:
        end.wants_write = False
        mask |= IN  # the read that OpenSSL broke off is to be tried again
    if mask & GONE and (end.held or end.closing):
        # Not even tried: a write that fails is the end of OpenSSL's reading too, and what the peer sent before it went may be unread.
        _sink_failed(
            session,
            side,
            Failure(
                Reason.PEER_GONE if side is Side.INBOUND else Reason.BACKEND_GONE,
                "the connection was reset",
            ),
        )
    elif end.held and mask & OUT:
        size = session.worker.pump.push(end.ssl, end.held)
        if size >= 0:
            end.held = b""
            _count(session, _other(side), size)
            if other.ended:
                _pass_end(session, other, end)
        elif session.worker.pump.status is Status.SINK_FAILED:
            _sink_failed(session, side)
    elif end.closing and mask & OUT:
        _pass_end(session, other, end)
    if session.state is State.CLOSED or session.outbound is None:
        return
    if mask & (IN | GONE) and not end.ended and not other.held:
        size = _move(session, side, end, other)
        if size < 0:
            unusual(session, side, ~size)
            return
        _count(session, side, size)
    refresh(session, end, other)
    refresh(session, other, end)


def unusual(session: Session, side: Side, moved: int) -> None:
    """A transfer from this side ended otherwise than usual, after `moved` bytes."""
    status = session.worker.pump.status
    if status is Status.ENDED or status is Status.TRUNCATED:
        if moved:
            _count(session, side, moved)
        source, sink = _ends(session, side)
        source.ended = True
        source.truncated = status is Status.TRUNCATED
        if source.truncated and side is Side.OUTBOUND and not sink.ended:
            note_truncation(session)
        _pass_end(session, source, sink)
    else:
        _stuck_or_failed(session, side, moved, status)
    # A failover has changed the ends, and may have ended the session.
    if session.state is State.RELAY or session.state is State.HALF_CLOSED:
        source, sink = _ends(session, side)
        refresh(session, source, sink)
        refresh(session, sink, source)


def _stuck_or_failed(session: Session, side: Side, moved: int, status: Status) -> None:
    pump = session.worker.pump
    # The reason is in OpenSSL's queue or errno, and the next call overwrites both.
    failed = None
    if status is Status.SOURCE_FAILED:
        failed = stream.failure(side)
    elif status is Status.SINK_FAILED:
        failed = stream.failure(_other(side))
    if moved:
        _count(session, side, moved)
    source, sink = _ends(session, side)
    if status is Status.BLOCKED:
        sink.held = pump.held
    elif status is Status.SOURCE_WANTS_WRITE:
        source.wants_write = True
    elif failed is not None and status is Status.SOURCE_FAILED:
        _source_failed(session, side, failed)
    elif (
        failed is not None
        and side is Side.INBOUND
        and session.state is State.RELAY
        and not (session.bytes_in or session.bytes_out or source.held)
    ):
        # The very first bytes: the backend was lost between its handshake and them, and another may have them.
        session.first = session.first or FirstRequest()
        session.first.keep(pump.held)
        outbound.back_to_connect(session, failed)
    elif failed is not None:
        _sink_failed(session, _other(side), failed)


def _pass_end(session: Session, source: Connection, sink: Connection) -> None:
    """Nothing more comes from the source: tell the sink, when it has taken everything."""
    if sink.held:
        _half_ended(session)
        return
    if not sink.shut:
        sink.closing = False
        # A client that was lost (`shut`) waits for no answer: what it began to send must not look whole.
        if not source.truncated or (source is session.inbound and not source.shut):
            sink.sock.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_CORK, 1
            )  # the FIN that follows goes out in the alert's segment
            result = lib.SSL_shutdown(sink.ssl)
            if result < 0:
                error = lib.SSL_get_error(sink.ssl, result)
                side = Side.INBOUND if sink is session.inbound else Side.OUTBOUND
                failed = stream.failure(side)
                if error == WANT_WRITE:
                    sink.closing = True
                    _half_ended(session)
                    return
                if failed.reason is Reason.NO_RESOURCES:
                    note_fault(session, side, failed)
        sink.shut = True
        if not sink.ended:  # else the close that follows at once sends the FIN
            with contextlib.suppress(OSError):
                sink.sock.shutdown(socket.SHUT_WR)
    _finish(session)
    if sink.ended and session.state is not State.CLOSED:
        sink.sock.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_CORK, 0
        )  # no FIN follows yet: the alert goes out alone


def _finish(session: Session) -> None:
    """Close when both directions have ended and everything was delivered; else linger for the other."""
    client, backend = session.inbound, session.outbound
    if (
        backend is not None
        and client.ended
        and backend.ended
        and not (client.held or backend.held or client.closing or backend.closing)
    ):
        # A client that has ended with close_notify asked for nothing more: the backend's bare FIN
        # is its answer, as nginx gives it. One that came first has set the session's reason.
        cut = Side.INBOUND if client.truncated else None
        session.advance(Event.ENDED, Reason.TRUNCATED if cut else Reason.FINISHED, side=cut)
    else:
        _half_ended(session)


def say_goodbye(session: Session) -> None:
    """Before we end a session that is idle: each side hears that nothing more comes (RFC 8446, 6.1), unless something is still due to it."""
    for end in (session.inbound, session.outbound):
        if end is not None and not (end.held or end.shut):
            stream.close_notify(end.ssl)


def _half_ended(session: Session) -> None:
    if session.state is State.RELAY:
        session.active_at = (
            session.worker.loop.now
        )  # linger_s begins now, however long nothing was said before
        session.advance(Event.HALF_ENDED)


def _source_failed(session: Session, side: Side, failure: Failure) -> None:
    """The connection of this side is dead in both directions; what was read from it before may still be on its way."""
    if side is Side.OUTBOUND:
        failure = explain_late(session, failure)
    if side is Side.OUTBOUND and not session.bytes_out:
        # What the backend holds is the client's, and may have gone out in part.
        client, backend = session.inbound, session.outbound
        if (
            session.state is State.RELAY
            and backend is not None
            and not (session.bytes_in or client.held or backend.held)
        ):
            outbound.back_to_connect(session, failure)
            return
        if failure.reason is not Reason.BACKEND_GONE:
            blame(
                session, failure
            )  # a TLS 1.3 backend that refuses us says so only after its handshake
    note_fault(session, side, failure)
    source, sink = _ends(session, side)
    source.ended = source.truncated = source.shut = True
    source.held, source.closing = b"", False
    sink.ended = True  # there is nowhere to bring what it sends
    _pass_end(session, source, sink)


def _sink_failed(session: Session, side: Side, failure: Failure | None = None) -> None:
    """The connection of this side takes nothing any more; but it may have sent something before, so it is read to its end."""
    note_fault(session, side, failure or stream.failure(side))
    sink, source = _ends(session, side)
    sink.held, sink.closing, sink.shut = b"", False, True
    source.ended = source.truncated = True
    _finish(session)
