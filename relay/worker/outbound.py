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
from relay.tls.reasons import Failure, explain_connect
from relay.worker import relaying
from relay.worker.loop import ET, IN, OUT
from relay.worker.session import End

if TYPE_CHECKING:
    from relay.worker.places import Places
    from relay.worker.pools import Member
    from relay.worker.session import Session

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
        session.member = member
        session.backend_name = member.target.route
        session.tried = (*session.tried, member.index)
        session.reason, session.detail, session.side = None, "", None
        session.queued = False
        cells = session.worker.cells
        cells[member.cell_active] += 1
        cells[member.cells_why[session.why]] += 1
        session.cell_in, session.cell_out = member.cell_to, member.cell_from
        session.since_at = session.worker.loop.now
        try:
            failure = _connect(session, member)
        except OSError as error:
            failure = explain_connect(error.errno or 0)
        if failure is None:
            return
        _fail(session, failure)


def _connect(session: Session, member: Member) -> Failure | None:
    """Begin to connect, and to handshake: where the backend is near it has accepted by now, and the first write need not wait for an event."""
    target, places, now = member.target, member.places, session.worker.loop.now
    if places is None:
        session.outbound = end = End(start_connect(target.family, target.sockaddr))
    else:
        place = places.pick(now)
        try:
            session.outbound = end = End(start_connect(*place))
        except OSError:
            places.failed(place, now)
            raise
        end.place = place
    end.began_at = now
    alpn = session.tls_names[3].encode("ascii")
    end.ssl = stream.connect(target.context, end.fd, target.server_name, alpn, member.session_to_resume(time.time()))
    progress = stream.handshake(end.ssl, Side.OUTBOUND)
    if isinstance(progress, Failure):
        return explain_connect(progress.errno) if progress.errno else stream.name_backend(progress)
    connecting = progress is stream.STEP_WANT_WRITE
    end.mask = IN | OUT | ET if connecting else IN | ET
    session.worker.loop.add(end.fd, end.mask, session.on_wake)
    if not connecting:
        session.advance(Event.CONNECTED)
    if progress is stream.DONE:  # a backend that answered every flight before we asked for more
        _established(session, end)
    return None


def step(session: Session) -> None:
    """The way begins; or the backend's socket is ready: connected, refused, or further in the handshake."""
    end = session.outbound
    if end is None:
        choose(session)
        return
    if session.state is State.CONNECT:
        error = end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            try_next(session, explain_connect(error))
            return
        session.advance(Event.CONNECTED)
    progress = stream.handshake(end.ssl, Side.OUTBOUND)
    if progress is stream.DONE:
        _established(session, end)
    elif isinstance(progress, Failure):
        try_next(session, stream.name_backend(progress))


def _established(session: Session, end: End) -> None:
    worker = session.worker
    end.established = True
    session.outbound_version, session.outbound_cipher = stream.version(end.ssl), stream.cipher(end.ssl)
    session.outbound_handshake_s = time.monotonic() - session.since_at
    end.resumed = stream.resumed(end.ssl)
    worker.count_handshake(Side.OUTBOUND, None, resumed=end.resumed, seconds=session.outbound_handshake_s)
    session.advance(Event.SECURED)
    relaying.begin(session)


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
    _fail(session, failure)
    session.advance(Event.BACKEND_FAILED)
    choose(session)


def back_to_connect(session: Session, failure: Failure) -> None:
    """The backend failed before either side had sent a byte: try the next one, as if it had failed in its handshake."""
    worker, client = session.worker, session.inbound
    mask = IN | ET
    worker.loop.handle(client.fd, session.on_early)
    worker.loop.watch(client.fd, client.mask, mask)
    client.mask = mask
    try:
        try_next(session, failure)
    except SessionError as error:
        session.refuse(error)


def _fail(session: Session, failure: Failure) -> None:
    blame(session, failure)
    session.reason, session.detail, session.side = failure.reason, _where(session, failure), Side.OUTBOUND
    session.drop_outbound()


def blame(session: Session, failure: Failure) -> None:
    """Count a backend's failure and leave it alone; say so once per retry_s, not once per client."""
    member, worker = session.member, session.worker
    if member is None:
        return
    worker.count_handshake(Side.OUTBOUND, failure.reason)
    if failure.reason is Reason.NO_RESOURCES:
        return  # not the backend's fault
    pool = worker.pools[member.target.pool]
    if member.places is not None and _other_address(session, member, member.places, failure):
        return
    if pool.leave_alone(member):
        log.warning("pool %s: backend %s is left alone for %g s: %s: %s; %s", pool.name, member.target.route, pool.retry_s, failure.reason, _where(session, failure), REMEDIES[failure.reason])


def _other_address(session: Session, member: Member, places: Places, failure: Failure) -> bool:
    """Whether the backend has an address that this session has not tried; then it may be chosen again, and only the address is left alone."""
    end, now = session.outbound, session.worker.loop.now
    if end is not None and end.place is not None and places.failed(end.place, now):
        log.warning("pool %s: backend %s: its address %s is left alone: %s: %s", member.target.pool, member.target.route, format_address(end.place[1]), failure.reason, _where(session, failure))
    mark = ~member.index  # one for each address tried; no member has a negative index
    session.tried = (*session.tried, mark)
    if not places.others_left(session.tried.count(mark)):
        return False
    session.tried = tuple(index for index in session.tried if index != member.index)
    return True


def _where(session: Session, failure: Failure) -> str:
    member = session.member
    where = f"{member.target.route} at {member.target.address} (name {member.target.name})" if member is not None else ""
    return f"{where}: {failure.detail}" if failure.detail else where
