"""INTAKE, for PostgreSQL: answer a client that asks for TLS in the clear.

Theory of operation. Only a listener with a route of starttls = "postgres" does so. The
route is not known before the hello, so every client of the listener may ask. A client
that has asked is then refused by routes without starttls. Clients that begin with TLS
never get here, because their first byte is another.

A request is consumed only when it is there as a whole, and alone. The answer is one
byte. A request for GSSAPI encryption is declined; the client then asks for TLS.

Never: reads a start-up message; lets a client go on without TLS.
Next: `relay.worker.intake.step`
"""

from __future__ import annotations

import contextlib
from socket import MSG_DONTWAIT, MSG_PEEK

from relay.core.hello import NEED_DATA
from relay.core.postgres import (
    NO,
    PROTOCOL,
    REQUEST_BYTES,
    YES,
    Request,
    error_response,
    parse_request,
)
from relay.errors import Reason, SessionError, Side
from relay.tls.generation import AnyRoute, InboundRoute
from relay.worker.session import Session

# The request, and one byte to see whether something follows it.
ENOUGH_BYTES = REQUEST_BYTES + 1
_TLS_REQUIRED = (
    "TLS with a client certificate is required: connect with sslmode=verify-full (or require),"
    " sslcert and sslkey"
)
_NOT_ASKED = "TLS is required from the first byte: connect with sslnegotiation=direct"
_DECLINED = "declined"


def answer(session: Session, start: bytes) -> bool:
    """Answer the request that these bytes are, or begin to be.

    False if they are not PostgreSQL's. Raises SessionError for what is refused.
    """
    request = parse_request(start)
    if request is None:
        return False
    if request is NEED_DATA:
        return True
    if request in {Request.START, Request.CANCEL}:
        _send(session, error_response(_TLS_REQUIRED))
        what = f"sent a {request.value} without TLS"
        raise SessionError(Side.INBOUND, Reason.PLAIN_POSTGRES, what)
    asked_again = session.asked_for == PROTOCOL or (
        request is Request.GSSAPI and session.asked_for == _DECLINED
    )
    if asked_again:
        what = f"sent a {request.value} after it was answered"
        raise SessionError(Side.INBOUND, Reason.BYTES_BEFORE_TLS, what)
    sock = session.inbound.sock
    try:
        sock.recv(REQUEST_BYTES)
        more = len(start) - REQUEST_BYTES or len(sock.recv(1, MSG_PEEK | MSG_DONTWAIT))
        if more:
            what = f"{more} or more bytes followed its {request.value} before it was answered"
            raise SessionError(Side.INBOUND, Reason.BYTES_BEFORE_TLS, what)
        what = f"closed after its {request.value}"
        raise SessionError(Side.INBOUND, Reason.PEER_GONE, what)
    except BlockingIOError:
        pass
    except OSError as error:
        raise SessionError(Side.INBOUND, Reason.PEER_GONE, error.strerror or "") from None
    session.asked_for = PROTOCOL if request is Request.TLS else _DECLINED
    _send(session, YES if request is Request.TLS else NO)
    return True


def is_offered(route: AnyRoute) -> bool:
    """Whether clients of this route may ask for TLS in the clear."""
    return isinstance(route, InboundRoute) and route.starttls


def refuse(session: Session, start: bytes) -> None:
    """Refuse a PostgreSQL client of a listener without starttls.

    Raises SessionError if these bytes are its request.
    """
    request = parse_request(start)
    if not isinstance(request, Request):
        return
    _send(session, error_response(_NOT_ASKED))
    what = f"sent a {request.value} without TLS"
    if request is Request.TLS:
        what = (
            "libpq asks for TLS the old way; set sslnegotiation=direct (libpq 17+), or"
            ' starttls = "postgres" in the route'
        )
    raise SessionError(Side.INBOUND, Reason.NOT_TLS, what)


def _send(session: Session, data: bytes) -> None:
    with contextlib.suppress(OSError):
        session.inbound.sock.send(data)
