"""The access-log line of a session that was closed.

Lines are made and written together, when the loop has nothing more urgent to do.

Never: decides how a line looks (that is `relay.logs.access_format`).
Next: `relay.logs.access_log.AccessLog`
"""

from __future__ import annotations

import time
from collections import deque

from relay.core.address_set import UNIX
from relay.core.proxy_details import details_of
from relay.errors import Reason
from relay.logs.access_log import AccessLog
from relay.logs.access_record import Record
from relay.remedies import REMEDIES
from relay.worker.loop import Loop
from relay.worker.session import Session


class SessionLog:
    """The access log of one worker; `prefix` begins the identifier of each session."""

    def __init__(self, log: AccessLog, loop: Loop, prefix: str) -> None:
        self._log = log
        self._loop = loop
        self._prefix = prefix
        self._unwritten: deque[Session] = deque()

    def name_of(self, session: Session) -> str:
        """The session's identifier in the access log."""
        return f"{self._prefix}-{session.number}"

    def add(self, session: Session) -> None:
        """Write the line of this session, soon."""
        if self._log.enabled:
            self._unwritten.append(session)
            self._loop.when_idle = self.flush

    def flush(self) -> None:
        """Make the lines of the sessions that were closed, and write them."""
        log, unwritten = self._log, self._unwritten
        while unwritten:
            log.write(log.render(record_of(unwritten.popleft(), self._prefix)))
        log.flush(time.time())

    def on_tick(self) -> None:
        """Write what could not be written before."""
        if self._log.pending or self._unwritten:
            self.flush()

    def reopen(self) -> None:
        """Open the file again: it was renamed."""
        self._log.reopen()

    def close(self) -> None:
        """Write the last lines, and close the file."""
        self.flush()
        self._log.close()


def _address(host: str, port: int) -> str:
    if host == UNIX:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def record_of(session: Session, prefix: str) -> Record:
    """The record of a session. Filled in by position: by name takes twice as long."""
    reason, side, detail = session.outcome
    reason = reason or Reason.INTERNAL_ERROR
    route, identity, peer = session.route, session.identity, session.peer
    choice, client, backend = session.choice, session.inbound_tls, session.outbound_tls
    return Record(
        session.time_at,
        f"{prefix}-{session.number}",
        session.listener.name,
        route.label if route is not None else "",
        _address(session.client_host, session.client_port),
        _address(*peer) if peer is not None else "",
        details_of(session.header) if session.header is not None else (),
        session.sni,
        client.alpn,
        client.version,
        client.cipher,
        client.group,
        client.resumed,
        identity.subject if identity is not None else "",
        identity.issuer if identity is not None else "",
        identity.serial if identity is not None else "",
        identity.not_after_at if identity is not None else 0.0,
        route.pool if route is not None else "",
        choice.backend.target.route if choice is not None else "",
        choice.why if choice is not None else "",
        backend.version,
        backend.cipher,
        session.bytes_in,
        session.bytes_out,
        session.duration_s,
        client.seconds,
        backend.seconds,
        reason._value_,  # without the Python calls of an Enum's `value`
        side._value_ if side is not None else "",
        REMEDIES[reason],
        detail,
        session.ech,
    )
