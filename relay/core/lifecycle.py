"""The life of a session as data: from which state which event leads where, and what a deadline means there.

    INTAKE        the first bytes are peeked at until the ClientHello is whole and a route is found
    INBOUND_TLS   handshake with the client; then its certificate is judged
    SNIFF         the first request's cookie is looked for, where it says which backend
    CONNECT       TCP to the backend that was chosen
    OUTBOUND_TLS  handshake with the backend, our machine certificate, its name
    RELAY         bytes, both ways
    HALF_CLOSED   one direction has ended, the other goes on to its own end
    CLOSED        both connections are gone, the log line is written

Every state but CLOSED has a row for DEADLINE, PEER_GONE and DRAIN, so that no session can get stuck. A deadline is the end, but in SNIFF.

Never: does anything; `worker.session.Session.advance` acts on it.
"""

from __future__ import annotations

from dataclasses import dataclass

from relay.errors import FastStrEnum, Reason


class State(FastStrEnum):
    """Where in its life a session is."""

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

    ROUTED = "routed"  # a whole hello, and a route for it
    SECURED = "secured"  # a handshake is done and the peer is who it must be
    LOOK = "look"  # so it is, and its first request says where to
    LOOKED = "looked"  # it has said so, or says nothing
    CONNECTED = "connected"  # TCP to the backend stands
    BACKEND_FAILED = "backend_failed"  # before a byte of the client was forwarded
    HALF_ENDED = "half_ended"  # one direction has ended
    ENDED = "ended"  # both have
    REFUSED = "refused"  # by us; the reason comes with the event
    PEER_GONE = "peer_gone"  # reset, or closed where that ends the session
    DEADLINE = "deadline"  # the state took longer than it may
    DRAIN = "drain"  # the worker stops, and its patience is over


@dataclass(frozen=True, slots=True)
class Step:
    """Where an event leads; `reason` is the session's, unless the event brings its own."""

    state: State
    reason: Reason | None = None


def _ends(deadline: Reason, gone: Reason, drain: Reason) -> dict[Event, Step]:
    return {
        Event.REFUSED: Step(State.CLOSED),
        Event.PEER_GONE: Step(State.CLOSED, gone),
        Event.DEADLINE: Step(State.CLOSED, deadline),
        Event.DRAIN: Step(State.CLOSED, drain),
    }


TRANSITIONS: dict[State, dict[Event, Step]] = {
    State.INTAKE: {
        Event.ROUTED: Step(State.INBOUND_TLS),
        **_ends(Reason.HELLO_TIMEOUT, Reason.PEER_GONE, Reason.DRAINING),
    },
    State.INBOUND_TLS: {
        Event.SECURED: Step(State.CONNECT),
        Event.LOOK: Step(State.SNIFF),
        **_ends(Reason.HANDSHAKE_TIMEOUT, Reason.PEER_GONE, Reason.DRAINING),
    },
    State.SNIFF: {
        Event.LOOKED: Step(State.CONNECT),
        Event.REFUSED: Step(State.CLOSED),
        Event.PEER_GONE: Step(State.CLOSED, Reason.INBOUND_RESET),
        Event.DEADLINE: Step(
            State.CONNECT
        ),  # who says nothing may speak a protocol in which the server speaks first
        Event.DRAIN: Step(State.CLOSED, Reason.DRAINING),
    },
    State.CONNECT: {
        Event.CONNECTED: Step(State.OUTBOUND_TLS),
        Event.BACKEND_FAILED: Step(State.CONNECT),
        **_ends(Reason.BACKEND_TIMEOUT, Reason.PEER_GONE, Reason.DRAINING),
    },
    State.OUTBOUND_TLS: {
        Event.SECURED: Step(State.RELAY),
        Event.BACKEND_FAILED: Step(State.CONNECT),
        **_ends(Reason.BACKEND_HANDSHAKE_TIMEOUT, Reason.PEER_GONE, Reason.DRAINING),
    },
    State.RELAY: {
        # A TLS 1.3 backend that refuses our certificate says so only now, after its own handshake was over for us.
        Event.BACKEND_FAILED: Step(State.CONNECT),
        Event.HALF_ENDED: Step(State.HALF_CLOSED),
        Event.ENDED: Step(State.CLOSED, Reason.FINISHED),
        **_ends(Reason.IDLE_TIMEOUT, Reason.INBOUND_RESET, Reason.DRAIN_TIMEOUT),
    },
    State.HALF_CLOSED: {
        Event.ENDED: Step(State.CLOSED, Reason.FINISHED),
        **_ends(Reason.LINGER_TIMEOUT, Reason.INBOUND_RESET, Reason.DRAIN_TIMEOUT),
    },
}
