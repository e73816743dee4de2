"""INTAKE: peek at the ClientHello, find its route, and only then make a TLS connection.

Theory of operation. The hello is read with MSG_PEEK and stays in the socket for
OpenSSL. The route must be known before there is an OpenSSL connection: OpenSSL keeps
the verify mode and the session tickets of the context that a connection was made with.
If its server-name callback chose the route, clients would get in that the route
refuses. Peeking leaves the socket readable, so level-triggered epoll would report it
for ever. It is watched edge-triggered until the handshakes are done.

When a hello comes in pieces, each peek parses only the records that are new. A peek
copies everything that has come, so for a large hello SO_RCVLOWAT tells the kernel to
wake us every MORE_BYTES, and to make room for them. The bytes wait in the kernel: a
client that has not sent its whole hello costs us one small object.

Never: consumes a byte of a hello that will be served; makes a key operation for an
unknown name.
Next: `relay.worker.inbound.step`
"""

from __future__ import annotations

import contextlib
import socket
from functools import lru_cache
from typing import NoReturn

from relay.core.hello import MAX_BYTES, NEED_DATA, PROXY_HEADER, UNRECOGNIZED_NAME, Malformed
from relay.core.lifecycle import Event
from relay.core.partial_hello import PartialHello
from relay.errors import Reason, SessionError, Side
from relay.sockets import has_closed
from relay.tls import stream
from relay.tls.generation import AnyRoute, InboundRoute, PassthroughRoute
from relay.worker import proxy_header, starttls
from relay.worker.loop import ET, IN
from relay.worker.outcome import Handshake
from relay.worker.session import Session

PEEK_BYTES = MAX_BYTES
MORE_BYTES = 4_096  # nearly all hellos are shorter
_buffer = bytearray(PEEK_BYTES)
_view = memoryview(_buffer)

_SECOND_HEADER = (
    "a second PROXY header: the balancer passes on the header that its own client sent, so this"
    " client can claim any address"
)

# Fatal alerts in the clear (RFC 8446, 6.2): the client's own error message names them.
_ALERT = bytes((21, 3, 3, 0, 2, 2))
_ACCESS_DENIED = 49
_INTERNAL_ERROR = 80  # nothing is wrong with the client
_PLAIN_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 57\r\n"
    b"Connection: close\r\n\r\n"
    b"This port speaks TLS and was sent plain HTTP: use https.\n"
)


def step(session: Session) -> Event | None:
    """Peek, and find the route if the hello is complete."""
    end = session.inbound
    try:
        if session.awaits_header and (size := proxy_header.read(session)):
            _wait_for_rest(session, size, "PROXY header")
            return None
        size = end.sock.recv_into(_buffer, PEEK_BYTES, socket.MSG_PEEK)
    except BlockingIOError:
        _wait(session)
        return None
    except OSError as error:
        session.probe = session.arriving is None
        raise SessionError(Side.INBOUND, Reason.PEER_GONE, error.strerror or "") from None
    if size == 0:
        session.probe = True
        raise SessionError(Side.INBOUND, Reason.PEER_GONE, "closed without sending anything")
    arriving = session.arriving
    if arriving is not None and not arriving.look(_view[:size]):
        _wait_for_hello(session, arriving, size)
        return None
    data = bytes(_view[:size])
    hello = session.worker.hellos.parse(data)
    if hello is NEED_DATA:
        session.arriving = arriving = PartialHello()
        arriving.look(_view[:size])
        _wait_for_hello(session, arriving, size)
        return None
    if arriving is not None:
        session.arriving = None
        if arriving.wanted > MORE_BYTES:
            end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    if isinstance(hello, Malformed):
        if size and _buffer[0] == 0 and _answered(session, size):
            return None
        _refuse_malformed(session, hello)
    session.sni, session.signatures, session.ech = hello.sni, hello.signatures, hello.ech
    session.route = route = session.listener.routes.find(hello.sni)
    if route is None:
        _refuse_unknown(session, hello.sni)
    session.route_cell = session.worker.counters.routed(session.listener.name, route.label)
    if session.asked_for and not starttls.is_offered(route):
        _refuse_asking(session, route)
    session.patience_s = session.listener.patience[route.pool]
    if isinstance(route, PassthroughRoute):
        if hello.alpn:
            session.inbound_tls = _offered(hello.alpn)
        pool = session.worker.pools[route.pool]
        if pool.named and pool.has_no_address:
            _refuse_unresolved(session, route)
        return Event.PASSTHROUGH
    if not route.valid_from_at <= session.time_at <= route.valid_until_at:
        _refuse_disabled(session, route)
    pool = session.worker.pools[route.pool]
    if pool.named and pool.has_no_address:
        _refuse_unresolved(session, route)
    end.unread, session.offer = size, data
    session.trust = route.verified_by
    end.ssl = stream.accept(route.owner, route.material, end.fd)
    return Event.ROUTED


