"""CONNECT and OUTBOUND_TLS: choose a backend, connect, and do the TLS handshake.

A backend that fails before a byte of the client was forwarded is not used for `retry_s`
by any worker. The session goes on with the next backend. When none is left, the last
failure is the session's.

Never: resumes a TLS session whose certificates may have expired since they were
verified; forwards a byte.
Next: `relay.worker.relaying.begin`
"""

from __future__ import annotations

import logging
import socket
import time
from functools import partial

from relay.core.lifecycle import Event, State
from relay.core.postgres import PROTOCOL
from relay.errors import Reason, SessionError, Side, is_shortage
from relay.shared.addresses import Endpoint
from relay.sockets import StreamSocket, start_connect
from relay.tls import stream
from relay.tls.explain import GONE_ERRNOS, Failure, explain_connect, explain_start
from relay.tls.explain_backend import explain_backend, no_shared_alpn
from relay.tls.generation import BackendTarget
from relay.tls.stream import Progress
from relay.worker import expiry, plain_outbound, preface
from relay.worker.address_rotation import AddressRotation
from relay.worker.backend import NO_RESUMPTION_S, BackendState
from relay.worker.backend_failure import why_slow
from relay.worker.connection import Attempt, Connection, attempted
from relay.worker.failover import give_up, give_up_late, give_up_resumption
from relay.worker.loop import ET, IN, OUT
from relay.worker.outcome import NO_OUTCOME, Handshake
from relay.worker.server_name import name_to_send
from relay.worker.session import Session
from relay.worker.verdicts import why_not_trusted

# A server that selects no protocol speaks one of these: HTTP/1 is older than ALPN.
_OLDER_THAN_ALPN = frozenset(("http/1.1", "http/1.0"))

log = logging.getLogger(__name__)


def connect(session: Session) -> Event | None:
    """Begin to connect; later, when the socket is ready, read the result."""
    end = session.outbound
    if end is None:
        attempt, session.attempt = session.attempt or _choose(session), None
        return _begin(session, attempt)
    error = end.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        return give_up(session, explain_connect(error))
    if session.is_plain:
        return plain_outbound.go_on(session, end)
    return Event.CONNECTED


def handshake(session: Session) -> Event | None:
    """Go on with the handshake. When it is done, the session can relay."""
    end, backend = session.outbound, session.backend
    if end is None or backend is None or backend.tls is None:
        return None
    if end.preface is not None:
        gone_on = _go_on_with_preface(session, end, backend, backend.tls)
        if end.first_step is None:
            return gone_on
    progress, end.first_step = end.first_step, None
    if progress is None:
        progress = session.worker.handshaker.step(end, Side.OUTBOUND, partial(backend.admit, end))
    if end.peer is not None and (progress is stream.DONE or isinstance(progress, Failure)):
        policy, peer = backend.tls.trust.crl, end.peer
        session.worker.reports.report(end.ssl, peer.identity, peer.chain, policy)
    if progress is stream.DONE:
        failure = _check_peer(end, backend.tls) or _check_alpn(
            end, backend.tls, session.inbound_tls.alpn
        )
        if failure is not None:
            stream.close_notify(end.ssl)
            return give_up(session, failure)
        _note_handshake(session, end, backend, backend.tls)
        send = backend.tls.send_proxy
        if send is not None and send.inside_tls:
            end.preface = preface.inside_tls(session, send)
            return _go_on_with_preface(session, end, backend, backend.tls)
        return Event.SECURED
    if progress is stream.STEP_MORE:
        session.on_wake(IN)
    if not isinstance(progress, Failure):
        return None
    failure = explain_backend(progress, end.ssl, end.sock, backend.target.name)
    return give_up_resumption(session, failure)


def too_slow(session: Session) -> Event | None:
    """Give up the backend at the deadline of CONNECT or OUTBOUND_TLS."""
    if session.state is State.CONNECT:
        return give_up(session, Failure(Reason.BACKEND_TIMEOUT, ""))
    return give_up(session, why_slow(session))


