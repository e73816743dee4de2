"""INBOUND_TLS: the handshake with the client, and whether its certificate is admitted.

`admit_client` is the only place that admits a client. OpenSSL's callbacks ask it about
the certificate that the client sends, or that is in the ticket of a session it resumes.
If neither callback ran in the last step of the handshake, `_check` calls it.

Never: lets a session go on if its client's certificate was not checked in this very
handshake, full or resumed.
Next: `relay.worker.outbound.connect`
"""

from __future__ import annotations

import time
from functools import partial

from relay.core.hello_offer import offered
from relay.core.lifecycle import Event
from relay.errors import Reason, SessionError, Side
from relay.tls import stream, verification
from relay.tls.explain import Failure
from relay.tls.generation import InboundRoute
from relay.tls.identity import Identity, admit, peer_identity
from relay.tls.material import TICKET_LIFETIME_S
from relay.tls.stream import Progress
from relay.tls.trust import ClientTrust
from relay.tls.verification import Chain
from relay.worker import expiry
from relay.worker.kicked import refuse_identity
from relay.worker.loop import ET, IN, OUT
from relay.worker.outcome import Handshake
from relay.worker.session import Session
from relay.worker.verdicts import why_not_trusted

_OLD_CERTIFICATE = (
    "; the client resumed an old session, so its previous certificate was checked;"
    " a full handshake would use the current one"
)


def admit_client(session: Session, identity: Identity | None) -> Failure | None:
    """Whether the route admits this client, whose certificate OpenSSL has verified."""
    route = session.route
    if not isinstance(route, InboundRoute):
        return Failure(Reason.INTERNAL_ERROR, "a handshake without a route")
    chain = verification.accepted_chain()
    if chain:  # it may have been verified in an earlier step
        session.chain = chain
    now_at, trust = time.time(), route.trust
    refusal = admit(identity, trust, now_at)
    if refusal is None and identity is not None:
        refusal = route.why_revoked(identity, session.chain, now_at)
        then, kicks = session.trust, session.worker.kicks
        if refusal is None and then is not trust and then is not None:
            # Renewed during the handshake, which OpenSSL verifies by the earlier trust.
            refusal = why_not_trusted(Side.INBOUND, identity, session.chain, then.cas, trust.cas)
        if refusal is None and kicks is not None:
            refusal = refuse_identity(kicks, identity)
        if not _may_resume(identity, session.chain, trust, now_at):
            stream.forbid_resumption(session.inbound.ssl)
    return refusal


def _may_resume(who: Identity, chain: Chain, trust: ClientTrust, now_at: float) -> bool:
    """Whether a ticket can stand for these certificates.

    It must not outlive them: the client may have a new certificate, and would be
    refused for the old one in its ticket. And it has the leaf only. Above an
    intermediate that the client sent, nothing could be checked.
    """
    valid_until_at = min(who.not_after_at, trust.ca_valid_until.get(who.issuer_der, 0))
    if valid_until_at <= now_at + TICKET_LIFETIME_S:
        return False
    known = trust.cas.key_ids
    return all(above.spki_sha256 in known for above in chain)


def step(session: Session) -> Event | None:
    """Go on with the handshake. When it is done, admit the client."""
    end, worker = session.inbound, session.worker
    unread, end.unread = end.unread, None
    progress = worker.handshaker.step(end, Side.INBOUND, partial(admit_client, session), unread)
    if isinstance(progress, Progress) and progress is not stream.DONE:
        _wait(session, progress)
        return None
    if isinstance(progress, Failure):
        session.identity = verification.refused_identity()
        _report_lists(session)
        session.inbound_tls = _agreed(session, None)
        resumed = session.inbound_tls.resumed and session.identity is not None
        offer = offered(progress.reason, session.offer)
        detail = progress.detail + (_OLD_CERTIFICATE if resumed else "")
        detail += f": the client {offer}" if offer else ""
        raise SessionError(Side.INBOUND, progress.reason, detail)
    error = _check(session)
    if error is not None:
        session.inbound_tls = _agreed(session, None)
        raise error
    _report_lists(session)
    end.established, end.stepwise, session.offer = True, None, b""
    seconds = time.monotonic() - session.started_at
    session.inbound_tls = _agreed(session, seconds)
    who, route = session.identity, session.route
    if who is not None and isinstance(route, InboundRoute):
        expiry.note(session, who, session.chain, route.trust)
    worker.counters.handshake(
        session, Side.INBOUND, None, resumed=session.inbound_tls.resumed, seconds=seconds
    )
    if route is not None and worker.pools[route.pool].sticky_names:
        return Event.NEEDS_REQUEST
    return Event.SECURED


def _report_lists(session: Session) -> None:
    """Tell the checker where the lists of a verified chain are, if that is wanted."""
    who, chain, route = session.identity, session.chain, session.route
    if not chain or who is None or not isinstance(route, InboundRoute):
        return
    if route.trust.crl is not None:
        session.worker.reports.report(session.inbound.ssl, who, chain, route.trust.crl)


def _wait(session: Session, progress: Progress) -> None:
    """Wait for the socket, edge-triggered, until OpenSSL can go on."""
    end, loop = session.inbound, session.worker.loop
    # Once OpenSSL has had to wait for room to write, both directions stay watched. This
    # is rare, and an edge that is not needed costs one step.
    mask = IN | OUT | ET if progress is stream.STEP_WANT_WRITE or end.mask & OUT else IN | ET
    if end.mask == 0:
        end.mask = mask
        loop.add(end.fd, mask, session.on_wake)
    elif end.mask != mask:
        session.watch_client(mask)
    session.worker.admission.progress(session)
    if progress is stream.STEP_MORE:
        session.on_wake(IN)


def _agreed(session: Session, seconds: float | None) -> Handshake:
    """What the handshake has agreed on so far."""
    ssl, route = session.inbound.ssl, session.route
    negotiates_alpn = isinstance(route, InboundRoute) and route.negotiates_alpn
    return Handshake(
        stream.version(ssl),
        stream.cipher(ssl),
        stream.group(ssl),
        stream.alpn(ssl).decode("ascii", "replace") if negotiates_alpn else "",
        not session.chain and stream.resumed(ssl),  # a chain: a full handshake
        seconds,
    )


def _check(session: Session) -> SessionError | None:
    """Why the client is not admitted, or its SNI is not as peeked; usually None."""
    ssl = session.inbound.ssl
    # Before this moment the client had not proved that it has the certificate's key.
    accepted = verification.accepted_identity()
    session.identity = accepted or peer_identity(ssl)
    name = stream.server_name(ssl)
    if name != session.sni:
        detail = f"the peeked hello has {session.sni!r}, the handshake {name!r}"
        return SessionError(Side.INBOUND, Reason.SNI_MISMATCH, detail)
    if accepted is None:  # no callback ran in this step of the handshake
        refusal = admit_client(session, session.identity)
        if refusal is not None:
            stream.close_notify(ssl)
            return SessionError(Side.INBOUND, refusal.reason, refusal.detail)
    return None
