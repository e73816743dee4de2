"""Why a session fails while it relays: the reason, the side and the words of its access-log line.

Never: ends a session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.errors import Reason, Side
from relay.tls.explain import Failure, after_handshake
from relay.worker.backend_failure import explain_late, where

if TYPE_CHECKING:
    from relay.worker.connection import Connection
    from relay.worker.session import Session

_RESETS = {Reason.PEER_GONE: Reason.INBOUND_RESET, Reason.BACKEND_GONE: Reason.OUTBOUND_RESET}


def may_still_refuse(session: Session, backend: Connection) -> bool:
    """Whether the backend may refuse our certificate after the handshake (RFC 8446, 4.4.2.4)."""
    return session.outbound_version == "TLSv1.3" and not backend.resumed


def note_fault(session: Session, side: Side, failure: Failure) -> None:
    """Remember why the session fails.

    A reset may be followed by its explanation, an alert that was under way.
    """
    outward = side is Side.OUTBOUND
    failure = explain_late(session, failure) if outward else after_handshake(failure)
    if session.reason is None or session.reason in _RESETS.values():
        session.reason = _RESETS.get(failure.reason, failure.reason)
        session.detail = where(session, failure) if outward else failure.detail
        session.side = side


def note_truncation(session: Session) -> None:
    """The backend has sent a bare FIN before the client ended.

    This stays the reason: whatever the client does now is its answer to that.
    """
    if session.reason is None:
        session.reason, session.side = Reason.TRUNCATED, Side.OUTBOUND
        session.detail = where(session)