def _choose(session: Session) -> Attempt:
    """Choose the next backend. Raises SessionError if none is left."""
    pool = session.worker.pools[session.route.pool]  # type: ignore[union-attr]
    if pool.connecting.total >= pool.connecting.most:
        detail = pool.connecting.why_full(pool.name)
        raise SessionError(Side.OUTBOUND, Reason.CONNECTING_LIMIT, detail)
    cookies = session.first.found.values if session.first is not None else ()
    choice = pool.pick(session.client_host, session.tried, session.identity, cookies)
    if choice is None:
        last = session.outcome
        if last.reason is not None:
            raise SessionError(Side.OUTBOUND, last.reason, last.detail)
        failure = pool.why_none()
        raise SessionError(Side.OUTBOUND, failure.reason, failure.detail)
    session.choice, backend = choice, choice.backend
    session.tried = (*session.tried, backend.index)
    session.worker.cells[backend.cells_why[choice.why]] += 1
    hurried = choice.claim != 0 and pool.others_serve(backend, session.tried)
    return Attempt(backend, choice.claim, hurried)


def _begin(session: Session, attempt: Attempt) -> Event | None:
    """Begin to connect to this backend."""
    backend, worker = attempt.backend, session.worker
    target = backend.target
    session.backend = backend
    session.outcome = NO_OUTCOME
    worker.cells[backend.cell_active] += 1
    session.cell_in, session.cell_out = backend.cell_to, backend.cell_from
    session.since_at = worker.loop.now
    sock: StreamSocket | None
    endpoint: Endpoint | None = None
    try:
        if backend.rotation is None:
            sock = start_connect(target.family, target.sockaddr, target.options, target.sources)
        else:
            sock, endpoint = _open_socket(attempt, backend.rotation, worker.loop.now)
    except OSError as error:
        worker.pools[target.pool].release(backend, attempt.claim)
        return give_up(session, explain_start(error))
    if sock is None:
        worker.pools[target.pool].release(backend, attempt.claim)
        failure = Failure(Reason.BACKEND_UNRESOLVED, "its host name has no address")
        return give_up(session, failure)
    if backend.tls is None or session.inbound.ssl is None:
        return plain_outbound.begin(session, attempt, sock, endpoint)
    return _begin_handshake(session, attempt, sock, endpoint, backend.tls)


def _begin_handshake(
    session: Session,
    attempt: Attempt,
    sock: StreamSocket,
    endpoint: Endpoint | None,
    target: BackendTarget,
) -> Event | None:
    """Take the first step at once: a backend nearby has already accepted."""
    worker, backend = session.worker, attempt.backend
    session.outbound = end = attempted(attempt, sock, endpoint, worker.loop.now)
    worker.pools[target.pool].begin(backend, end, attempt.claim)
    if target.has_preface:
        end.preface = preface.before_tls(session, target)
        sent = preface.go_on(session, end)
        if isinstance(sent, Failure):
            return give_up(session, sent)
        if sent is not stream.DONE:
            end.mask = IN | OUT | ET
            worker.loop.add(end.fd, end.mask, session.on_wake)
            return None
    progress = _start_tls(session, end, backend, target)
    if isinstance(progress, Failure):
        refused = progress.errno and progress.reason is Reason.BACKEND_GONE
        if refused and progress.errno not in GONE_ERRNOS:
            return give_up(session, explain_connect(progress.errno))
    connecting = progress is stream.STEP_WANT_WRITE
    end.mask = IN | OUT | ET if connecting else IN | ET
    worker.loop.add(end.fd, end.mask, session.on_wake)
    if connecting:
        return None
    end.first_step = progress
    return Event.CONNECTED


