"""How long each state of a session may take: of the worker, of a listener and pool.

A pool's value wins over the listener's, and both over [timeouts]. A session begins with
the worker's values, and gets those of its listener and pool when its route is known.

Never: reads a clock.
"""

from __future__ import annotations

from collections.abc import Mapping

from relay.config.listener_model import Listener
from relay.config.model import Config, Timeouts
from relay.core.lifecycle import State

Patience = Mapping[State, float]


def general_patience(timeouts: Timeouts) -> Patience:
    """By state: how long it may take; RELAY and HALF_CLOSED: without moving a byte."""
    return {
        State.INTAKE: timeouts.hello_s,
        State.INBOUND_TLS: timeouts.handshake_s,
        State.SNIFF: timeouts.sniff_s,
        State.CONNECT: timeouts.connect_s,
        State.OUTBOUND_TLS: timeouts.handshake_s,
        State.RELAY: timeouts.idle_s,
        State.HALF_CLOSED: timeouts.linger_s,
    }


def patience_by_pool(config: Config, listener: Listener) -> Mapping[str, Patience]:
    """The values for this listener's sessions, by the pool of their route."""
    general, found = general_patience(config.timeouts), {}
    for name in {route.pool for route in listener.route}:
        own = dict(general)
        for section in (listener, config.pool[name]):
            if section.idle_s is not None:
                own[State.RELAY] = section.idle_s
            if section.linger_s is not None:
                own[State.HALF_CLOSED] = section.linger_s
        found[name] = own
    return found
