"""A session that is over, as the access log has it.

Never: decides how a line looks (that is `logs.access_format`).
Next: `relay.logs.access_log.AccessLog`
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.errors import Reason
from relay.logs.access_record import Record
from relay.remedies import REMEDIES

if TYPE_CHECKING:
    from relay.worker.session import Session


def record_of(session: Session) -> Record:
    """Everything in the order of `Record`'s fields: by name it would take twice as long."""
    reason = session.reason or Reason.INTERNAL_ERROR
    route, who, host = session.route, session.identity, session.client_host
    subject, issuer, serial, not_after_at = (
        (who.subject, who.issuer, who.serial, who.not_after_at)
        if who is not None
        else ("", "", "", 0.0)
    )
    label, pool = (route.label, route.pool) if route is not None else ("", "")
    version, cipher, group, alpn = session.tls_names
    return Record(
        session.time_at,
        f"{session.worker.prefix}-{session.number}",
        session.acceptor.name,
        label,
        f"[{host}]:{session.client_port}" if ":" in host else f"{host}:{session.client_port}",
        session.sni,
        alpn,
        version,
        cipher,
        group,
        session.resumed,
        subject,
        issuer,
        serial,
        not_after_at,
        pool,
        session.backend_name,
        session.why,
        session.outbound_version,
        session.outbound_cipher,
        session.bytes_in,
        session.bytes_out,
        session.ended_at - session.started_at,
        session.inbound_handshake_s,
        session.outbound_handshake_s,
        reason.value,
        session.side.value if session.side is not None else "",
        REMEDIES[reason],
        session.detail,
    )
