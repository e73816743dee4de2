"""One client connection and its backend connection: their facts, and how they close.

A session is in exactly one state of `relay.core.lifecycle`. The stages (`intake`,
`inbound`, `first_request`, `outbound`, `relaying`) read and set its attributes.
`relay.worker.driver` moves the session from state to state.

Only the loop's handlers and its timer heap refer to a session, and nothing it owns
refers back to it. So a closed session is freed at once: the garbage collector is off in
a worker.

Never: parses what a peer sent, or picks a backend.
Next: `relay.worker.driver.DrivenSession.step`
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from relay.core.lifecycle import Event, State
from relay.core.partial_hello import PartialHello
from relay.core.proxy_header import Endpoint, Header
from relay.errors import Reason, SessionError, Side
from relay.sockets import Address, StreamSocket
from relay.tls import stream
from relay.tls.generation import AnyRoute
from relay.tls.identity import Identity
from relay.tls.trust import ClientTrust
from relay.tls.verification import Chain
from relay.worker.backend import BackendState
from relay.worker.connection import Attempt, Connection
from relay.worker.first_bytes import FirstBytes
from relay.worker.last_exchange import LastExchange
from relay.worker.listener_settings import Listener
from relay.worker.outcome import NO_HANDSHAKE, NO_OUTCOME, Outcome
from relay.worker.pools import Choice
from relay.worker.watch import Watch

if TYPE_CHECKING:
    from relay.worker.worker import Worker

# Steps of one state do the same work, so the loop takes them together (see `loop`).
STEP_QUEUES = {
    State.INTAKE: 0,
    State.INBOUND_TLS: 1,
    State.SNIFF: 2,
    State.CONNECT: 3,
    State.OUTBOUND_TLS: 4,
}
UPDATE_QUEUE = len(STEP_QUEUES)  # of `relay.worker.updates`
# Until its certificate is admitted, a client is half open (see `admission`).
HALF_OPEN = frozenset((State.INTAKE, State.INBOUND_TLS))
CONNECTING = frozenset((State.CONNECT, State.OUTBOUND_TLS))
RELAYING = frozenset((State.RELAY, State.HALF_CLOSED))
# Stands in `tried` for a backend that may be tried again at another address.
RETRIABLE = -1
# With these reasons the client was sent nothing, so a reset destroys no answer.
_UNANSWERED = frozenset((Reason.PEER_GONE, Reason.HALF_OPEN_LIMIT, Reason.HALF_OPEN_PER_CLIENT))
# The fatal alert internal_error in the clear (RFC 8446, 6.2): it is not the client's
# fault.
CANNOT_SERVE = bytes((21, 3, 3, 0, 2, 2, 80))
_ENDED_QUIETLY = frozenset((Reason.DRAINED, Reason.MAX_SESSION))
INFINITY = float("inf")


class Session(ABC):
    """See the module. `*_at` is CLOCK_MONOTONIC seconds; `time_at` is Unix time."""

    __slots__ = (
        "active_at",  # when the client's bytes were last moved, or the state began
        "addresses_tried",  # a backend's index, once for each of its addresses that failed
        "answered_at",  # when the backend's bytes were last moved
        "arriving",  # a hello that comes in pieces
        "asked",  # what the client has sent before the backend's first byte, if it is short
        "asked_for",  # what the client has asked for in the clear: see `starttls`
        "attempt",  # the next attempt to connect, if it is to the same backend again
        "awaits_header",  # the peer has not sent its PROXY header yet
        "backend",  # the backend in use; None between two attempts
        "bytes_in",
        "bytes_out",
        "cell_in",
        "cell_out",
        "chain",  # above the client's leaf, as verified; () after a resumption
        "choice",  # the backend that was chosen last, and why
        "client_host",
        "client_port",
        "duration_s",
        "early",  # the client sent something while we were busy with the backend
        "ech",  # the hello has an encrypted_client_hello extension
        "ends_at",  # when it is to end, at first only at a quiet moment
        "expires_at",  # Unix time; no certificate of it expires earlier
        "first",
        "first_reply",  # the beginning of what the backend sent first; b"" if not known
        "header",  # the PROXY header, if there was one
        "identity",
        "inbound",
        "inbound_tls",
        "kept",  # how many records may still be kept in this second
        "last",  # the last HTTP/1 exchange, once the backend has answered
        "limited",  # it counts in the limits per client address
        "listener",
        "number",
        "offer",  # the hello of a client in its handshake
        "outbound",
        "outbound_s",  # how long the last connection to a backend was in use; -1: none was
        "outbound_tls",
        "outcome",
        "patience_s",  # how long each state may take
        "peer",  # the socket's address on a listener with accept_proxy, otherwise None
        "probe",  # it only asks whether the port is open; see `relay.worker.probes`
        "queued",  # a step is due
        "route",
        "route_cell",  # the first of its counters; 0 before it has a route
        "signatures",  # the algorithms in the hello
        "since_at",  # when the state began
        "sni",  # from the hello; "" when the client sent none
        "started_at",
        "state",
        "time_at",
        "timer_at",
        "tried",  # the indexes of the backends that were tried
        "trust",  # that has admitted it; in a handshake, the one that OpenSSL verifies by
        "watch",  # its messages, if it is about to end
        "worker",
    )

    def __init__(
        self, worker: Worker, listener: Listener, sock: StreamSocket, address: Address
    ) -> None:
        self.worker = worker
        self.listener = listener
        self.inbound = Connection(sock)
        self.outbound: Connection | None = None
        self.client_host: str = address[0]
        self.client_port: int = address[1]
        self.header: Header | None = None
        self.peer: Endpoint | None = None
        self.awaits_header = listener.proxies is not None
        self.limited = not self.awaits_header
        self.number = next(worker.numbers)
        self.state = State.INTAKE
        self.time_at = time.time()
        self.started_at = self.since_at = self.active_at = worker.loop.now
        self.answered_at = 0.0
        self.ends_at = INFINITY
        self.duration_s, self.outbound_s = 0.0, -1.0
        self.patience_s = worker.patience_s
        self.timer_at = INFINITY
        self.queued = self.early = self.probe = False
        self.arriving: PartialHello | None = None
        self.first: FirstBytes | None = None
        self.sni, self.asked_for, self.signatures, self.ech = "", "", b"", False
        self.first_reply = self.asked = self.offer = b""
        self.last: LastExchange | None = None
        self.kept = 0
        self.watch: Watch | None = None
        self.route: AnyRoute | None = None
        self.route_cell = 0
        self.trust: ClientTrust | None = None
        self.identity: Identity | None = None
        self.expires_at = INFINITY
        self.chain: Chain = ()
        self.inbound_tls = self.outbound_tls = NO_HANDSHAKE
        self.attempt: Attempt | None = None
        self.choice: Choice | None = None
        self.backend: BackendState | None = None
        self.tried: tuple[int, ...] = ()
        self.addresses_tried: tuple[int, ...] = ()
        self.bytes_in = self.bytes_out = self.cell_in = self.cell_out = 0
        self.outcome = NO_OUTCOME

    @property
    def is_plain(self) -> bool:
        """Whether the relay does no TLS with the backend in use."""
        backend = self.backend
        return self.inbound.ssl is None or (backend is not None and backend.tls is None)

    # What `driver` does.

    @abstractmethod
    def advance(
        self, event: Event, reason: Reason | None = None, detail: str = "", side: Side | None = None
    ) -> None:
        """Follow the table. Stages return an event instead of calling this."""

    def move(self, side: Side) -> int:
        """Move what this side has sent; how many bytes it was."""
        raise NotImplementedError

    def keep_exchanges(self) -> None:
        """Keep the last HTTP/1 exchange; see `relay.worker.http_session`."""
        raise NotImplementedError

    @abstractmethod
    def on_bug(self) -> None:
        """Close the session: one of its handlers raised."""

    @abstractmethod
    def on_wake(self, mask: int) -> None:
        """Ask the loop for a step."""

    # What the stages use.

    def refuse(self, error: SessionError) -> None:
        """Close the session for this reason."""
        if self.state is not State.CLOSED:
            self.advance(Event.REFUSED, error.reason, error.detail, error.side)

    def note(self, reason: Reason | None, side: Side | None = None, detail: str = "") -> None:
        """Add to the outcome. What was noted first stays: it is nearest the cause."""
        had = self.outcome
        self.outcome = Outcome(had.reason or reason, had.side or side, had.detail or detail)

    def watch_client(self, mask: int) -> None:
        """Have epoll report other events of the client's socket."""
        end = self.inbound
        self.worker.loop.watch(end.fd, end.mask, mask)
        end.mask = mask

    # How it closes.

    def note_answer(self) -> None:
        """The backend has answered: keep its TLS session, if it gave us one."""
        end, backend = self.outbound, self.backend
        if end is None or backend is None or end.answered:
            return
        end.answered = True
        if end.resumable is not None:
            backend.keep_session(end.resumable, end.ssl, end.peer, resumed=end.resumed)
        self.worker.pools[backend.target.pool].answered(backend, end.began_at)

    def drop_outbound(self) -> None:
        """Close the connection to the backend. The session may go on with another."""
        end, backend = self.outbound, self.backend
        if end is not None:
            if self.bytes_out and not end.answered:
                self.note_answer()
            self.outbound = None
            if not end.waits:
                self.outbound_s = self.worker.loop.now - end.began_at
            if backend is not None:
                self.worker.pools[backend.target.pool].left(backend, end)
            if end.ssl is not None:
                stream.free(end.ssl, established=end.established)
                end.ssl = None
            self.worker.loop.forget(end.fd, end.sock.close)
        if backend is not None:
            self.worker.cells[backend.cell_active] -= 1
            self.backend = None

    def close(self) -> None:
        """Close both connections, and log the session with the outcome noted before."""
        was, self.state = self.state, State.CLOSED
        self.duration_s = time.monotonic() - self.started_at
        worker, client, outcome = self.worker, self.inbound, self.outcome
        if was in HALF_OPEN:
            worker.counters.handshake(self, Side.INBOUND, outcome.reason or Reason.INTERNAL_ERROR)
        self.drop_outbound()
        passes_through = client.ssl is None
        if client.ssl is not None:
            stream.free(client.ssl, established=client.established)
            client.ssl = None
        # Closing a socket with unread bytes resets the connection. The client would
        # lose the alert that refuses it, or a failed backend's last answer.
        if was in HALF_OPEN:
            lingers = outcome.reason not in _UNANSWERED
        else:
            # A client that ended quietly may have sent its next request just now.
            lingers = outcome.side is Side.OUTBOUND or outcome.reason in _ENDED_QUIETLY
            if was in CONNECTING:
                lingers = lingers and passes_through
                if lingers:  # the client waits for an answer to its hello
                    with contextlib.suppress(OSError):
                        client.sock.send(CANNOT_SERVE)
        if lingers and not client.resets:
            worker.lingering_closes.take(client.sock, client.mask)
        else:
            worker.loop.forget(client.fd, client.sock.close)
        worker.remove(self, half_open=was in HALF_OPEN)
