"""Today's trust, for workers of older generations: plain values, no key, no context.

Their sessions go on after a reload, and are judged by what the serving generation
trusts. A route is found again by its listener and its label, a pool by its name. If the
new configuration no longer has it, the sessions keep the trust that they have.

Never: changes what a new handshake is verified by (old workers accept no clients).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from relay.tls.generation import Generation
from relay.tls.trust import BackendTrust, ClientTrust


@dataclass(frozen=True, slots=True)
class TrustUpdate:
    """`routes` are by listener and label, `pools` by name."""

    routes: Mapping[tuple[str, str], ClientTrust]
    pools: Mapping[str, BackendTrust]


def trust_of(generation: Generation) -> TrustUpdate:
    """What this generation trusts now."""
    return TrustUpdate(
        {
            (listener, route.label): route.trust
            for listener, routes in generation.inbound.items()
            for route in reversed(routes)  # of two with one label, the first one is used
        },
        {name: targets[0].trust for name, targets in generation.targets.items() if targets},
    )


def apply_trust(generation: Generation, update: TrustUpdate) -> None:
    """Judge the peers of this older generation by the update."""
    for listener, routes in generation.inbound.items():
        for route in routes:
            route.trust = update.routes.get((listener, route.label), route.trust)
    for name, targets in generation.targets.items():
        for target in targets:
            target.trust = update.pools.get(name, target.trust)
