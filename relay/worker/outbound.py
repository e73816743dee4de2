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
from typing import TYPE_CHECKING

from relay.core.lifecycle import Event, State
from relay.errors import REMEDIES, Reason, SessionError, Side, Stage
from relay.sockets import format_address, start_connect
from relay.tls import stream
from relay.tls.explain_backend import agreed_on_nothing, explain_backend, explain_rejection, explain_unread
from relay.tls.reasons import GONE_ERRNOS, Failure, after_handshake, explain_connect, is_no_resources
from relay.worker import relaying
from relay.worker.loop import ET, IN, OUT
from relay.worker.pools import NO_RESUMPTION_S
from relay.worker.session import End

if TYPE_CHECKING:
    from relay.observe.addresses import Place
    from relay.worker.places import Places
    from relay.worker.pools import Member
    from relay.worker.session import Session

# A server that selects no protocol speaks these: HTTP/1 is older than ALPN (RFC 7301, 1).
_UNSPOKEN = frozenset(("http/1.1", "http/1.0"))
# Failures that another client, or the same one later, need not have: the backend stays in use.
_BLAMELESS = frozenset((Reason.NO_RESOURCES, Reason.BACKEND_NO_SHARED_ALPN))
# Failures that a session which was offered has no part in.
_NOT_THE_RESUMPTION = _BLAMELESS | {Reason.BACKEND_REFUSED, Reason.BACKEND_UNREACHABLE, Reason.BACKEND_TIMEOUT}

log = logging.getLogger(__name__)


def choose(session: Session) -> None:
    """Pick the next backend and start to connect to it, until one connects. Raises SessionError when none is left."""
    pool = session.worker.pools[session.route.pool]  # type: ignore[union-attr]
    while True:
        cookies = session.first.found.values if session.first is not None else ()
        choice = pool.pick(session.client_host, session.tried, session.identity, cookies)
        if choice is None:
            nobody = f"every backend of pool {pool.name} is disabled, draining, or has its max_connections"
            raise SessionError(Side.OUTBOUND, Stage.CONNECT, session.reason or Reason.NO_BACKEND, session.detail if session.tried else nobody)
        member, session.why = choice
        session.backend_name = member.target.route
        session.tried = (*session.tried, member.index)
        session.worker.cells[member.cells_why[session.why]] += 1
        failure = _begin(session, member)
        if failure is None:
            return
        _give_up(session, failure)


def _begin(session: Session, member: Member, instead: Failure | None = None, place: Place | None = None) -> Failure | None:
    """Start to connect to this backend, in full where `instead` is why a resumption failed there."""
    session.member = member
    session.reason, session.detail, session.side = None, "", None
    session.queued = False
    session.worker.cells[member.cell_active] += 1
    session.cell_in, session.cell_out = member.cell_to, member.cell_from
    session.since_at = session.worker.loop.now
    try:
        failure = _connect(session, member, instead, place)
    except OSError as error:
        return explain_connect(error.errno or 0)
    end = session.outbound
    if failure is None or end is None or not _may_be_the_resumption(end, failure):
        return failure
    return _begin_in_full(session, end, member, failure)


def _connect(session: Session, member: Member, instead: Failure | None, place: Place | None) -> Failure | None:
    """Begin to connect, and to handshake: where the backend is near it has accepted by now, and the first write need not wait for an event."""
    target, places, now = member.target, member.places, session.worker.loop.now
    if places is None:
        session.outbound = end = End(start_connect(target.family, target.sockaddr))
    else:
        place = place or places.pick(now)
        try:
            session.outbound = end = End(start_connect(*place))
        except OSError as error:
            if not is_no_resources(error.errno or 0):
                places.failed(place, now)
            raise
        end.place = place
    end.began_at = now
    end.instead = instead
    end.offered = member.session_to_resume(time.time()) if instead is None else None
    alpn = session.tls_names[3].encode("ascii")
    end.ssl = stream.connect(target.context, end.fd, target.server_name, alpn, end.offered)
    progress = stream.handshake(end.ssl, Side.OUTBOUND)
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
    progress = session.worker.feeder.go_on(end, Side.OUTBOUND)
    if progress is stream.DONE:
        failure = _established(session, end, member)
        if failure is not None:
            try_next(session, failure)
    elif progress is stream.STEP_MORE:
        session.on_wake(IN)
    elif isinstance(progress, Failure):
        _failed_on_the_way(session, end, member, explain_backend(progress, end.ssl, end.sock, member.target.name))


def _failed_on_the_way(session: Session, end: End, member: Member, failure: Failure) -> None:
    """Try the same backend in full, or the next one. Raises SessionError when none is left."""
    if not _may_be_the_resumption(end, failure):
        try_next(session, failure)
        return
    again = _begin_in_full(session, end, member, failure)
    if again is not None:
        try_next(session, again)


