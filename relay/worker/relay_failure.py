"""A connection fails in RELAY or HALF_CLOSED: what follows for both directions.

Never: closes a session.
"""

from __future__ import annotations

import os
from errno import EHOSTUNREACH, ENETUNREACH, ETIMEDOUT
from socket import SO_ERROR, SOL_SOCKET

from relay.core.lifecycle import Event, State
from relay.errors import Reason, Side
from relay.tls.explain import Failure, after_handshake
from relay.tls.tcp_info import silent_s
from relay.worker.backend_failure import blame, explain_late, where
from relay.worker.connection import Connection
from relay.worker.failover import give_up_late
from relay.worker.first_bytes import FirstBytes
from relay.worker.outcome import Outcome
from relay.worker.session import Session

_RESETS = {Reason.PEER_GONE: Reason.INBOUND_RESET, Reason.BACKEND_GONE: Reason.OUTBOUND_RESET}
# The kernel gave the peer up (`relay.tcp_options`). A router may have said why.
_GIVEN_UP = frozenset((ETIMEDOUT, EHOSTUNREACH, ENETUNREACH))
_LOST = {Side.INBOUND: Reason.INBOUND_LOST, Side.OUTBOUND: Reason.OUTBOUND_LOST}


def note_fault(session: Session, side: Side, failure: Failure) -> None:
    """Note why the session fails, unless it is noted already.

    A reset is replaced by what comes after it: the alert that explains it may be read
    late.
    """
    outward = side is Side.OUTBOUND
    failure = explain_late(session, failure) if outward else after_handshake(failure)
    noted = session.outcome.reason
    if noted is None or noted in _RESETS.values():
        reason = _RESETS.get(failure.reason, failure.reason)
        if failure.errno in _GIVEN_UP and reason is not failure.reason:
            reason, failure = _LOST[side], _with_silence(session, side, failure)
        detail = where(session, failure) if outward else failure.detail
        session.outcome = Outcome(reason, side, detail)


def _with_silence(session: Session, side: Side, failure: Failure) -> Failure:
    """The failure with how long the peer's machine has not answered."""
    end = session.outbound if side is Side.OUTBOUND else session.inbound
    silent = f"its machine did not answer for {silent_s(end.sock):.0f} s" if end else ""
    return Failure(failure.reason, f"{os.strerror(failure.errno)}: {silent}", failure.errno)


def reset_of(end: Connection, side: Side) -> Failure:
    """The failure of a connection that epoll reports as gone."""
    gone = Reason.PEER_GONE if side is Side.INBOUND else Reason.BACKEND_GONE
    code = end.sock.getsockopt(SOL_SOCKET, SO_ERROR)
    return Failure(gone, os.strerror(code) if code else "the connection was reset", code)


def note_truncation(session: Session) -> None:
    """The backend has sent a bare FIN before the client ended.

    This stays the reason: whatever the client does next is its answer to that.
    """
    if session.outcome.reason is None:
        session.outcome = Outcome(Reason.TRUNCATED, Side.OUTBOUND, where(session))


def _nothing_moved(session: Session) -> bool:
    """Whether another backend can still have the session.

    Bytes that are held for the backend may have been sent in part.
    """
    inbound, outbound = session.inbound, session.outbound
    if session.state is not State.RELAY or outbound is None:
        return False
    return not (session.bytes_in or session.bytes_out or inbound.held or outbound.held)


def fail_source(
    session: Session, side: Side, source: Connection, sink: Connection, failure: Failure
) -> Event | None:
    """The source of this side failed. What it sent may not be delivered yet."""
    if side is Side.OUTBOUND:
        failure = explain_late(session, failure)
        if not session.bytes_out:
            if _nothing_moved(session):
                return give_up_late(session, failure)
            if failure.reason is not Reason.BACKEND_GONE:
                blame(session, failure)  # a TLS 1.3 backend may refuse our certificate late
    note_fault(session, side, failure)
    source.ended = source.truncated = source.shut = True
    source.held, source.closing = b"", False
    sink.ended = True  # what it sends can be delivered nowhere
    return None


def fail_sink(
    session: Session,
    side: Side,
    source: Connection,
    sink: Connection,
    failure: Failure,
    unsent: bytes = b"",
) -> Event | None:
    """The sink of this side takes nothing more. It may still have something to read.

    If `unsent` are the first bytes of the client, another backend gets them.
    """
    if unsent and side is Side.OUTBOUND and _nothing_moved(session):
        session.first = session.first or FirstBytes()
        session.first.keep(unsent)
        return give_up_late(session, failure)
    note_fault(session, side, failure)
    sink.held, sink.closing, sink.shut = b"", False, True
    source.ended = source.truncated = True
    return None
