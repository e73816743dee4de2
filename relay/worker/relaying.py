"""RELAY and HALF_CLOSED, except ordinary messages: backpressure, ends, failures.

Theory of operation. Each direction has a source and a sink. There are three rules:

- What the sink did not take is `held` by the sink. Its source is not read until `held`
  is written. That is all the backpressure there is. `relay.tls.streaming` encrypts it.
- The end of a source is passed on as close_notify and FIN, once nothing is held for the
  sink. The other direction goes on. Only a backend's bare FIN stays a bare FIN, so that
  the client can tell a cut answer from a complete one. A client's bare FIN does not:
  many clients close like that, and a backend on OpenSSL 3 would send a fatal alert
  instead of the answer.
- A dead connection ends both directions. What was read from it before is still
  delivered, and what can still be read from it is read: the answer of a backend that
  resets must not be lost.

Never: runs for an ordinary message (see `on_inbound` and `on_outbound` of
`relay.worker.driver.DrivenSession`).
Next: `relay.worker.driver.DrivenSession.advance`
"""

from __future__ import annotations

import contextlib
from socket import SHUT_WR

from relay.core.lifecycle import Event, State
from relay.errors import Reason, Side
from relay.sockets import cork
from relay.tls import stream
from relay.tls.pump import Status, watch_alerts
from relay.tls.raw import lib
from relay.worker.connection import Connection
from relay.worker.failover import give_up_late
from relay.worker.first_bytes import FirstBytes
from relay.worker.half_close import end_plain, has_sent
from relay.worker.loop import GONE, IN, OUT
from relay.worker.relay_failure import fail_sink, fail_source, note_truncation, reset_of
from relay.worker.session import Session


def begin(session: Session) -> Event | None:
    """Both handshakes are done: forward the first bytes, and watch both sockets."""
    inbound, outbound = session.inbound, session.outbound
    if outbound is None:
        return None
    session.active_at = session.worker.loop.now
    if session.worker.examples is not None:
        session.worker.examples.add_served(session)
    if inbound.ssl is not None:
        watch_alerts(inbound.ssl)
    if outbound.ssl is not None:
        watch_alerts(outbound.ssl)
    event = None
    if inbound.ssl is None and session.first is None:  # the client's hello is still in its socket
        size = session.worker.pump.between(inbound, outbound)
        if size < 0:
            return unusual(session, Side.INBOUND, ~size)
        _count(session, Side.INBOUND, size)
    elif session.first is not None:
        event = _forward_first(session, session.first, inbound, outbound)
    return _go_on(session, inbound, outbound, event)


def too_slow(session: Session) -> Event:
    """Close an idle session: each side is told that nothing more comes (RFC 8446, 6.1).

    A side for which bytes are still held gets no close_notify.
    """
    for end in (session.inbound, session.outbound):
        if end is not None and end.ssl is not None and not (end.held or end.shut):
            stream.close_notify(end.ssl)
    session.note(None, Side.INBOUND)
    return Event.DEADLINE


def on_event(session: Session, side: Side, mask: int) -> Event | None:
    """Handle any event: there are bytes to read or room to write, or a reset came."""
    end, other = _ends(session, side)
    event = _write_held(session, side, mask) if mask & (OUT | GONE) else None
    # If the write led to an event, do not read now: epoll reports the socket again.
    if event is None:
        if end.wants_write and not end.held:
            end.wants_write = False
            mask |= IN  # try again the read that OpenSSL interrupted
        if mask & (IN | GONE) and not (end.ended or end.wants_write or other.held):
            size = _move(session, side, end, other)
            if size < 0:
                return unusual(session, side, ~size)
            _count(session, side, size)
    return _go_on(session, end, other, event)


def unusual(session: Session, side: Side, moved: int) -> Event | None:
    """A transfer from this side ended with a `Pump.status`, after `moved` bytes."""
    pump = session.worker.pump
    status = pump.status
    source, sink = _ends(session, side)
    # The cause of a failure is in OpenSSL's queue or in errno: read it before another
    # call overwrites both.
    failed = None
    if status is Status.SOURCE_FAILED:
        failed = pump.failure(source, side)
    elif status is Status.SINK_FAILED:
        failed = pump.failure(sink, _opposite(side))
    if moved:
        _count(session, side, moved)
    event = None
    if pump.undelivered or status is Status.BLOCKED:
        pump.hold(sink)
    if source.held and source.wants_write:
        session.worker.loop.skip(sink.fd)  # its bytes would be written to the source
    if status is Status.ENDED or status is Status.TRUNCATED:
        source.ended = True
        source.truncated = status is Status.TRUNCATED
        if source.truncated and side is Side.OUTBOUND and not sink.ended:
            note_truncation(session)
        event = _pass_end(session, source, sink)
    elif status is Status.SOURCE_WANTS_WRITE:
        source.wants_write = True
    elif failed is not None and status is Status.SOURCE_FAILED:
        event = fail_source(session, side, source, sink, failed)
        event = event or _pass_end(session, source, sink)
    elif failed is not None and status is Status.SINK_FAILED:
        event = fail_sink(session, _opposite(side), source, sink, failed, pump.held)
        event = event or _finish(session)
    return _go_on(session, source, sink, event)


def _write_held(session: Session, side: Side, mask: int) -> Event | None:
    """Write what is held for this socket, if it has room."""
    end, other = _ends(session, side)
    if mask & GONE and (end.held or end.closing):
        # Do not try: after a failed write OpenSSL does not read any more, and the peer
        # may have sent something before it reset the connection.
        return fail_sink(session, side, other, end, reset_of(end, side)) or _finish(session)
    if not mask & OUT:
        return None
    if end.held:
        pump = session.worker.pump
        size = pump.put(end, end.held)
        _count(session, _opposite(side), max(size, ~size))  # what it took keeps it alive
        if size >= 0:
            end.held = b""
            return _pass_end(session, other, end) if other.ended else None
        if pump.status is Status.SINK_FAILED:
            failure = pump.failure(end, side)
            return fail_sink(session, side, other, end, failure) or _finish(session)
        end.held, pump.held = pump.held, b""
    elif end.closing:
        return _pass_end(session, other, end)
    return None