def _established(session: Session, end: End, member: Member) -> Failure | None:
    """The handshake is done: begin to relay, or say why not."""
    worker = session.worker
    wanted = session.tls_names[3]
    if wanted and wanted not in _UNSPOKEN:
        chosen = stream.alpn(end.ssl).decode("ascii", "replace")
        if chosen != wanted:
            stream.close_notify(end.ssl)
            return agreed_on_nothing(wanted, chosen)
    end.established, end.feeding = True, None
    session.outbound_version, session.outbound_cipher = stream.version(end.ssl), stream.cipher(end.ssl)
    session.outbound_handshake_s = time.monotonic() - session.since_at
    end.resumed = stream.resumed(end.ssl)
    worker.count_handshake(Side.OUTBOUND, None, resumed=end.resumed, seconds=session.outbound_handshake_s)
    if end.instead is not None:
        _resumes_no_more(session, member, end.instead)
    session.advance(Event.SECURED)
    relaying.begin(session)
    return None


def _may_be_the_resumption(end: End, failure: Failure) -> bool:
    """Whether a handshake may have failed for the session that it offered.

    OpenSSL refuses every resumption where a server verifies its clients and has no session
    id context; other servers have forgotten the session's certificate, or its CA.
    """
    return end.offered is not None and failure.reason not in _NOT_THE_RESUMPTION


def _begin_in_full(session: Session, end: End, member: Member, failure: Failure) -> Failure | None:
    """Try the same backend, at the same address, once more without the session."""
    member.drop_session(end.offered)
    place = end.place
    session.drop_outbound()
    if session.state is not State.CONNECT:
        session.advance(Event.BACKEND_FAILED)
    return _begin(session, member, failure, place)


def _resumes_no_more(session: Session, member: Member, failure: Failure) -> None:
    """A full handshake has succeeded where a resumption had failed: it was the resumption."""
    if member.stop_resuming(session.worker.loop.now):
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
    slow = Reason.BACKEND_TIMEOUT if session.state is State.CONNECT else Reason.BACKEND_HANDSHAKE_TIMEOUT
    try_next(session, Failure(slow))


def close_all(sessions: Iterable[Session], member: Member) -> None:
    """A backend is down: end the sessions it has. Those on their way to it find another by themselves."""
    where = f"{member.target.route} at {member.target.address}"
    for session in [each for each in sessions if each.member is member and each.state in {State.RELAY, State.LINGER}]:
        session.refuse(SessionError(Side.OUTBOUND, Stage.RELAY, Reason.BACKEND_DOWN, where))


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


def explain_late(session: Session, failure: Failure) -> Failure:
    """The same failure of a backend whose handshake was done: what its alert means then."""
    end = session.outbound
    failure = after_handshake(failure)
    if end is None:
        return failure
    if not session.bytes_out and not end.resumed and session.outbound_version == "TLSv1.3":
        failure = explain_unread(failure, end.sock)
    return explain_rejection(failure, end.ssl)


def _give_up(session: Session, failure: Failure) -> None:
    """The backend has failed: blame it, and go back to CONNECT to choose the next one."""
    blame(session, failure)
    session.reason, session.detail, session.side = failure.reason, where(session, failure), Side.OUTBOUND
    session.drop_outbound()
    if session.state is not State.CONNECT:
        session.advance(Event.BACKEND_FAILED)


def blame(session: Session, failure: Failure) -> None:
    """Count a backend's failure and leave it alone; say so once per retry_s, not once per client."""
    member, worker, end = session.member, session.worker, session.outbound
    if member is None:
        return
    worker.count_handshake(Side.OUTBOUND, failure.reason)
    if failure.reason in _BLAMELESS:
        return
    if end is not None and end.offered is not None:
        member.drop_session(end.offered)  # it may be what the backend did not like
    pool = worker.pools[member.target.pool]
    if member.places is not None and _other_address(session, member, member.places, failure):
        return
    if pool.leave_alone(member):
        log.warning("pool %s: backend %s is left alone for %g s: %s: %s; %s", pool.name, member.target.route, pool.retry_s, failure.reason, where(session, failure), REMEDIES[failure.reason])


def _other_address(session: Session, member: Member, places: Places, failure: Failure) -> bool:
    """Whether the backend has an address that this session has not tried; then it may be chosen again, and only the address is left alone."""
    end, now = session.outbound, session.worker.loop.now
    if end is not None and end.place is not None and places.failed(end.place, now):
        log.warning("pool %s: backend %s: its address %s is left alone: %s: %s", member.target.pool, member.target.route, format_address(end.place[1]), failure.reason, where(session, failure))
    mark = ~member.index  # one for each address tried; no member has a negative index
    session.tried = (*session.tried, mark)
    if not places.others_left(session.tried.count(mark)):
        return False
    session.tried = tuple(index for index in session.tried if index != member.index)
    return True


def where(session: Session, failure: Failure | None = None) -> str:
    """Which backend, at which address, and what about it: for the access log."""
    member = session.member
    where = f"{member.target.route} at {member.target.address} (name {member.target.name})" if member is not None else ""
    return f"{where}: {failure.detail}" if failure is not None and failure.detail else where
