"""CONNECT to a backend without TLS of ours, up to the first bytes.

A unix socket is connected at once. SO_PEERCRED says which user listens there. This
stands for the backend's certificate, so a socket of another user is refused.

The client's bytes are not read before the backend is reached: a passthrough client's
hello is still in its socket, so the next backend can have it.

Never: forwards a byte.
Next: `relay.worker.relaying.begin`
"""

from __future__ import annotations

import socket

from relay.core.lifecycle import Event
from relay.shared.addresses import Endpoint
from relay.sockets import StreamSocket
from relay.tls.explain import Failure
from relay.tls.generation import PlainTarget
from relay.tls.plain_targets import why_wrong_user
from relay.tls.stream import DONE
from relay.worker import preface
from relay.worker.connection import Attempt, Connection, attempted
from relay.worker.failover import give_up
from relay.worker.loop import ET, IN, OUT
from relay.worker.session import Session

_ESTABLISHED = 1  # TCP_ESTABLISHED of linux/tcp.h: the first byte of TCP_INFO


def begin(
    session: Session, attempt: Attempt, sock: StreamSocket, endpoint: Endpoint | None
) -> Event | None:
    """The socket connects. A backend nearby has accepted already."""
    backend, target = attempt.backend, attempt.backend.target
    worker = session.worker
    session.outbound = end = attempted(attempt, sock, endpoint, worker.loop.now)
    worker.pools[target.pool].begin(backend, end, attempt.claim)
    if target.family == socket.AF_UNIX:
        failure = why_wrong_user(end.sock, target) if isinstance(target, PlainTarget) else None
        if failure is not None:
            return give_up(session, failure)
    if target.has_preface:
        end.preface = preface.before_tls(session, target)
    elif target.family != socket.AF_UNIX and not _is_established(end):
        _wait(session, end)
        return None
    return go_on(session, end)


def go_on(session: Session, end: Connection) -> Event | None:
    """Send the PROXY header, if there is one. Then the backend is reached."""
    sent = preface.go_on(session, end)
    if isinstance(sent, Failure):
        return give_up(session, sent)
    if sent is DONE:
        return Event.REACHED
    _wait(session, end)
    return None


def _is_established(end: Connection) -> bool:
    return end.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _ESTABLISHED


def _wait(session: Session, end: Connection) -> None:
    """Wait until the socket is connected, or has room for the header."""
    if end.mask == 0:
        end.mask = IN | OUT | ET
        session.worker.loop.add(end.fd, end.mask, session.on_wake)