# Watching.


def watch(session: Session) -> None:
    """Watch both sockets for what can be done now."""
    inbound, outbound = session.inbound, session.outbound
    if outbound is not None:
        _go_on(session, inbound, outbound, None)


def _go_on(
    session: Session, end: Connection, other: Connection, event: Event | None
) -> Event | None:
    """Watch both sockets, unless the event closes the session or drops the backend."""
    if event is None or event is Event.HALF_ENDED:
        for this, sink in ((end, other), (other, end)):
            # It is read unless it ended, its sink holds something, or OpenSSL must
            # write first.
            mask = 0 if this.ended or sink.held or this.wants_write or this.paced else IN
            if this.held or this.closing or this.wants_write:
                mask |= OUT
            if mask != this.mask:
                session.worker.loop.watch(this.fd, this.mask, mask)
                this.mask = mask
    return event


def _ends(session: Session, side: Side) -> tuple[Connection, Connection]:
    """The source and the sink of the direction that begins at this side."""
    inbound, outbound = session.inbound, session.outbound
    if outbound is None:
        raise RuntimeError("relaying without a backend")
    return (inbound, outbound) if side is Side.INBOUND else (outbound, inbound)


def _opposite(side: Side) -> Side:
    """The other side."""
    return Side.OUTBOUND if side is Side.INBOUND else Side.INBOUND


# Bytes.


def _forward_first(
    session: Session, first: FirstBytes, inbound: Connection, outbound: Connection
) -> Event | None:
    """Write the bytes that were read before there was a backend."""
    worker, backend, head = session.worker, session.backend, first.head
    if backend is not None:
        first.inserter = worker.pools[backend.target.pool].inserter(backend, first.found)
    if head:
        pump = worker.pump
        size = pump.put(outbound, head)
        if size < 0 and pump.status is Status.SINK_FAILED:
            return give_up_late(session, pump.failure(outbound, Side.OUTBOUND))  # it took nothing
        first.forget_head()
        if size < 0:
            pump.hold(outbound)
            size = ~size
        if size:
            _count(session, Side.INBOUND, size)
            session.asked = head[:size]
    return _pass_end(session, inbound, outbound) if inbound.ended else None


def _move(session: Session, side: Side, source: Connection, sink: Connection) -> int:
    """Do what `Pump.move` does, and insert our cookie into a backend's first answer."""
    first, pump = session.first, session.worker.pump
    if session.watch is not None:
        return session.watch.move(pump, side, source, sink)
    if side is Side.INBOUND or first is None or first.inserter is None:
        if source.ssl is not None and sink.ssl is not None:
            return pump.move(source, sink)
        return pump.between(source, sink)
    data = pump.take(source)
    if isinstance(data, int):
        return data
    data = first.inserter.feed(data)
    if first.inserter.done:
        first.inserter = None
    return pump.put(sink, data)


def _count(session: Session, side: Side, size: int) -> None:
    """Count bytes that came from this side and were taken by the other."""
    cells = session.worker.cells
    if side is Side.INBOUND:
        session.bytes_in += size
        cells[session.cell_in] += size
        session.active_at = session.worker.loop.now
    else:
        session.bytes_out += size
        cells[session.cell_out] += size
        session.answered_at = session.worker.loop.now


# Ends.


def _pass_end(session: Session, source: Connection, sink: Connection) -> Event | None:
    """Tell the sink that its source has ended, once it has taken everything."""
    if sink.held:
        return _half_ended(session)
    if sink.shut:
        return _finish(session)
    sink.closing = False
    if sink.ssl is None:
        end_plain(session, source, sink)
        return _finish(session)
    # A client that was lost (`shut`) waits for no answer. What it began to send must
    # not look complete to the backend.
    if not source.truncated or (source is session.inbound and not source.shut):
        cork(sink.sock, 1)  # the FIN goes out with the alert
        result = lib.SSL_shutdown(sink.ssl)
        if result < 0 and not has_sent(session, sink, result):
            sink.closing = True
            return _half_ended(session)
    sink.shut, sink.pause = True, 0
    if not sink.ended:  # if it has ended, the close that follows at once sends the FIN
        with contextlib.suppress(OSError):
            sink.sock.shutdown(SHUT_WR)
    event = _finish(session)
    if sink.ended and event is not Event.ENDED:
        cork(sink.sock, 0)  # no FIN follows yet, so the alert goes out alone
    return event


def _finish(session: Session) -> Event | None:
    """ENDED when both directions have ended and everything was delivered."""
    inbound, outbound = session.inbound, session.outbound
    if outbound is None or not (inbound.ended and outbound.ended):
        return _half_ended(session)
    if inbound.held or outbound.held or inbound.closing or outbound.closing:
        return _half_ended(session)
    if inbound.truncated:
        session.note(Reason.TRUNCATED, Side.INBOUND)
    # A backend's bare FIN counts only if it came first, and is noted then. After the
    # client's close_notify it is a normal end: nginx closes like that.
    return Event.ENDED


def _half_ended(session: Session) -> Event | None:
    """One direction has ended. linger_s begins now, even if the session was idle."""
    if session.state is not State.RELAY:
        return None
    session.active_at = session.worker.loop.now
    return Event.HALF_ENDED
