"""Today's trust, for workers of older generations: plain values, no key, no context.

Their sessions go on after a reload, and are judged by what the serving generation
trusts. A route is found again by its listener and one of its server names, a pool by
its name. If the new configuration no longer has it, its rules stay as they are; its CA
file and its revocation lists count as they are today, if they are still in use.

Never: changes what a new handshake is verified by (old workers accept no clients).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from relay.config.listener_model import Route
from relay.shared.sealed_memory import map_bytes
from relay.tls.generation import BackendTarget, Generation, InboundRoute
from relay.tls.revocation.revoked_set import RevokedSet
from relay.tls.trust import BackendTrust, CaTrust, ClientTrust

SETS = 200  # in one update; see `shared.update_channel.MOST_FILES`
_SET = ""  # stands for a listener, which has a name, before the name of a trust set

RouteKey: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class TrustUpdate:
    """`routes` are by listener and label, `pools` by name.

    The sets of revoked certificates are in files that come with the update, one for
    each of `sets`: the names of the routes and pools that use it, and of the trust set.
    `labels` are by listener and server name. `cas` are by file and trust set.
    """

    routes: Mapping[RouteKey, ClientTrust]
    pools: Mapping[str, BackendTrust]
    sets: tuple[frozenset[RouteKey | str], ...] = ()
    labels: Mapping[RouteKey, str] = field(default_factory=dict)
    pool_names: frozenset[str] = frozenset()
    cas: Mapping[tuple[Path | None, str], CaTrust] = field(default_factory=dict)


def trust_of(generation: Generation) -> tuple[TrustUpdate, list[int]]:
    """What this generation trusts now, and descriptors of the sets that come with it.

    They are valid as long as the generation uses these sets.
    """
    users: dict[RevokedSet, set[RouteKey | str]] = {}
    for name, revoked in generation.revoked.items():
        users.setdefault(revoked, set()).add((_SET, name))
    routes: dict[RouteKey, ClientTrust] = {}
    labels: dict[RouteKey, str] = {}
    pools: dict[str, BackendTrust] = {}
    cas: dict[tuple[Path | None, str], CaTrust] = {}
    for listener in generation.config.listener:
        for route, settings in generation.terminating(listener):
            key = listener.name, route.label
            for name in (route.label, *settings.sni):
                labels.setdefault((listener.name, name), route.label)
            cas.setdefault((route.trust.ca_file, route.trust.lists), route.trust.cas)
            if key not in routes:  # of two with one label, the first one is used
                routes[key] = route.trust
                if route.revoked is not None:
                    users.setdefault(route.revoked, set()).add(key)
    for name, targets in generation.targets.items():
        for target in targets[:1]:
            pools[name] = target.trust
            cas.setdefault((target.trust.ca_file, target.trust.lists), target.trust.cas)
            if target.revoked is not None:
                users.setdefault(target.revoked, set()).add(name)
    shared = {each: names for each, names in users.items() if each.memory is not None}
    sets = tuple(map(frozenset, shared.values()))
    update = TrustUpdate(routes, pools, sets, labels, frozenset(pools), cas)
    return update, [each.memory.fd for each in shared if each.memory is not None]


def parts(update: TrustUpdate, fds: Sequence[int]) -> Iterator[tuple[TrustUpdate, Sequence[int]]]:
    """The same update in parts that have few enough files for one message."""
    left_routes, left_pools = dict(update.routes), dict(update.pools)
    for start in range(SETS, len(update.sets), SETS):
        sets = update.sets[start : start + SETS]
        names = frozenset().union(*sets)
        routes = {key: left_routes.pop(key) for key in update.routes if key in names}
        pools = {name: left_pools.pop(name) for name in update.pools if name in names}
        part = replace(update, routes=routes, pools=pools, sets=sets)
        yield part, fds[start : start + SETS]
    part = replace(update, routes=left_routes, pools=left_pools, sets=update.sets[:SETS])
    yield part, fds[:SETS]


def apply_trust(generation: Generation, update: TrustUpdate, fds: Sequence[int]) -> None:
    """Judge the peers of this older generation by the update.

    Raises OSError and ValueError.
    """
    sets: dict[RouteKey | str, RevokedSet] = {}
    for names, fd in zip(update.sets, fds, strict=True):
        revoked = RevokedSet(map_bytes(fd))
        sets.update(dict.fromkeys(names, revoked))
    for listener in generation.config.listener:
        for route, settings in generation.terminating(listener):
            key = _today(update, (listener.name, route.label), settings)
            if key is None:
                _judge_by_files(route, update, sets)
            elif key in update.routes:
                route.trust, route.revoked = update.routes[key], sets.get(key)
    for name, targets in generation.targets.items():
        for target in targets:
            if name in update.pools:
                target.trust, target.revoked = update.pools[name], sets.get(name)
            elif name not in update.pool_names:
                _judge_by_files(target, update, sets)


def _today(update: TrustUpdate, key: RouteKey, settings: Route) -> RouteKey | None:
    """The key that a route has today. None if no route has one of its names."""
    if key in update.routes:
        return key
    for name in (key[1], *settings.sni):
        if (key[0], name) in update.labels:
            return key[0], update.labels[key[0], name]
    return None


def _judge_by_files(
    place: InboundRoute | BackendTarget,
    update: TrustUpdate,
    sets: Mapping[RouteKey | str, RevokedSet],
) -> None:
    """A route or pool that is gone: its CAs and lists count as they are today.

    They are those that it had last, here or in a later configuration.
    """
    file, lists = place.trust.ca_file, place.trust.lists
    others = (cas for (path, _), cas in update.cas.items() if path == file)
    today = update.cas.get((file, lists)) or next(others, None)
    if today is not None:
        place.trust = replace(place.trust, cas=today)
    place.revoked = sets.get((_SET, lists), place.revoked)
