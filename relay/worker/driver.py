"""Drives a session: the loop's calls, and the table of `relay.core.lifecycle`.

Theory of operation. `advance` is the only place that changes a session's state. It also
does what belongs to the border between two states: it gives back the client's half-open
place, tells the pool that its backend was reached, and chooses the handlers of the
sockets. Until RELAY the sockets are watched edge-triggered, and each event asks the
loop for a step of the current stage. In RELAY and HALF_CLOSED they are watched
level-triggered, and `on_inbound` and `on_outbound` move the bytes. `relaying` handles
everything that is not an ordinary message.

Never: parses what a peer sent, or picks a backend.
Next: `relay.worker.stages.STAGES`
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from relay.core.lifecycle import TRANSITIONS, Event, State
from relay.errors import Reason, SessionError, Side, describe_error, is_shortage
from relay.sockets import Address, StreamSocket
from relay.tls.pump import BUFFER, BUFFER_BYTES, LONG_BYTES, VIEW, read, write
from relay.tls.raw import RECORD_BYTES
from relay.worker import relaying
from relay.worker.client_address import why_refused
from relay.worker.connection import Connection
from relay.worker.deadlines import limit_lifetime
from relay.worker.http_session import HttpSession
from relay.worker.last_exchange import ANSWER, KEPT_BYTES
from relay.worker.listener_settings import Listener
from relay.worker.loop import ET, GONE, IN, Handler
from relay.worker.proxy_header import refuse_peer
from relay.worker.session import CONNECTING, STEP_QUEUES
from relay.worker.stages import STAGES, Work
from relay.worker.worker import Worker

# After this many bytes a backend has had time to refuse our certificate. OpenSSL reads
# no alert after a failed write, so until then each write is preceded by a read.
LATE_ALERT_BYTES = 65_536
# The beginning of an HTTP/1 answer with its status.
REPLY_BYTES = 12
# Measured with timeit, CPython 3.11: each look-up of an Enum's member costs 0.06 µs,
# and this table would make about a dozen per connection.
_INTAKE, _INBOUND_TLS, _SNIFF = State.INTAKE, State.INBOUND_TLS, State.SNIFF
_RELAY, _CLOSED = State.RELAY, State.CLOSED
# After these, the next connection is begun at once: there was no costly step.
_AT_ONCE = frozenset((Event.BACKEND_FAILED, Event.PASSTHROUGH))


def start(worker: Worker, listener: Listener, sock: StreamSocket, address: Address) -> None:
    """Begin the session of a client that was just accepted."""
    session = DrivenSession(worker, listener, sock, address)
    worker.add(session)
    refused = why_refused(session) if listener.proxies is None else refuse_peer(session)
    if refused is not None:
        session.refuse(refused)
        return
    if listener.max_session_s:
        limit_lifetime(session)
    worker.loop.schedule(session)
    session.on_wake(IN)


class DrivenSession(HttpSession):
    """A session with the handlers that the loop calls."""

    __slots__ = ()

    # Until RELAY.

    def on_wake(self, mask: int) -> None:  # noqa: ARG002 (a failed socket shows in the step)
        """The socket of the current handshake is ready."""
        if not self.queued:
            self.queued = True
            self.worker.loop.later(self, STEP_QUEUES[self.state])

    def step(self) -> None:
        """Take a step of the current stage."""
        if self.queued:  # False if the backend was given up after the request
            self.queued = False
            self._run(STAGES[self.state].step)

    def on_early(self, mask: int) -> None:
        """The client sends its first request, or leaves, before there is a backend."""
        self.early = True
        if mask & GONE:
            self.advance(Event.PEER_GONE, side=Side.INBOUND)

    # In RELAY and HALF_CLOSED.

    def on_inbound(self, mask: int) -> None:
        """The client's socket is ready."""
        worker = self.worker
        if mask != IN:
            self._run(None, relaying.on_event(self, Side.INBOUND, mask))
            return
        end: Connection = self.inbound
        sink: Connection = self.outbound  # type: ignore[assignment]
        if not end.pause:
            size = worker.pump.stream(end, sink)
        elif not 0 < (size := read(end.ssl, BUFFER, RECORD_BYTES)) < LONG_BYTES:
            size = worker.pump.go_on(end, sink, size)
        elif write(sink.ssl, BUFFER, size) != size:
            size = worker.pump.not_taken(sink.ssl, size, 0)
        if size >= 0:
            self.bytes_in += size
            worker.cells[self.cell_in] += size
            self.active_at = worker.loop.now
        else:
            self._run(None, relaying.unusual(self, Side.INBOUND, ~size))

    def on_outbound(self, mask: int) -> None:
        """The backend's socket is ready."""
        worker = self.worker
        if mask != IN:
            self._run(None, relaying.on_event(self, Side.OUTBOUND, mask))
            return
        end: Connection = self.outbound  # type: ignore[assignment]
        sink = self.inbound
        if not end.pause:
            size = worker.pump.stream(end, sink)
        elif not 0 < (size := read(end.ssl, BUFFER, RECORD_BYTES)) < LONG_BYTES:
            size = worker.pump.go_on(end, sink, size)
        elif write(sink.ssl, BUFFER, size) != size:
            size = worker.pump.not_taken(sink.ssl, size, 0)
        if size >= 0:
            self.bytes_out += size
            worker.cells[self.cell_out] += size
            self.answered_at = worker.loop.now
        else:
            self._run(None, relaying.unusual(self, Side.OUTBOUND, ~size))

    def on_first_reply(self, mask: int) -> None:
        """Do what `on_outbound` does, until the backend has sent its first byte.

        `on_inbound_unanswered` may have read what this event announces. So look first.
        """
        end, client, first = self.outbound, self.inbound, self.first
        if end is None or end.ended or client.held or (first is not None and first.inserter):
            self._run(None, relaying.on_event(self, Side.OUTBOUND, mask))
            return
        on_outbound = self.on_outbound if end.ssl is not None else self.on_plain_outbound
        unanswered = not self.bytes_out
        on_outbound(mask)
        end = self.outbound
        if self.bytes_out and end is not None:
            whole = unanswered and self.bytes_out <= BUFFER_BYTES  # the buffer has all of it
            if whole:
                self.first_reply = VIEW[:REPLY_BYTES]
            self.note_answer()
            if not (end.ended or client.held):
                self.worker.loop.handle(end.fd, on_outbound)
                if client.ssl is None or self.watch is not None:
                    return
                on_inbound = self.on_inbound if end.ssl is not None else self.on_plain_inbound
                self.worker.loop.handle(client.fd, on_inbound)
                reply = VIEW[: self.bytes_out] if whole else b""
                if reply.startswith(ANSWER) or (first is not None and first.found.http):
                    self.keep_first_exchange(reply)

    def on_first_request(self, mask: int) -> None:
        """Do what `on_inbound` does, and keep what was read, if it is short."""
        plain = self.outbound.ssl is None  # type: ignore[union-attr]
        (self.on_plain_inbound if plain else self.on_inbound)(mask)
        size = self.bytes_in - len(self.asked)
        if 0 < size < KEPT_BYTES and len(self.asked) < KEPT_BYTES:
            self.asked += VIEW[:size]

    def on_inbound_unanswered(self, mask: int) -> None:
        """Do what `on_inbound` does, but first read the alert of a TLS 1.3 backend."""
        outbound = self.outbound
        if self.bytes_out or self.bytes_in > LATE_ALERT_BYTES:
            self.worker.loop.handle(self.inbound.fd, self.on_inbound)
        elif self.state is State.RELAY and not self.inbound.held:
            self.on_first_reply(IN)
            moved_on = self.state is not State.RELAY or self.outbound is not outbound
            if moved_on or outbound is None or outbound.held:
                return
        self.on_first_request(mask)

    # At any time.

    def on_bug(self) -> None:
        """A handler raised, or this machine is short of memory or descriptors."""
        if self.state is State.CLOSED:
            return
        error = sys.exception()
        if is_shortage(error):
            self.advance(Event.REFUSED, Reason.NO_RESOURCES, describe_error(error))
        else:
            self.advance(Event.REFUSED, Reason.INTERNAL_ERROR)

    # The table.

    def follow(self, event: Event | None) -> None:
        """Follow an event that a handler of another module returns."""
        self._run(None, event)

    def _run(self, work: Work | None, event: Event | None = None) -> None:
        """Do a stage's work, or follow an event, and enter the next stages."""
        try:
            if work is not None:
                event = work(self)
            while event is not None:
                self.advance(event)
                stage = STAGES[self.state]
                if stage.queued and event not in _AT_ONCE:
                    self.on_wake(IN)
                    return
                work = stage.enter
                event = work(self) if work is not None else None
        except SessionError as error:
            self.refuse(error)
        if self.early and self.state is _RELAY:
            self._read_early()

    def advance(
        self, event: Event, reason: Reason | None = None, detail: str = "", side: Side | None = None
    ) -> None:
        """Follow the table. Raises KeyError if it has no such row: a bug."""
        transition = TRANSITIONS[self.state][event]
        was, state = self.state, transition.state
        if state is _CLOSED:
            self.note(reason or transition.reason, side, detail)
            self.close()
            return
        self.state = state
        worker = self.worker
        self.since_at = now = worker.loop.now
        # Seldom true: a later state usually has a longer timeout.
        if now + self.patience_s[state] < self.timer_at:
            worker.loop.schedule(self)
        if state in _BORDERS:
            _BORDERS[state](self, was)

    # The borders between states.

    def enter_sniff(self, _was: State) -> None:
        """The client is admitted, and its first request chooses the backend."""
        self._handle_client(self.on_wake)
        self.worker.admission.secured(self)

    def enter_connect(self, was: State) -> None:
        """A backend is to be chosen: the first one, or another one after a failure."""
        self.queued = False  # drops a step of the handshake, which is over
        if was is _INBOUND_TLS or was is _INTAKE:
            self.worker.admission.secured(self)
        elif was is not _SNIFF:
            self.drop_outbound()
        if was not in CONNECTING and (was is not _INTAKE or self.inbound.mask):
            self._handle_client(self.on_early)

    def enter_relay(self, _was: State) -> None:
        """The backend is reached: from now on the sockets move bytes."""
        outbound, backend, loop = self.outbound, self.backend, self.worker.loop
        if outbound is not None:
            if outbound.ssl is None:
                self.enter_plain_relay(
                    outbound, self.on_first_reply, self._inbound_handler(outbound)
                )
            else:
                on_inbound = self._inbound_handler(outbound)
                loop.handle(outbound.fd, self.on_first_reply)
                loop.handle(self.inbound.fd, on_inbound)
            if backend is not None:
                self.worker.pools[backend.target.pool].reached(backend, outbound)

    def _handle_client(self, handler: Handler) -> None:
        """Call this for each edge of the client's socket."""
        end = self.inbound
        if end.mask == 0:  # the handshake was a resumption that took one flight
            end.mask = IN | ET
            self.worker.loop.add(end.fd, end.mask, handler)
        else:
            self.worker.loop.handle(end.fd, handler)
            if end.mask != IN | ET:
                self.watch_client(IN | ET)

    def _inbound_handler(self, outbound: Connection) -> Handler:
        if outbound.ssl is None:
            return self.on_plain_inbound if self.inbound.ssl is None else self.on_first_request
        # A TLS 1.3 backend may refuse our certificate late (RFC 8446, 4.4.2.4).
        may_refuse = self.outbound_tls.version == "TLSv1.3" and not outbound.resumed
        return self.on_inbound_unanswered if may_refuse else self.on_first_request

    def _read_early(self) -> None:
        """Read what the client sent meanwhile, without waiting for the next event."""
        self.early = False
        outbound = self.outbound
        if outbound is not None and not (outbound.held or self.inbound.ended):
            self._inbound_handler(outbound)(IN)


# Done by `advance` when the state is entered; the argument is the state before.
_BORDERS: dict[State, Callable[[DrivenSession, State], None]] = {
    State.SNIFF: DrivenSession.enter_sniff,
    State.CONNECT: DrivenSession.enter_connect,
    State.RELAY: DrivenSession.enter_relay,
}
