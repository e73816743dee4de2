"""What a client's address alone decides, before a byte of its hello is looked at.

Behind a balancer it is the address in the PROXY header.

Never: looks at a certificate.
Next: `relay.worker.intake.step`
"""

from __future__ import annotations

from relay.errors import Reason, SessionError, Side
from relay.worker.kicked import refuse_address
from relay.worker.session import Session


def why_refused(session: Session) -> SessionError | None:
    """Why a client of this address is refused; usually None."""
    worker, host = session.worker, session.client_host
    if worker.admission.per_client and worker.admission.too_many_of(session):
        return SessionError(Side.INBOUND, Reason.PER_CLIENT_LIMIT)
    if worker.kicks is not None:
        kicked = refuse_address(worker.kicks, host)
        if kicked is not None:
            return kicked
    rate = session.listener.rate
    if rate is not None and session.limited and not rate.take(host, worker.loop.now):
        return SessionError(Side.INBOUND, Reason.PER_CLIENT_RATE, rate.words)
    return None
