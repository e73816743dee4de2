"""How the end of a direction is passed on in the rare cases.

Never: reads, or closes a session.
"""

from __future__ import annotations

import struct
from socket import SHUT_WR, SO_LINGER, SOL_SOCKET

from relay.errors import Reason, Side
from relay.tls import stream
from relay.tls.raw import WANT_WRITE, lib
from relay.worker.connection import Connection
from relay.worker.relay_failure import note_fault
from relay.worker.session import Session

_RESET = struct.pack("ii", 1, 0)  # struct linger: close at once, with a reset


def end_plain(session: Session, source: Connection, sink: Connection) -> None:
    """Pass the end on to a plain sink: as a FIN, or as a reset if the source was reset.

    A client gets a reset only instead of an answer: some systems drop what they have
    received before it.
    """
    sink.shut = True
    was_reset = source.ssl is None and source.truncated and source.shut
    if was_reset and not (sink is session.inbound and session.bytes_out):
        sink.resets = True
        sink.sock.setsockopt(SOL_SOCKET, SO_LINGER, _RESET)
    elif not sink.ended:  # if it has ended, the close that follows at once sends the FIN
        try:  # noqa: SIM105 (contextlib.suppress is an object and two calls)
            sink.sock.shutdown(SHUT_WR)
        except OSError:
            pass


def has_sent(session: Session, sink: Connection, result: int) -> bool:
    """False if the socket did not take a close_notify now; True if it never will."""
    error = lib.SSL_get_error(sink.ssl, result)
    side = Side.INBOUND if sink is session.inbound else Side.OUTBOUND
    failed = stream.failure(side)
    if error == WANT_WRITE:
        return False
    if failed.reason is Reason.NO_RESOURCES:
        note_fault(session, side, failed)
    return True
