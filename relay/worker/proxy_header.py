"""Reads the PROXY header that a balancer sends before its client's hello.

Theory of operation. Only listed peers may send a header, and they must: if the relay
looked whether there is one, every client could claim any address. Peers that are not
listed are refused at once. The header is read with MSG_PEEK until it is complete, then
exactly its bytes are consumed, so the hello stays in the socket for `intake`. Header
and hello together have hello_s.

Until the header is there, a connection counts for no limit per client: the balancer's
address would soon be at its limit. limits.handshakes bounds these connections too.

Never: consumes a byte that follows the header; guesses whether there is one.
Next: `relay.worker.intake.step`
"""

from __future__ import annotations

import socket
from typing import NoReturn

from relay.core.hello import NEED_DATA
from relay.core.proxy_header import MalformedHeader
from relay.core.proxy_protocol import MAX_HEADER_BYTES, parse_header
from relay.errors import Reason, SessionError, Side
from relay.worker.client_address import why_refused
from relay.worker.session import Session

_buffer = bytearray(MAX_HEADER_BYTES)
_view = memoryview(_buffer)


def refuse_peer(session: Session) -> SessionError | None:
    """Why this peer may not send a header; None if it may."""
    listener = session.listener
    session.peer = session.client_host, session.client_port
    proxies = listener.proxies
    if proxies is None or proxies.holds(session.client_host):
        return None
    return SessionError(
        Side.INBOUND,
        Reason.PROXY_PEER_REFUSED,
        f"{session.client_host} is not in accept_proxy.from of listener {listener.name}"
        f" ({proxies})",
    )


def read(session: Session) -> int:
    """Read the header. Returns 0, or how many bytes of an incomplete one are there.

    Raises BlockingIOError if there is no byte, and SessionError.
    """
    sock = session.inbound.sock
    size = sock.recv_into(_buffer, MAX_HEADER_BYTES, socket.MSG_PEEK)
    if size == 0:
        session.probe = True
        raise SessionError(Side.INBOUND, Reason.PEER_GONE, "closed without sending anything")
    header = parse_header(_view[:size])
    if header is NEED_DATA:
        return size
    if isinstance(header, MalformedHeader):
        _refuse(session, header)
    sock.recv_into(_buffer, header.size)
    session.awaits_header = False
    session.header = header
    session.probe = header.local
    if header.source is not None:
        session.client_host, session.client_port = header.source
        session.worker.admission.limit_client(session)
    refused = why_refused(session)
    if refused is not None:
        raise refused
    return 0


def _refuse(session: Session, header: MalformedHeader) -> NoReturn:
    peer = f"from {session.client_host} to listener {session.listener.name}"
    if header.missing:
        raise SessionError(Side.INBOUND, Reason.PROXY_HEADER_MISSING, f"{header.detail}, {peer}")
    raise SessionError(Side.INBOUND, Reason.PROXY_HEADER_INVALID, f"{header.detail}, {peer}")
