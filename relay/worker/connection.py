"""One of a session's two connections.

Never: acts; `session`, `outbound` and `relaying` do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.sockets import StreamSocket
from relay.tls.explain import Failure
from relay.tls.raw import Pointer

if TYPE_CHECKING:
    from relay.shared.addresses import Endpoint
    from relay.tls.stepwise import StepwiseHandshake
    from relay.worker.pools import PoolState


class Connection:
    """`held` is what this end did not take yet; `ended` means nothing more is read from it."""

    __slots__ = (
        "began_at",
        "claim",
        "closing",
        "ended",
        "established",
        "fd",
        "held",
        "hello",
        "hurried",
        "instead",
        "mask",
        "offered",
        "partial_record",
        "place",
        "pool",
        "received",
        "resumed",
        "shut",
        "sock",
        "ssl",
        "stepwise",
        "truncated",
        "waits",
        "wants_write",
    )  # fmt: skip

    def __init__(self, sock: StreamSocket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.ssl: Pointer = None
        self.stepwise: StepwiseHandshake | None = None  # while it handshakes, where that is needed
        self.hello = 0  # bytes of the client's hello, and what came with it
        self.received = 0  # bytes of the handshake, the client's hello aside
        self.partial_record = False  # OpenSSL may have a part of a record
        self.mask = 0
        self.held = b""
        self.established = False
        self.resumed = False
        self.offered: Pointer = None  # the session that a backend was offered to resume
        self.instead: Failure | None = None  # of the resumption that this full handshake makes good
        self.began_at = 0.0  # when we began to connect to it
        self.pool: PoolState | None = None  # which is told when we give this backend up
        self.waits = False  # counts among those that wait for the backend
        self.claim = 0  # ours to a backend that has failed: nobody else tries it meanwhile
        self.hurried = False  # others could serve: the handshake gets no more than connect_s
        self.place: Endpoint | None = None  # which of a backend's several addresses this is
        self.ended = False
        self.truncated = False  # it ended without close_notify
        self.closing = False  # a close_notify waits for the socket to take it
        self.shut = False  # nothing more is written to it
        self.wants_write = (
            False  # OpenSSL has something of its own to write (a key update's answer)
        )