def _start_tls(
    session: Session, end: Connection, backend: BackendState, target: BackendTarget
) -> Progress | Failure:
    """Begin the handshake, and take its first step."""
    name = target.server_name
    end.resumable = kept = backend.resumable
    if target.sends_client_name:
        name = name_to_send(session.sni)
        end.resumable = kept = backend.resumable_under(name)
    if end.instead is None:
        end.offered = backend.session_to_resume(kept, time.time())
        end.peer = kept.peer if end.offered is not None else None
        end.looked_up = target.revoked
    alpn = session.inbound_tls.alpn or (PROTOCOL if session.asked_for == PROTOCOL else "")
    end.trust = target.verified_by
    end.ssl = stream.connect(target.context, end.fd, name, alpn.encode("ascii"), end.offered)
    began_at = time.monotonic()
    progress = stream.handshake(end.ssl, Side.OUTBOUND, partial(backend.admit, end))
    if progress is stream.DONE:
        checker = session.worker.handshaker
        return checker.check_after_step(end, Side.OUTBOUND, progress, began_at)
    return progress


def _go_on_with_preface(
    session: Session, end: Connection, backend: BackendState, target: BackendTarget
) -> Event | None:
    """Send more of the preface, and then begin the handshake if it is not done."""
    sent = preface.go_on(session, end)
    if isinstance(sent, Failure):
        return give_up_late(session, sent) if end.established else give_up(session, sent)
    if sent is not stream.DONE:
        if end.established and not end.mask & OUT:
            session.worker.loop.watch(end.fd, end.mask, IN | OUT | ET)
            end.mask = IN | OUT | ET
        return None
    if end.established:
        return Event.SECURED
    end.first_step = _start_tls(session, end, backend, target)
    return None


def _open_socket(
    attempt: Attempt, rotation: AddressRotation, now: float
) -> tuple[StreamSocket | None, Endpoint | None]:
    """A socket that connects, and its address, for a backend that has several.

    Both are None if the backend's host name has no address.
    """
    endpoint = attempt.endpoint or rotation.pick(now)
    if endpoint is None:
        return None, None
    try:
        target = attempt.backend.target
        return start_connect(*endpoint, target.options, target.sources), endpoint
    except OSError as error:
        if not is_shortage(error):
            rotation.failed(endpoint, now)
        raise


def _check_peer(end: Connection, target: BackendTarget) -> Failure | None:
    """Why the backend is refused by what has changed since OpenSSL verified it."""
    end.resumed, peer = stream.resumed(end.ssl), end.peer
    if peer is None:
        return Failure(Reason.INTERNAL_ERROR, "the backend's certificate was not checked")
    who, chain = peer.identity, peer.chain
    then, now = (end.trust or peer.trust).cas, target.trust.cas
    # The lists may have changed since the session was offered, or during the handshake.
    same = end.looked_up is not None and end.looked_up is target.revoked
    failure = None if same else target.why_revoked(who, chain, time.time())
    if failure is None and then is not now:  # renewed during the handshake
        failure = why_not_trusted(Side.OUTBOUND, who, chain, then, now)
    return failure


def _check_alpn(end: Connection, target: BackendTarget, wanted: str) -> Failure | None:
    """Whether the backend speaks the protocol that the client was promised."""
    if not wanted or wanted in _OLDER_THAN_ALPN:
        return None
    if target.starttls and wanted == PROTOCOL:  # it has shown this before TLS
        return None
    chosen = stream.alpn(end.ssl).decode("ascii", "replace")
    return None if chosen == wanted else no_shared_alpn(wanted, chosen)


def _note_handshake(
    session: Session, end: Connection, backend: BackendState, target: BackendTarget
) -> None:
    end.established, end.stepwise = True, None
    peer = end.peer
    if peer is not None:
        expiry.note(session, peer.identity, peer.chain, target.trust)
    seconds = time.monotonic() - session.since_at
    session.outbound_tls = Handshake(
        stream.version(end.ssl), stream.cipher(end.ssl), resumed=end.resumed, seconds=seconds
    )
    session.worker.counters.handshake(
        session, Side.OUTBOUND, None, resumed=end.resumed, seconds=seconds
    )
    if end.instead is not None and backend.stop_resuming(time.time()):
        # A full handshake has succeeded after a resumption had failed.
        log.warning(
            "pool %s: backend %s refuses to resume TLS sessions (%s); it gets full handshakes"
            " for %g s; set a session id context in it, or turn off its session tickets",
            backend.target.pool,
            backend.target.route,
            end.instead.detail or end.instead.reason,
            NO_RESUMPTION_S,
        )
