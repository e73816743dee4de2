"""SNIFF: read the first request of a client whose cookie chooses the backend.

Theory of operation. The request often comes with the handshake's last flight, so it is
read at once. Otherwise the next edge announces it, as in the handshake. If an edge
decides nothing, the socket is watched level-triggered: OpenSSL may have stopped at a
record without data (a key update), and no further edge would announce the bytes after
it.

A client that sends nothing in time, or no HTTP/1, is not refused. It gets a backend as
a client without a cookie does. Everything that was read is offered to each backend that
is tried, until one has taken it. Such a client is not half open: browsers open
connections that they use later.

Never: changes a byte; reads more than a request's head and the record that it ends in.
Next: `relay.worker.outbound.connect`
"""

from __future__ import annotations

from relay.core.lifecycle import Event
from relay.errors import Reason, SessionError, Side
from relay.tls import stream
from relay.tls.pump import Status, watch_alerts
from relay.tls.tcp_info import unread_bytes
from relay.worker.first_bytes import FirstBytes
from relay.worker.loop import ET, IN, OUT
from relay.worker.session import Session

RECORDS_PER_STEP = 16


def enter(session: Session) -> Event | None:
    """The client is admitted: read its request, and wait for it if it is not there."""
    route, fd = session.route, session.inbound.fd
    names = session.worker.pools[route.pool].sticky_names if route is not None else None
    session.first = first = FirstBytes(names)
    watch_alerts(session.inbound.ssl)
    if _read(session, first):
        return Event.REQUEST_READ
    if unread_bytes(fd):
        # OpenSSL stopped at a record without data. The edge that announced the bytes
        # after it is past, so look once more.
        session.on_wake(IN)
    return None


def step(session: Session) -> Event | None:
    """Read more of the request."""
    first = session.first
    if first is None:
        return None
    if _read(session, first):
        return Event.REQUEST_READ
    if session.inbound.mask & ET:
        session.watch_client(IN)
    return None


def too_slow(_session: Session) -> Event:
    """Go on without a cookie."""
    return Event.DEADLINE


def _read(session: Session, first: FirstBytes) -> bool:
    """Read some records. True when the backend can be chosen; raises SessionError."""
    end, pump = session.inbound, session.worker.pump
    for _ in range(RECORDS_PER_STEP):
        data = pump.read(end.ssl)
        if isinstance(data, bytes):
            if first.add(data):
                return True
        elif data == 0:
            if end.mask & OUT:  # OpenSSL has written what it had to
                session.watch_client(IN)
            return False
        elif pump.status is Status.SOURCE_WANTS_WRITE:  # to answer a key update
            session.watch_client(IN | OUT)
            return False
        elif pump.status is Status.SOURCE_FAILED:
            failure = stream.failure(Side.INBOUND)
            reason = Reason.INBOUND_RESET if failure.reason is Reason.PEER_GONE else failure.reason
            raise SessionError(Side.INBOUND, reason, failure.detail)
        else:  # the client has ended; the backend is told after it has got the bytes
            end.ended, end.truncated = True, pump.status is Status.TRUNCATED
            return True
    session.on_wake(IN)  # There may be more, without an edge. Other sessions come first.
    return False
