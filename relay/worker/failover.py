"""A backend failed before it got a byte of the client: try again, or the next one.

Never: chooses or connects to a backend (that is `outbound`).
"""

from __future__ import annotations

from relay.core.lifecycle import Event
from relay.errors import Reason, Side
from relay.tls.explain import Failure
from relay.worker.backend_failure import BLAMELESS, blame, explain_late, where
from relay.worker.connection import Attempt, Connection
from relay.worker.outcome import Outcome
from relay.worker.session import Session

# Failures that have nothing to do with the TLS session that was offered for resumption.
_NOT_THE_RESUMPTION = BLAMELESS | {
    Reason.BACKEND_REFUSED,
    Reason.BACKEND_UNREACHABLE,
    Reason.BACKEND_TIMEOUT,
    Reason.BACKEND_REVOKED,
    Reason.BACKEND_CRL_MISSING,
    Reason.BACKEND_CRL_EXPIRED,
}


def give_up(session: Session, failure: Failure) -> Event:
    """Mark the backend as failed; the next one is tried."""
    blame(session, failure)
    session.outcome = Outcome(failure.reason, Side.OUTBOUND, where(session, failure))
    return Event.BACKEND_FAILED


def give_up_resumption(session: Session, failure: Failure) -> Event:
    """Try the backend again without the TLS session, if that may be the cause.

    OpenSSL refuses every resumption if a server verifies its clients and has no session
    id context. Other servers no longer accept the session's certificate, or its CA.
    """
    end, backend = session.outbound, session.backend
    if end is None or backend is None or not _may_be_the_resumption(end, failure):
        return give_up(session, failure)
    if end.resumable is not None:
        end.resumable.drop(end.offered)
    session.attempt = Attempt(backend, end.claim, end.hurried, failure, end.endpoint)
    end.claim = 0  # the next attempt has it
    return Event.BACKEND_FAILED


def give_up_late(session: Session, failure: Failure) -> Event:
    """The backend failed after its handshake, before either side had sent a byte."""
    failure = explain_late(session, failure)
    if session.outbound is not None and session.outbound.resumed:
        return give_up_resumption(session, failure)
    return give_up(session, failure)


def _may_be_the_resumption(end: Connection, failure: Failure) -> bool:
    """Whether the handshake may have failed because it offered a TLS session."""
    return end.offered is not None and failure.reason not in _NOT_THE_RESUMPTION