def too_slow(session: Session) -> Event | None:
    """Say at the deadline what is missing."""
    detail = "sent no whole PROXY header" if session.awaits_header else ""
    raise SessionError(Side.INBOUND, Reason.HELLO_TIMEOUT, detail)


@lru_cache(64)
def _offered(names: tuple[bytes, ...]) -> Handshake:
    """For the log line of a handshake that is not ours: what the client offers."""
    text = ",".join(name.decode("ascii", "replace") for name in names)
    return Handshake(alpn="".join(each if each.isprintable() else "?" for each in text))


def _answered(session: Session, size: int) -> bool:
    """Whether it asks for TLS as PostgreSQL's clients do. Raises SessionError."""
    start = bytes(_view[: min(size, starttls.ENOUGH_BYTES)])
    if not session.listener.starttls:
        starttls.refuse(session, start)
        return False
    if not starttls.answer(session, start):
        return False
    _wait_for_rest(session, size, "request for TLS")
    return True


def _refuse_unknown(session: Session, sni: str) -> NoReturn:
    """Refuse: no route has this name."""
    _answer(session, _ALERT + bytes((UNRECOGNIZED_NAME,)))
    raise SessionError(Side.INBOUND, Reason.UNKNOWN_SNI if sni else Reason.NO_SNI)


def _refuse_asking(session: Session, route: AnyRoute) -> NoReturn:
    """Refuse: it has asked for TLS in the clear, and its route has no starttls."""
    _answer(session, _ALERT + bytes((_ACCESS_DENIED,)))
    what = f'asked for TLS with SSLRequest, and route {route.label} has no starttls = "postgres"'
    raise SessionError(Side.INBOUND, Reason.STARTTLS_REFUSED, what)


def _refuse_malformed(session: Session, hello: Malformed) -> NoReturn:
    if hello.detail == PROXY_HEADER and session.header is not None:
        raise SessionError(Side.INBOUND, Reason.PROXY_HEADER_INVALID, _SECOND_HEADER)
    if hello.reason is Reason.PLAIN_HTTP:
        _answer(session, _PLAIN_HTTP)
    elif hello.alert:
        _answer(session, _ALERT + bytes((hello.alert,)))
    raise SessionError(Side.INBOUND, hello.reason, hello.detail)


def _refuse_disabled(session: Session, route: InboundRoute) -> NoReturn:
    """Refuse: a certificate of the route or of its pool is not valid now."""
    _answer(session, _ALERT + bytes((_INTERNAL_ERROR,)))
    why = route.periods.why_invalid(session.time_at)
    if why:
        raise SessionError(Side.INBOUND, Reason.ROUTE_DISABLED, why)
    why = route.pool_periods.why_invalid(session.time_at)
    raise SessionError(Side.INBOUND, Reason.POOL_DISABLED, why)


def _refuse_unresolved(session: Session, route: AnyRoute) -> NoReturn:
    """Refuse: no backend of the pool has an address.

    It is refused now because an alert can still be sent in the clear.
    """
    _answer(session, _ALERT + bytes((_INTERNAL_ERROR,)))
    backends = session.worker.pools[route.pool].backends
    first = ", ".join(f"{each.target.route} at {each.target.address}" for each in backends[:3])
    more = f" and {len(backends) - 3} more" if len(backends) > 3 else ""
    what = f"no host name of pool {route.pool} has an address: {first}{more}"
    raise SessionError(Side.INBOUND, Reason.BACKEND_UNRESOLVED, what)


def _wait_for_hello(session: Session, arriving: PartialHello, size: int) -> None:
    if arriving.wanted > MORE_BYTES:
        low_water = min(arriving.wanted, size + MORE_BYTES)
        session.inbound.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, low_water)
    _wait_for_rest(session, size, "hello")


def _wait_for_rest(session: Session, size: int, what: str) -> None:
    # A peek shows the bytes again, but not that the client has closed after them.
    sock = session.inbound.sock
    if has_closed(sock):
        if sock.recv_into(_buffer, PEEK_BYTES, socket.MSG_PEEK) > size:
            session.on_wake(IN)  # the rest and the end have come since this step began
            return
        raise SessionError(
            Side.INBOUND, Reason.PEER_GONE, f"closed after {size} bytes of its {what}"
        )
    session.worker.admission.progress(session)
    _wait(session)


def _wait(session: Session) -> None:
    end = session.inbound
    if end.mask == 0:
        end.mask = IN | ET
        session.worker.loop.add(end.fd, end.mask, session.on_wake)


def _answer(session: Session, data: bytes) -> None:
    """Answer a client that is refused before there is a TLS connection."""
    with contextlib.suppress(OSError):
        session.inbound.sock.send(data)
