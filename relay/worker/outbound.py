"""The way to a backend: choose one, connect, handshake, and try the next when it fails.

A backend that fails before a byte of the client was forwarded is left alone for `retry_s` by all workers, and the session goes on with
the next; when none is left the last failure is the session's.

Never: resumes a session whose certificates may have expired since they were verified; forwards a byte.
Next: `relay.worker.relaying.begin`
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from relay.core.lifecycle import Event, State
from relay.errors import Reason, SessionError, Side, is_shortage
from relay.sockets import start_connect
from relay.tls import stream
from relay.tls.explain import GONE_ERRNOS, Failure, explain_connect
from relay.tls.explain_backend import explain_backend, no_shared_alpn
from relay.worker import relaying
from relay.worker.backend import NO_RESUMPTION_S
from relay.worker.backend_failure import BLAMELESS, blame, explain_late, where
from relay.worker.connection import Connection
from relay.worker.loop import ET, IN, OUT

if TYPE_CHECKING:
    from relay.shared.addresses import Endpoint
    from relay.worker.backend import BackendState
    from relay.worker.session import Session

# A server that selects no protocol speaks these: HTTP/1 is older than ALPN (RFC 7301, 1).
_UNSPOKEN = frozenset(("http/1.1", "http/1.0"))
# Failures that a session which was offered has no part in.
_NOT_THE_RESUMPTION = BLAMELESS | {
    Reason.BACKEND_REFUSED,
    Reason.BACKEND_UNREACHABLE,
    Reason.BACKEND_TIMEOUT,
}

log = logging.getLogger(__name__)


def choose(session: Session) -> None:
    """Pick the next backend and start to connect to it, until one connects. Raises SessionError when none is left."""
    pool = session.worker.pools[session.route.pool]  # type: ignore[union-attr]
    while True:
        cookies = session.first.found.values if session.first is not None else ()
        if pool.waiting.full:
            detail = pool.waiting.why_full(pool.name)
            raise SessionError(Side.OUTBOUND, Reason.CONNECTING_LIMIT, detail)
        choice = pool.pick(session.client_host, session.tried, session.identity, cookies)
        if choice is None:
            last = (
                Failure(session.reason, session.detail)
                if session.reason is not None and session.tried
                else pool.why_none()
            )
            raise SessionError(Side.OUTBOUND, last.reason, last.detail)
        member, session.why, claim = choice
        session.backend_name = member.target.route
        session.tried = (*session.tried, member.index)
        session.worker.cells[member.cells_why[session.why]] += 1
        hurried = claim != 0 and pool.others_serve(member, session.tried)
        failure = _begin(session, member, _Attempt(claim=claim, hurried=hurried))
        if failure is None:
            return
        _give_up(session, failure)


class _Attempt(NamedTuple):
    """How a backend is tried: see the fields of `Connection`."""

    claim: int = 0
    hurried: bool = False
    instead: Failure | None = None
    place: Endpoint | None = None


def _begin(session: Session, member: BackendState, attempt: _Attempt) -> Failure | None:
    """Start to connect to this backend, in full where a resumption has failed there."""
    session.member = member
    session.reason, session.detail, session.side = None, "", None
    session.queued = False
    session.worker.cells[member.cell_active] += 1
    session.cell_in, session.cell_out = member.cell_to, member.cell_from
    session.since_at = session.worker.loop.now
    try:
        failure = _connect(session, member, attempt)
    except OSError as error:
        session.worker.pools[member.target.pool].release(member, attempt.claim)
        return explain_connect(error.errno or 0)
    end = session.outbound
    if failure is None or end is None or not _may_be_the_resumption(end, failure):
        return failure
    return _begin_in_full(session, end, member, failure)


def _connect(session: Session, member: BackendState, attempt: _Attempt) -> Failure | None:
    """Begin to connect, and to handshake: where the backend is near it has accepted by now, and the first write need not wait for an event."""
    target, places, now = member.target, member.places, session.worker.loop.now
    if places is None:
        session.outbound = end = Connection(start_connect(target.family, target.sockaddr))
    else:
        place = attempt.place or places.pick(now)
        if place is None:
            return Failure(Reason.BACKEND_UNRESOLVED, "its host name has no address")
        try:
            session.outbound = end = Connection(start_connect(*place))
        except OSError as error:
            if not is_shortage(error):
                places.failed(place, now)
            raise
        end.place = place
    end.began_at = now
    end.pool = pool = session.worker.pools[target.pool]
    end.hurried, end.instead = attempt.hurried, attempt.instead
    pool.begin(member, end, attempt.claim)
    end.offered = member.session_to_resume(time.time()) if end.instead is None else None
    alpn = session.tls_names[3].encode("ascii")
    end.ssl = stream.connect(target.context, end.fd, target.server_name, alpn, end.offered)
    began_at = time.monotonic()
    progress = stream.handshake(end.ssl, Side.OUTBOUND)
    if progress is stream.DONE:
        progress = session.worker.handshaker.check_after_step(
            end, Side.OUTBOUND, progress, began_at
        )
    if isinstance(progress, Failure):
        unconnected = progress.errno and progress.reason is Reason.BACKEND_GONE
        if unconnected and progress.errno not in GONE_ERRNOS:
            return explain_connect(progress.errno)
        return explain_backend(progress, end.ssl, end.sock, target.name)
    connecting = progress is stream.STEP_WANT_WRITE
    end.mask = IN | OUT | ET if connecting else IN | ET
    session.worker.loop.add(end.fd, end.mask, session.on_wake)
    if not connecting:
        session.advance(Event.CONNECTED)
    if progress is stream.DONE:  # a backend that answered every flight before we asked for more
        return _established(session, end, member)
    return None


def step(session: Session) -> None:
    """The way begins; or the backend's socket is ready: connected, refused, or further in the handshake."""
    end, member = session.outbound, session.member
    if end is None or member is None:
        choose(session)
        return
    if session.state is State.CONNECT:
        error = end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            try_next(session, explain_connect(error))
            return
        session.advance(Event.CONNECTED)
    progress = session.worker.handshaker.step(end, Side.OUTBOUND)
    if progress is stream.DONE:
        failure = _established(session, end, member)
        if failure is not None:
            try_next(session, failure)
    elif progress is stream.STEP_MORE:
        session.on_wake(IN)
    elif isinstance(progress, Failure):
        _failed_on_the_way(
            session, end, member, explain_backend(progress, end.ssl, end.sock, member.target.name)
        )


