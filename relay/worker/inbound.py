"""The handshake with the client, and the judgement of who it is.

Never: lets a session on whose certificate was not judged in this very handshake, resumed or not.
Next: `relay.worker.outbound.step`
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from relay.core.lifecycle import Event
from relay.errors import Reason, SessionError, Side
from relay.tls import stream, verification
from relay.tls.explain import Failure
from relay.tls.identity import admit, peer_identity
from relay.tls.stream import Progress
from relay.worker import first_request
from relay.worker.loop import ET, IN, OUT

if TYPE_CHECKING:
    from relay.worker.session import Session

_OLD_SESSION = "; this was the certificate of an earlier session that the client resumed: had it begun anew, it would have been asked for its present one"


def step(session: Session, unread: int | None = None) -> None:
    """Go on with the handshake; when it is done, go on to the backend.

    `unread` is how much there is to read, where that is known.
    """
    end = session.inbound
    progress = session.worker.handshaker.step(end, Side.INBOUND, session.check, unread)
    if isinstance(progress, Progress) and progress is not stream.DONE:
        # Edge-triggered, both directions once and for all where writing has to wait: rare, and OpenSSL tries until it would block.
        mask = IN | OUT | ET if progress is stream.STEP_WANT_WRITE or end.mask & OUT else IN | ET
        loop = session.worker.loop
        if end.mask == 0:
            loop.add(end.fd, mask, session.on_wake)
        else:
            loop.watch(end.fd, end.mask, mask)
        end.mask = mask
        session.worker.admission.progress(session)
        if progress is stream.STEP_MORE:
            session.on_wake(IN)
        return
    if isinstance(progress, Failure):
        session.identity = verification.refused_identity()
        _note_names(session)
        raise SessionError(
            Side.INBOUND,
            progress.reason,
            progress.detail + (_OLD_SESSION if session.resumed and session.identity else ""),
        )
    _judge(session)
    end.established, end.stepwise = True, None
    worker = session.worker
    worker.admission.secured(session)
    session.inbound_handshake_s = time.monotonic() - session.started_at
    worker.count_handshake(
        Side.INBOUND, None, resumed=session.resumed, seconds=session.inbound_handshake_s
    )
    if end.mask == 0:  # a resumption in one flight
        end.mask = IN | ET
        worker.loop.add(end.fd, end.mask, session.on_early)
    else:
        worker.loop.handle(end.fd, session.on_early)
    cookie = worker.pools[session.route.pool].cookie if session.route is not None else ""
    if cookie:
        first_request.begin(session, cookie)
    else:
        session.advance(Event.SECURED)
        session.on_wake(IN)  # to `outbound.step`, with others that have come so far


def _note_names(session: Session) -> None:
    ssl, route = session.inbound.ssl, session.route
    session.resumed = stream.resumed(ssl)
    alpn = (
        stream.alpn(ssl).decode("ascii", "replace")
        if route is not None and route.negotiates
        else ""
    )
    session.tls_names = (stream.version(ssl), stream.cipher(ssl), stream.group(ssl), alpn)


def _judge(session: Session) -> None:
    """Raises SessionError unless OpenSSL handshook with the name we routed by, and the client may come in."""
    ssl, route = session.inbound.ssl, session.route
    if route is None:
        raise SessionError(Side.INBOUND, Reason.INTERNAL_ERROR, "a handshake without a route")
    _note_names(session)
    # Only now has the client proved that it has the certificate's key: before, it could be anybody's.
    accepted = verification.accepted_identity()
    session.identity = accepted or peer_identity(ssl)
    name = stream.server_name(ssl)
    if name != session.sni:
        raise SessionError(
            Side.INBOUND,
            Reason.SNI_MISMATCH,
            f"peeked {session.sni!r}, handshook with {name!r}",
        )
    if accepted is None:  # else `Session.check` has judged it, a moment ago
        refusal = admit(session.identity, route, time.time())
        if refusal is not None:
            stream.close_notify(ssl)
            raise SessionError(Side.INBOUND, refusal.reason, refusal.detail)
