"""The first bytes of a connection: peek at the ClientHello, find its route, and only then make a TLS connection.

Theory of operation. The hello is looked at with MSG_PEEK and stays in the socket for OpenSSL. It has to be known before the
connection object exists: OpenSSL keeps the verify mode and the session tickets of the context it starts with, so choosing a
route in its server-name callback lets clients in that the route would refuse. Peeking leaves the socket readable, which
level-triggered epoll would report for ever: so it is watched edge-triggered until the handshakes are over.

A hello that comes in pieces is not read again at each of them, only its new records are walked over. For a large one SO_RCVLOWAT
tells the kernel to wake us every MORE_BYTES, and to make room for it: a peek copies all that has come. The bytes wait in the kernel;
here a client that has not sent its whole hello costs one small object.

Never: consumes a byte of a hello that will be served; makes a key operation for an unknown name.
Next: `relay.worker.inbound.step`
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

from relay.core.hello import MAX_BYTES, NEED_DATA, UNRECOGNIZED_NAME, Malformed
from relay.core.lifecycle import Event
from relay.core.partial_hello import PartialHello
from relay.errors import Reason, SessionError, Side
from relay.tls import stream
from relay.worker import inbound
from relay.worker.loop import ET, IN

if TYPE_CHECKING:
    from relay.tls.contexts import InboundRoute
    from relay.worker.session import Session

PEEK_BYTES = MAX_BYTES
MORE_BYTES = 4_096  # more than nearly all hellos have
_CLOSE_WAIT = 8  # TCP_CLOSE_WAIT of linux/tcp.h: the first byte of TCP_INFO
_buffer = bytearray(PEEK_BYTES)
_view = memoryview(_buffer)

# Fatal alerts in the clear (RFC 8446, 6.2), so that the client's own error message says what happened.
_ALERT = bytes((21, 3, 3, 0, 2, 2))
_INTERNAL_ERROR = 80  # nothing is wrong with the client
_PLAIN_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 57\r\nConnection: close\r\n\r\n"
    b"This port speaks TLS and was sent plain HTTP: use https.\n"
)  # fmt: skip


def step(session: Session) -> None:
    """Peek; refuse, wait for more, or go on with the handshake."""
    end = session.inbound
    try:
        size = end.sock.recv_into(_buffer, PEEK_BYTES, socket.MSG_PEEK)
    except BlockingIOError:
        _wait(session)
        return
    except OSError as error:
        raise SessionError(Side.INBOUND, Reason.PEER_GONE, error.strerror or "") from None
    if size == 0:
        raise SessionError(Side.INBOUND, Reason.PEER_GONE, "closed without sending anything")
    arriving = session.arriving
    if arriving is not None and not arriving.look(_view[:size]):
        _wait_for_rest(session, arriving, size)
        return
    hello = session.worker.hellos.parse(bytes(_view[:size]))
    if hello is NEED_DATA:
        session.arriving = arriving = PartialHello()
        arriving.look(_view[:size])
        _wait_for_rest(session, arriving, size)
        return
    if arriving is not None:
        session.arriving = None
        if arriving.wanted > MORE_BYTES:
            end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    if isinstance(hello, Malformed):
        _answer(
            session,
            _PLAIN_HTTP
            if hello.reason is Reason.PLAIN_HTTP
            else _ALERT + bytes((hello.alert,))
            if hello.alert
            else b"",
        )
        raise SessionError(Side.INBOUND, hello.reason, hello.detail)
    session.sni = hello.sni
    route = session.acceptor.routes.find(hello.sni)
    if route is None:
        _answer(session, _ALERT + bytes((UNRECOGNIZED_NAME,)))
        raise SessionError(Side.INBOUND, Reason.UNKNOWN_SNI if hello.sni else Reason.NO_SNI)
    session.route = route
    if not route.valid_from_at <= session.time_at <= route.valid_until_at:
        _refuse_disabled(session, route)
    if session.worker.pools[route.pool].nowhere:
        _refuse_unresolved(session, route)
    session.advance(Event.ROUTED)
    session.worker.count_routed(session)
    end.ssl = stream.accept(route.context, end.fd)
    inbound.step(session, size)


def _wait_for_rest(session: Session, arriving: PartialHello, size: int) -> None:
    sock = session.inbound.sock
    # A peek shows the same bytes for ever, never the end behind them.
    if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _CLOSE_WAIT:
        raise SessionError(
            Side.INBOUND, Reason.PEER_GONE, f"closed after {size} bytes of its hello"
        )
    if arriving.wanted > MORE_BYTES:
        sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVLOWAT, min(arriving.wanted, size + MORE_BYTES)
        )
    session.worker.admission.progress(session)
    _wait(session)


def _refuse_disabled(session: Session, route: InboundRoute) -> None:
    """Raise SessionError: what the route, or its pool, needs is not valid now."""
    session.worker.count_routed(session)
    _answer(session, _ALERT + bytes((_INTERNAL_ERROR,)))
    why = route.periods.why_invalid(session.time_at)
    if why:
        raise SessionError(Side.INBOUND, Reason.ROUTE_DISABLED, why)
    why = route.pool_periods.why_invalid(session.time_at)
    raise SessionError(Side.INBOUND, Reason.POOL_DISABLED, why)


def _refuse_unresolved(session: Session, route: InboundRoute) -> None:
    """Raise SessionError: the pool has no backend with an address. Said now, it can be said."""
    session.worker.count_routed(session)
    _answer(session, _ALERT + bytes((_INTERNAL_ERROR,)))
    members = session.worker.pools[route.pool].members
    shown = ", ".join(f"{each.target.route} at {each.target.address}" for each in members[:3])
    more = f" and {len(members) - 3} more" if len(members) > 3 else ""
    what = f"no host name of pool {route.pool} has an address: {shown}{more}"
    raise SessionError(Side.INBOUND, Reason.BACKEND_UNRESOLVED, what)


def _wait(session: Session) -> None:
    end = session.inbound
    if end.mask == 0:
        end.mask = IN | ET
        session.worker.loop.add(end.fd, end.mask, session.on_wake)


def _answer(session: Session, data: bytes) -> None:
    """A last word to a client we refuse, before any TLS connection is there to say it."""
    if data:
        with contextlib.suppress(OSError):
            session.inbound.sock.send(data)