def _failed_on_the_way(
    session: Session, end: Connection, member: BackendState, failure: Failure
) -> None:
    """Try the same backend in full, or the next one. Raises SessionError when none is left."""
    if not _may_be_the_resumption(end, failure):
        try_next(session, failure)
        return
    again = _begin_in_full(session, end, member, failure)
    if again is not None:
        try_next(session, again)


def _established(session: Session, end: Connection, member: BackendState) -> Failure | None:
    """The handshake is done: begin to relay, or say why not."""
    worker = session.worker
    wanted = session.tls_names[3]
    if wanted and wanted not in _UNSPOKEN:
        chosen = stream.alpn(end.ssl).decode("ascii", "replace")
        if chosen != wanted:
            stream.close_notify(end.ssl)
            return no_shared_alpn(wanted, chosen)
    end.established, end.stepwise = True, None
    if end.pool is not None:
        end.pool.reached(member, end)
    session.outbound_version, session.outbound_cipher = (
        stream.version(end.ssl),
        stream.cipher(end.ssl),
    )
    session.outbound_handshake_s = time.monotonic() - session.since_at
    end.resumed = stream.resumed(end.ssl)
    worker.count_handshake(
        Side.OUTBOUND, None, resumed=end.resumed, seconds=session.outbound_handshake_s
    )
    if end.instead is not None:
        _resumes_no_more(member, end.instead)
    session.advance(Event.SECURED)
    relaying.begin(session)
    return None


