"""The life of a session as data: which event leads from which state to which.

    INTAKE        peek at the ClientHello until it is complete, and find its route
    INBOUND_TLS   TLS handshake with the client; its certificate is admitted or refused
    SNIFF         read the first request, if its cookie chooses the backend
    CONNECT       choose a backend and open a TCP connection to it
    OUTBOUND_TLS  TLS handshake with the backend, with our machine certificate
    RELAY         move bytes in both directions
    HALF_CLOSED   one direction has ended, the other continues
    CLOSED        both connections are closed; the access-log line is due

Every state but CLOSED has a row for DEADLINE, PEER_GONE and DRAIN, so a session cannot
get stuck. A deadline closes the session in every state except SNIFF: a client that
sends nothing may use a protocol in which the server speaks first.

Never: does anything itself: `relay.worker.driver.DrivenSession.advance` follows the
table.
"""

from __future__ import annotations

from dataclasses import dataclass

from relay.errors import FastStrEnum, Reason


class State(FastStrEnum):
    """The stage of its life that a session is in."""

    INTAKE = "intake"
    INBOUND_TLS = "inbound_tls"
    SNIFF = "sniff"
    CONNECT = "connect"
    OUTBOUND_TLS = "outbound_tls"
    RELAY = "relay"
    HALF_CLOSED = "half_closed"
    CLOSED = "closed"


class Event(FastStrEnum):
    """What can happen to a session."""

    ROUTED = "routed"  # the hello is complete and has a route
    PASSTHROUGH = "passthrough"  # the same, and the route does not terminate TLS
    SECURED = "secured"  # a handshake is done and the peer's certificate is accepted
    NEEDS_REQUEST = "needs_request"  # the same, and the first request chooses the backend
    REQUEST_READ = "request_read"  # its cookie was found, or there is none
    CONNECTED = "connected"  # TCP to the backend is established
    REACHED = "reached"  # connected to a backend with which the relay does no TLS
    BACKEND_FAILED = "backend_failed"  # before a byte of the client was forwarded
    HALF_ENDED = "half_ended"  # one direction has ended
    ENDED = "ended"  # both directions have ended
    REFUSED = "refused"  # the reason comes with the event
    PEER_GONE = "peer_gone"  # the peer reset or closed the connection too early
    DEADLINE = "deadline"  # the state took longer than its timeout
    DRAIN = "drain"  # the worker stops and waits no longer


@dataclass(frozen=True, slots=True)
class Transition:
    """The next state, and the session's reason unless the event brings its own."""

    state: State
    reason: Reason | None = None


def _ends(deadline: Reason, gone: Reason, drain: Reason) -> dict[Event, Transition]:
    return {
        Event.REFUSED: Transition(State.CLOSED),
        Event.PEER_GONE: Transition(State.CLOSED, gone),
        Event.DEADLINE: Transition(State.CLOSED, deadline),
        Event.DRAIN: Transition(State.CLOSED, drain),
    }


TRANSITIONS: dict[State, dict[Event, Transition]] = {
    State.INTAKE: {
        Event.ROUTED: Transition(State.INBOUND_TLS),
        Event.PASSTHROUGH: Transition(State.CONNECT),
        **_ends(Reason.HELLO_TIMEOUT, Reason.PEER_GONE, Reason.DRAINING),
    },
    State.INBOUND_TLS: {
        Event.SECURED: Transition(State.CONNECT),
        Event.NEEDS_REQUEST: Transition(State.SNIFF),
        **_ends(Reason.HANDSHAKE_TIMEOUT, Reason.PEER_GONE, Reason.DRAINING),
    },
    State.SNIFF: {
        Event.REQUEST_READ: Transition(State.CONNECT),
        Event.REFUSED: Transition(State.CLOSED),
        Event.PEER_GONE: Transition(State.CLOSED, Reason.INBOUND_RESET),
        Event.DEADLINE: Transition(State.CONNECT),
        Event.DRAIN: Transition(State.CLOSED, Reason.DRAINING),
    },
    State.CONNECT: {
        Event.CONNECTED: Transition(State.OUTBOUND_TLS),
        Event.REACHED: Transition(State.RELAY),
        Event.BACKEND_FAILED: Transition(State.CONNECT),
        **_ends(Reason.BACKEND_TIMEOUT, Reason.PEER_GONE, Reason.DRAINING),
    },
    State.OUTBOUND_TLS: {
        Event.SECURED: Transition(State.RELAY),
        Event.BACKEND_FAILED: Transition(State.CONNECT),
        **_ends(Reason.BACKEND_HANDSHAKE_TIMEOUT, Reason.PEER_GONE, Reason.DRAINING),
    },
    State.RELAY: {
        # A TLS 1.3 backend may refuse our certificate after we finished the handshake.
        Event.BACKEND_FAILED: Transition(State.CONNECT),
        Event.HALF_ENDED: Transition(State.HALF_CLOSED),
        Event.ENDED: Transition(State.CLOSED, Reason.FINISHED),
        **_ends(Reason.IDLE_TIMEOUT, Reason.INBOUND_RESET, Reason.DRAIN_TIMEOUT),
    },
    State.HALF_CLOSED: {
        Event.ENDED: Transition(State.CLOSED, Reason.FINISHED),
        **_ends(Reason.LINGER_TIMEOUT, Reason.INBOUND_RESET, Reason.DRAIN_TIMEOUT),
    },
}
