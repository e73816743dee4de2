"""One of a session's two connections, and how a connection to a backend is attempted.

Never: acts. `session`, `outbound` and `relaying` do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from relay.shared.addresses import Endpoint
from relay.sockets import StreamSocket
from relay.tls.explain import Failure
from relay.tls.memory_bio import Sealed
from relay.tls.raw import Pointer
from relay.tls.revocation.revoked_set import RevokedSet
from relay.tls.stepwise import StepwiseHandshake
from relay.tls.stream import Progress
from relay.tls.streaming import TRIED_EVERY
from relay.tls.trust import BackendTrust
from relay.worker.backend import BackendPeer, BackendState, Resumable
from relay.worker.pipes import Piped

# Reads the backend's answer to a preface: DONE, STEP_WANT_READ, or why it refuses.
Answer: TypeAlias = Callable[[StreamSocket], Progress | Failure]


class Preface:
    """What is still to be sent to a backend, and what reads its answer, if any.

    See `relay.worker.preface`.
    """

    __slots__ = ("answer", "unsent")

    def __init__(self, unsent: bytes, answer: Answer | None = None) -> None:
        self.unsent = unsent
        self.answer = answer


class Attempt(NamedTuple):
    """How to connect to a backend; see the fields of `Connection`."""

    backend: BackendState
    claim: int = 0
    hurried: bool = False
    instead: Failure | None = None
    endpoint: Endpoint | None = None


class Connection:
    """One socket and its TLS connection; `ssl` is None if it is plain.

    `held` is what the socket did not take yet. `ended` means that no more is read.
    """

    __slots__ = (
        "answered",  # the backend has sent something
        "began_at",  # when we began to connect to the backend
        "bulk",  # it is plain and sends much, so what it sends is spliced
        "burst",  # bytes that have come since `burst_at`
        "burst_at",
        "claim",  # our right to try a failed backend, which no other session tries meanwhile
        "closing",  # a close_notify waits until the socket takes it
        "ended",
        "endpoint",  # the address, if the backend has several
        "errno",  # of an answer that OpenSSL could not write: see `relay.tls.streaming`
        "established",
        "fd",
        "first_step",  # the result of the handshake's first step, until it is looked at
        "held",
        "hello",  # bytes of the client's hello and of what came with it
        "hurried",  # the handshake gets connect_s at most, as other backends can serve
        "instead",  # the failure of the resumption that this full handshake repeats
        "looked_up",  # the revocation lists that the backend was looked up in
        "mask",  # what epoll reports; 0 when it does not watch the socket
        "offered",  # the TLS session that the backend was offered to resume
        "paced",  # it is looked at by a timer: see `relay.worker.paced_stream`
        "partial_record",  # OpenSSL may have a part of a record
        "pause",  # before its next bytes are taken as a stream: see `relay.tls.streaming`
        "peer",  # the backend's certificates, as verified now or before it resumed
        "preface",  # what is still to be sent before anything of the client
        "received",  # bytes of the handshake without the client's hello
        "resets",  # to close it resets the connection: the other end was reset
        "resumable",  # where the backend's TLS session is stored
        "resumed",
        "shut",  # we write nothing more
        "sock",
        "ssl",
        "stepwise",  # the handshake, if OpenSSL is fed in small portions
        "truncated",  # it ended without close_notify
        "trust",  # of the pool when the handshake began: OpenSSL verifies by this
        "unread",  # bytes of the hello that are known to be in the socket
        "waits",  # it counts among the sessions that wait for the backend
        "wants_write",  # OpenSSL must write first: the answer to a key update
    )

    def __init__(self, sock: StreamSocket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.ssl: Pointer = None
        self.mask = 0
        # The handshake.
        self.stepwise: StepwiseHandshake | None = None
        self.unread: int | None = None
        self.hello = self.received = 0
        self.partial_record = self.established = self.resumed = False
        # Bytes.
        self.held: bytes | Piped | Sealed = b""
        self.bulk = self.resets = self.paced = False
        self.burst, self.burst_at = 0, 0.0
        self.errno = 0
        self.pause = TRIED_EVERY
        self.ended = self.truncated = self.closing = self.shut = self.wants_write = False
        # A backend.
        self.offered: Pointer = None
        self.peer: BackendPeer | None = None
        self.preface: Preface | None = None
        self.trust: BackendTrust | None = None
        self.looked_up: RevokedSet | None = None
        self.instead: Failure | None = None
        self.first_step: Progress | Failure | None = None
        self.began_at = 0.0
        self.claim = 0
        self.endpoint: Endpoint | None = None
        self.resumable: Resumable | None = None
        self.waits = self.hurried = self.answered = False


def attempted(
    attempt: Attempt, sock: StreamSocket, endpoint: Endpoint | None, now: float
) -> Connection:
    """The connection of an attempt that has begun."""
    end = Connection(sock)
    end.endpoint, end.began_at = endpoint, now
    end.hurried, end.instead = attempt.hurried, attempt.instead
    return end
