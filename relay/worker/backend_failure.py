"""What follows when a backend fails: whether it is marked failed, and what is logged.

Never: chooses a backend, or ends a session.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from relay.core.lifecycle import State
from relay.errors import Reason, Side
from relay.remedies import REMEDIES
from relay.sockets import format_address
from relay.tls.explain import Failure, after_handshake
from relay.tls.explain_backend import explain_rejection, explain_unread
from relay.worker.session import RETRIABLE, Session

if TYPE_CHECKING:
    from relay.worker.address_rotation import AddressRotation
    from relay.worker.backend import BackendState

# The backend stays in use after these failures: another client, or the same one later,
# may not have them.
BLAMELESS = frozenset(
    (Reason.NO_RESOURCES, Reason.BACKEND_NO_SHARED_ALPN, Reason.BACKEND_UNRESOLVED)
)

log = logging.getLogger(__name__)


def explain_late(session: Session, failure: Failure) -> Failure:
    """The failure as its cause is explained after the backend's handshake."""
    end = session.outbound
    failure = after_handshake(failure)
    if end is None or end.ssl is None:
        return failure
    if not session.bytes_out and not end.resumed and session.outbound_tls.version == "TLSv1.3":
        failure = explain_unread(failure, end.sock)
    return explain_rejection(failure, end.ssl)


def blame(session: Session, failure: Failure) -> None:
    """Count the failure and mark the backend failed; log it once per retry_s."""
    backend, worker, end = session.backend, session.worker, session.outbound
    if backend is None:
        return
    if not session.is_plain:
        worker.counters.handshake(session, Side.OUTBOUND, failure.reason)
    if worker.examples is not None:
        worker.examples.add_backend(session, failure)
    if failure.reason in BLAMELESS:
        return
    if end is not None and end.offered is not None and end.resumable is not None:
        end.resumable.drop(end.offered)  # it may be the cause
    pool = worker.pools[backend.target.pool]
    if backend.rotation is not None and _other_address(session, backend, backend.rotation, failure):
        return
    if pool.mark_failed(backend, failure.reason):
        log.warning(
            "pool %s: backend %s failed and is not used for %g s: %s: %s; %s",
            pool.name,
            backend.target.route,
            pool.retry_s,
            failure.reason,
            where(session, failure),
            REMEDIES[failure.reason],
        )


def _other_address(
    session: Session, backend: BackendState, rotation: AddressRotation, failure: Failure
) -> bool:
    """Whether the backend has an address that this session has not tried.

    If so, only the address is marked failed, and the session may choose the backend
    again.
    """
    end, now = session.outbound, session.worker.loop.now
    if end is not None and end.endpoint is not None and rotation.failed(end.endpoint, now):
        log.warning(
            "pool %s: backend %s: its address %s failed and is not used for %g s: %s: %s",
            backend.target.pool,
            backend.target.route,
            format_address(end.endpoint[1]),
            session.worker.pools[backend.target.pool].retry_s,
            failure.reason,
            where(session, failure),
        )
    index = backend.index
    session.addresses_tried = (*session.addresses_tried, index)
    if not rotation.others_left(session.addresses_tried.count(index)):
        return False
    session.tried = tuple(RETRIABLE if each == index else each for each in session.tried)
    return True


def where(session: Session, failure: Failure | None = None) -> str:
    """The backend, its address, and the detail of the failure, for the access log."""
    backend = session.backend
    where = ""
    if backend is not None:
        target, end = backend.target, session.outbound
        at = f" ({format_address(end.endpoint[1])})" if end is not None and end.endpoint else ""
        where = f"{target.route} at {target.address}{at}"
        if backend.tls is not None:
            where += f" (name {target.name})"
        if target.send_proxy is not None and session.outbound is not None:
            where += f", sent {target.send_proxy.name}"
    return f"{where}: {failure.detail}" if failure is not None and failure.detail else where


def why_slow(session: Session) -> Failure:
    """The failure of a handshake that has reached its deadline."""
    detail, end = "", session.outbound
    if end is not None and end.hurried:
        connect_s = session.patience_s[State.CONNECT]
        detail = (
            f"the handshake took longer than connect_s ({connect_s:g} s), which is its limit"
            " while other backends can serve and this one had failed before"
        )
    elif end is not None and end.preface is not None and end.preface.answer is not None:
        detail = "no answer to the request for TLS (SSLRequest)"
    return Failure(Reason.BACKEND_HANDSHAKE_TIMEOUT, detail)
