"""Today's trust, for workers of older generations: plain values, no key, no context.

Their sessions go on after a reload, and are judged by what the serving generation
trusts. A route is found again by its listener and its label, a pool by its name. If the
new configuration no longer has it, the sessions keep the trust that they have.

Never: changes what a new handshake is verified by (old workers accept no clients).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from relay.shared.sealed_memory import map_bytes
from relay.tls.generation import Generation
from relay.tls.revocation.revoked_set import RevokedSet
from relay.tls.trust import BackendTrust, ClientTrust

SETS = 200  # in one update; see `shared.update_channel.MOST_FILES`


@dataclass(frozen=True, slots=True)
class TrustUpdate:
    """`routes` are by listener and label, `pools` by name.

    The sets of revoked certificates are in files that come with the update, one for
    each of `sets`: the names of the routes and pools that use it.
    """

    routes: Mapping[tuple[str, str], ClientTrust]
    pools: Mapping[str, BackendTrust]
    sets: tuple[frozenset[tuple[str, str] | str], ...] = ()


def trust_of(generation: Generation) -> tuple[TrustUpdate, list[int]]:
    """What this generation trusts now, and descriptors of the sets that come with it.

    They are valid as long as the generation uses these sets.
    """
    users: dict[RevokedSet, set[tuple[str, str] | str]] = {}
    routes: dict[tuple[str, str], ClientTrust] = {}
    pools: dict[str, BackendTrust] = {}
    for listener, several in generation.inbound.items():
        for route in several:
            key = listener, route.label
            if key not in routes:  # of two with one label, the first one is used
                routes[key] = route.trust
                if route.revoked is not None:
                    users.setdefault(route.revoked, set()).add(key)
    for name, targets in generation.targets.items():
        for target in targets[:1]:
            pools[name] = target.trust
            if target.revoked is not None:
                users.setdefault(target.revoked, set()).add(name)
    shared = {each: names for each, names in users.items() if each.memory is not None}
    update = TrustUpdate(routes, pools, tuple(map(frozenset, shared.values())))
    return update, [each.memory.fd for each in shared if each.memory is not None]


def parts(update: TrustUpdate, fds: Sequence[int]) -> Iterator[tuple[TrustUpdate, Sequence[int]]]:
    """The same update in parts that have few enough files for one message."""
    left_routes, left_pools = dict(update.routes), dict(update.pools)
    for start in range(SETS, len(update.sets), SETS):
        sets = update.sets[start : start + SETS]
        names = frozenset().union(*sets)
        routes = {key: left_routes.pop(key) for key in update.routes if key in names}
        pools = {name: left_pools.pop(name) for name in update.pools if name in names}
        yield TrustUpdate(routes, pools, sets), fds[start : start + SETS]
    yield TrustUpdate(left_routes, left_pools, update.sets[:SETS]), fds[:SETS]


def apply_trust(generation: Generation, update: TrustUpdate, fds: Sequence[int]) -> None:
    """Judge the peers of this older generation by the update.

    Raises OSError and ValueError.
    """
    sets: dict[tuple[str, str] | str, RevokedSet] = {}
    for names, fd in zip(update.sets, fds, strict=True):
        revoked = RevokedSet(map_bytes(fd))
        sets.update(dict.fromkeys(names, revoked))
    for listener, routes in generation.inbound.items():
        for route in routes:
            key = listener, route.label
            if key in update.routes:
                route.trust, route.revoked = update.routes[key], sets.get(key)
    for name, targets in generation.targets.items():
        for target in targets:
            if name in update.pools:
                target.trust, target.revoked = update.pools[name], sets.get(name)