def _may_be_the_resumption(end: Connection, failure: Failure) -> bool:
    """Whether a handshake may have failed for the session that it offered.

    OpenSSL refuses every resumption where a server verifies its clients and has no session
    id context; other servers have forgotten the session's certificate, or its CA.
    """
    return end.offered is not None and failure.reason not in _NOT_THE_RESUMPTION


def _begin_in_full(
    session: Session, end: Connection, member: BackendState, failure: Failure
) -> Failure | None:
    """Try the same backend, at the same address, once more without the session."""
    member.drop_session(end.offered)
    attempt = _Attempt(end.claim, end.hurried, failure, end.place)
    end.claim = 0  # the next attempt goes on with it
    session.drop_outbound()
    if session.state is not State.CONNECT:
        session.advance(Event.BACKEND_FAILED)
    return _begin(session, member, attempt)


def _resumes_no_more(member: BackendState, failure: Failure) -> None:
    """A full handshake has succeeded where a resumption had failed: it was the resumption."""
    if member.stop_resuming(time.time()):
        log.warning(
            "pool %s: backend %s refuses to resume TLS sessions (%s); it gets full handshakes for %g s: give it a session id context, or turn its session tickets off",
            member.target.pool,
            member.target.route,
            failure.detail or failure.reason,
            NO_RESUMPTION_S,
        )


def too_slow(session: Session) -> None:
    """The deadline of CONNECT or OUTBOUND_TLS has passed."""
    if session.member is None:
        choose(session)  # its step was still to come
        return
    slow = (
        Reason.BACKEND_TIMEOUT
        if session.state is State.CONNECT
        else Reason.BACKEND_HANDSHAKE_TIMEOUT
    )
    end, patience_s = session.outbound, session.worker.patience_s
    hurried = end is not None and end.hurried and slow is Reason.BACKEND_HANDSHAKE_TIMEOUT
    detail = (
        f"not within connect_s ({patience_s[State.CONNECT]:g} s): it had failed before, and others can serve"
        if hurried
        else ""
    )
    try_next(session, Failure(slow, detail))


def close_all(sessions: Iterable[Session], member: BackendState) -> None:
    """A backend is down: end the sessions it has. Those on their way to it find another by themselves."""
    where = f"{member.target.route} at {member.target.address}"
    for session in [
        each
        for each in sessions
        if each.member is member and each.state in {State.RELAY, State.HALF_CLOSED}
    ]:
        session.refuse(SessionError(Side.OUTBOUND, Reason.BACKEND_DOWN, where))


def try_next(session: Session, failure: Failure) -> None:
    """Leave this backend alone and choose another. Raises SessionError when none is left."""
    _give_up(session, failure)
    choose(session)


def back_to_connect(session: Session, failure: Failure) -> None:
    """The backend failed before either side had sent a byte: try the next one, as if it had failed in its handshake."""
    worker, client, end, member = session.worker, session.inbound, session.outbound, session.member
    mask = IN | ET
    worker.loop.handle(client.fd, session.on_early)
    worker.loop.watch(client.fd, client.mask, mask)
    client.mask = mask
    failure = explain_late(session, failure)
    try:
        if end is None or member is None or not end.resumed:
            try_next(session, failure)
        else:
            _failed_on_the_way(session, end, member, failure)
    except SessionError as error:
        session.refuse(error)


def _give_up(session: Session, failure: Failure) -> None:
    """The backend has failed: blame it, and go back to CONNECT to choose the next one."""
    blame(session, failure)
    session.reason, session.detail, session.side = (
        failure.reason,
        where(session, failure),
        Side.OUTBOUND,
    )
    session.drop_outbound()
    if session.state is not State.CONNECT:
        session.advance(Event.BACKEND_FAILED)
