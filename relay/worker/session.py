"""One client connection and its backend connection, from accept to the log line.

Theory of operation. A session is in exactly one state of `core.lifecycle`; `advance` is the only place that changes it. Until
RELAY its sockets are watched edge-triggered and every event asks the loop for a `step`, which the stage's module takes (`intake`,
`inbound`, `sniffing`, `outbound`) together with other sessions' steps of that stage. In RELAY they are watched level-triggered and `on_inbound`, `on_outbound` move bytes; whatever is not the usual
case there is in `relaying`.

Nothing here refers back to the session except the loop's handlers and its timer heap, so that closing it frees it at once: the
garbage collector is off in a worker.

Never: parses what a peer sent, or picks a backend.
Next: `relay.worker.intake.step`
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from relay.core.lifecycle import TRANSITIONS, Event, State
from relay.errors import Reason, SessionError, Side, describe_error, is_shortage
from relay.sockets import Address, StreamSocket
from relay.tls import stream
from relay.tls.contexts import TICKET_LIFETIME_S, InboundRoute
from relay.tls.explain import Failure
from relay.tls.identity import Identity, admit
from relay.tls.pump import BUFFER, read, write
from relay.tls.raw import RECORD_BYTES
from relay.worker.connection import Connection
from relay.worker.lingering_close import LingeringCloses
from relay.worker.loop import GONE, IN

if TYPE_CHECKING:
    from relay.core.partial_hello import PartialHello
    from relay.worker.backend import BackendState
    from relay.worker.first_request import FirstRequest
    from relay.worker.listener import Acceptor
    from relay.worker.worker import Worker

# Handshakes in the same state take the same steps, so these are taken together.
STEP_QUEUES = {
    State.INTAKE: 0,
    State.INBOUND_TLS: 1,
    State.SNIFF: 2,
    State.CONNECT: 3,
    State.OUTBOUND_TLS: 4,
}
_BEFORE_CONNECT = frozenset((State.INTAKE, State.INBOUND_TLS))
# Nothing was said to the client that it could miss.
_UNTOLD = frozenset((Reason.PEER_GONE, Reason.HALF_OPEN_LIMIT, Reason.HALF_OPEN_PER_CLIENT))
_HANDSHAKING = frozenset((State.INBOUND_TLS, State.CONNECT, State.OUTBOUND_TLS))
_INFINITY = float("inf")
# A backend had the time to refuse our certificate. After a failed write OpenSSL reads no alert.
LATE_ALERT_BYTES = 65_536


class Session:
    """See the module. Instants are CLOCK_MONOTONIC seconds, but `time_at`, which is Unix time for the log."""

    __slots__ = (
        "acceptor", "active_at", "arriving", "backend_name", "bytes_in", "bytes_out", "cell_in", "cell_out", "client_host", "client_port", "detail", "early", "ended_at", "first", "identity", "inbound",
        "inbound_handshake_s", "member", "number", "outbound", "outbound_cipher", "outbound_handshake_s", "outbound_version", "progress_at", "progresses", "queued", "reason", "replied", "resumed",
        "route", "side", "since_at", "sni", "started_at", "state", "time_at", "timer_at", "tls_names", "tried", "why", "worker",
    )  # fmt: skip

    def __init__(
        self, worker: Worker, acceptor: Acceptor, sock: StreamSocket, address: Address, number: int
    ) -> None:
        self.worker = worker
        self.acceptor = acceptor
        self.inbound = Connection(sock)
        self.outbound: Connection | None = None
        self.client_host: str = address[0]
        self.client_port: int = address[1]
        self.number = number
        self.state = State.INTAKE
        self.time_at = time.time()
        self.started_at = self.since_at = self.active_at = self.progress_at = worker.loop.now
        self.progresses = 0  # how often the client has sent something while it was half open
        self.timer_at = self.ended_at = _INFINITY
        self.queued = self.replied = False
        self.first: FirstRequest | None = None  # where a cookie decides
        self.early = False  # the client sent something while we were busy with the backend
        self.arriving: PartialHello | None = None  # where the hello comes in pieces
        self.sni = ""  # as peeked; "" when the client sent none
        self.route: InboundRoute | None = None
        self.identity: Identity | None = None
        self.resumed = False
        self.tls_names = ("", "", "", "")  # version, cipher, group, alpn
        self.member: BackendState | None = None
        self.backend_name = ""
        self.tried: tuple[int, ...] = ()
        self.why = ""
        self.outbound_version = self.outbound_cipher = ""
        self.inbound_handshake_s: float | None = None
        self.outbound_handshake_s: float | None = None
        self.bytes_in = self.bytes_out = self.cell_in = self.cell_out = 0
        self.reason: Reason | None = None
        self.side: Side | None = None
        self.detail = ""

    # What the loop calls.

    def step(self) -> None:
        """One step of whatever handshake is under way."""
        if not self.queued:
            return  # asked for by the connection to a backend that has been given up since
        self.queued = False
        stage = self.worker.stages.get(self.state)
        if stage is not None:
            try:
                stage(self)
            except SessionError as error:
                self.refuse(error)

    def on_wake(self, mask: int) -> None:  # noqa: ARG002 (a failed socket shows in the next step)
        """An event on the socket of the handshake under way."""
        if not self.queued:
            self.queued = True
            self.worker.loop.later(self, STEP_QUEUES[self.state])

    def on_early(self, mask: int) -> None:
        """An event on the client's socket while we are busy with the backend: its first request, or its leaving."""
        self.early = True
        if mask & GONE:
            self.advance(Event.PEER_GONE, side=Side.INBOUND)

    def on_inbound(self, mask: int) -> None:
        """The client's socket is ready, in RELAY or HALF_CLOSED."""
        worker = self.worker
        if mask != IN:
            worker.relay_event(self, Side.INBOUND, mask)
            return
        source, sink = self.inbound.ssl, self.outbound.ssl  # type: ignore[union-attr]
        size = read(source, BUFFER, RECORD_BYTES)
        if not 0 < size < RECORD_BYTES:
            size = worker.pump.go_on(source, sink, size)
        elif write(sink, BUFFER, size) != size:
            size = worker.pump.not_taken(sink, size, 0)
        if size >= 0:
            self.bytes_in += size
            worker.cells[self.cell_in] += size
            self.active_at = worker.loop.now
        else:
            worker.relay_unusual(self, Side.INBOUND, ~size)

    def on_outbound(self, mask: int) -> None:
        """The backend's socket is ready, in RELAY or HALF_CLOSED."""
        worker = self.worker
        if mask != IN:
            worker.relay_event(self, Side.OUTBOUND, mask)
            return
        source, sink = self.outbound.ssl, self.inbound.ssl  # type: ignore[union-attr]
        size = read(source, BUFFER, RECORD_BYTES)
        if not 0 < size < RECORD_BYTES:
            size = worker.pump.go_on(source, sink, size)
        elif write(sink, BUFFER, size) != size:
            size = worker.pump.not_taken(sink, size, 0)
        if size >= 0:
            self.bytes_out += size
            worker.cells[self.cell_out] += size
            self.active_at = worker.loop.now
        else:
            worker.relay_unusual(self, Side.OUTBOUND, ~size)

    def on_first_reply(self, mask: int) -> None:
        """`on_outbound`, until the backend has sent its first byte."""
        if self.first is not None and self.first.inserter is not None:
            self.worker.relay_event(self, Side.OUTBOUND, mask)
            return
        self.on_outbound(mask)
        if self.bytes_out:
            self.worker.first_reply(self)

    def on_inbound_unanswered(self, mask: int) -> None:
        """`on_inbound`, until a TLS 1.3 backend has answered: an alert of it is read before we write."""
        backend = self.outbound
        if self.bytes_out or self.bytes_in > LATE_ALERT_BYTES:
            self.worker.loop.handle(self.inbound.fd, self.on_inbound)
        elif self.state is State.RELAY:
            self.on_first_reply(IN)
            if self.state is not State.RELAY or self.outbound is not backend:
                return
        self.on_inbound(mask)

    def due_at(self) -> float:
        """When this state has taken too long."""
        if self.state is State.CLOSED:
            return _INFINITY
        began = (
            self.active_at
            if self.state is State.RELAY or self.state is State.HALF_CLOSED
            else self.since_at
        )
        if self.state is State.OUTBOUND_TLS and self.outbound is not None and self.outbound.hurried:
            return began + min(
                self.worker.patience_s[self.state], self.worker.patience_s[State.CONNECT]
            )
        return began + self.worker.patience_s[self.state]

    def check(self, who: Identity) -> Failure | None:
        """Whether the client, whose certificate OpenSSL accepts or has found in a ticket, may come in: the handshake asks before it is done."""
        if self.route is None:
            return Failure(Reason.INTERNAL_ERROR)
        now_at = time.time()
        refusal = admit(who, self.route, now_at)
        if (
            refusal is None
            and min(who.not_after_at, self.route.ca_valid_until.get(who.issuer_der, 0))
            <= now_at + TICKET_LIFETIME_S
        ):
            # No TLS 1.3 ticket outlives what it vouches for: who has renewed its certificate would be refused for the one in the ticket. And where the
            # issuer is an intermediate that the client sent: a ticket carries the leaf alone, so nobody could see that the intermediate has expired.
            stream.forbid_resumption(self.inbound.ssl)
        return refusal

    def on_deadline(self) -> None:
        """The state has taken too long. A backend or a request that does not come is not the end: there may be others."""
        too_slow = self.worker.too_slow.get(self.state)
        if too_slow is not None:
            try:
                too_slow(self)
            except SessionError as error:
                self.refuse(error)
        else:
            if self.state is State.RELAY:
                self.worker.relay_goodbye(self)
            self.advance(Event.DEADLINE, side=Side.INBOUND)

    def on_bug(self) -> None:
        """A handler raised, or found this machine short of something."""
        if self.state is State.CLOSED:
            return
        error = sys.exception()
        if is_shortage(error):
            self.advance(Event.REFUSED, Reason.NO_RESOURCES, describe_error(error))
        else:
            self.advance(Event.REFUSED, Reason.INTERNAL_ERROR)

    # State.

    def advance(
        self, event: Event, reason: Reason | None = None, detail: str = "", side: Side | None = None
    ) -> None:
        """Follow the table. Raises KeyError for an event the state does not know: a bug."""
        step = TRANSITIONS[self.state][event]
        state = step.state
        if state is State.CLOSED:
            # Whoever saw a fault first knows best.
            self.reason = self.reason or reason or step.reason
            self.detail = self.detail or detail
            self.side = self.side or side
            self._close()
            return
        self.state = state
        worker = self.worker
        self.since_at = now = worker.loop.now
        if (
            now + worker.patience_s[state] < self.timer_at
        ):  # seldom: the patience of later states is greater
            worker.loop.schedule(self)

    def refuse(self, error: SessionError) -> None:
        """End the session for a reason that is ours or a peer's fault."""
        if self.state is not State.CLOSED:
            self.advance(Event.REFUSED, error.reason, error.detail, error.side)

    def drop_outbound(self) -> None:
        """Give up the connection to a backend; the session may go on with another."""
        end = self.outbound
        if end is not None:
            if self.bytes_out:
                self.worker.first_reply(self)
            self.outbound = None
            if end.pool is not None:
                end.pool.left(self.member, end)  # type: ignore[arg-type]
            self._give_back(end)
        if self.member is not None:
            self.worker.cells[self.member.cell_active] -= 1
            self.member = None

    def _give_back(self, end: Connection, lingering_closes: LingeringCloses | None = None) -> None:
        if end.ssl is not None:
            stream.free(end.ssl, established=end.established)
            end.ssl = None
        if lingering_closes is not None:
            lingering_closes.take(end.sock, end.mask)
        else:
            self.worker.loop.forget(end.fd, end.sock.close)

    def _close(self) -> None:
        was, self.state = self.state, State.CLOSED
        self.ended_at = time.monotonic()
        worker = self.worker
        if was in _BEFORE_CONNECT:
            worker.count_handshake(Side.INBOUND, self.reason or Reason.INTERNAL_ERROR)
        self.drop_outbound()
        # Closing over unread bytes would take back what the client was told: the alert that refuses it, or a lost backend's last answer.
        part = (
            self.reason not in _UNTOLD
            if was in _BEFORE_CONNECT
            else self.side is Side.OUTBOUND and was not in _HANDSHAKING
        )
        self._give_back(self.inbound, lingering_closes=worker.lingering_closes if part else None)
        worker.session_closed(self)
        worker.log_session(self)
