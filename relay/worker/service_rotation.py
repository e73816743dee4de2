"""The endpoints of a backend that is a service: by priority and weight (RFC 2782).

The endpoints with the lowest priority number are used, each for its share of the
connections. Those with higher numbers are used while all of these have failed within
`retry_s`.

Never: looks a name up (that is `checker.resolver`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import groupby
from typing import NamedTuple

from relay.config.backend_address import is_service
from relay.core.srv import draw, shares
from relay.shared.addresses import Addresses, Endpoint, Located
from relay.shared.scoreboard import Cells, Layout
from relay.tls.generation import Target
from relay.worker.address_rotation import AddressRotation


def rotation_of(
    target: Target, layout: Layout, shared: Cells, retry_s: float
) -> AddressRotation | None:
    """The rotation of a backend's addresses; None if its address is fixed."""
    configured = (target.family, target.sockaddr)
    addresses = Addresses(target.address, configured, layout, shared)
    if is_service(target.address):
        return ServiceRotation(addresses, retry_s, random.random)
    return AddressRotation(addresses, retry_s) if addresses.may_change else None


class _Group(NamedTuple):
    """The endpoints of one priority, and the running sum of their shares."""

    endpoints: list[Endpoint]
    weights: list[tuple[int, int]]
    running: list[float]


class ServiceRotation(AddressRotation):
    """The endpoints of one service in one worker; `chance` is uniform in [0, 1)."""

    __slots__ = ("_chance", "_groups", "_of")

    def __init__(self, addresses: Addresses, retry_s: float, chance: Callable[[], float]) -> None:
        super().__init__(addresses, retry_s)
        self._chance = chance
        self._of: tuple[Located, ...] | None = None
        self._groups: list[_Group] = []

    def pick(self, now: float) -> Endpoint | None:
        """An endpoint of the first group that has one that is not marked failed.

        If all are, the next one, so that a session can try each of them.
        """
        self._addresses.endpoints()
        located = self._addresses.located
        if located is not self._of:
            self._of, self._groups = located, _groups_of(located)
        failed = self._failed_until_at
        if not failed and self._groups:
            first = self._groups[0]
            return first.endpoints[draw(first.running, self._chance())]
        for group in self._groups:
            usable = [i for i, each in enumerate(group.endpoints) if failed.get(each, 0.0) <= now]
            if usable:
                running = shares([group.weights[i] for i in usable])
                return group.endpoints[usable[draw(running, self._chance())]]
        return super().pick(now)


def _groups_of(located: tuple[Located, ...]) -> list[_Group]:
    by_priority = groupby(sorted(located, key=_priority), _priority)
    groups = []
    for _, several in by_priority:
        members = list(several)
        weights = [(each.weight, each.siblings) for each in members]
        groups.append(_Group([each.endpoint() for each in members], weights, shares(weights)))
    return groups


def _priority(one: Located) -> int:
    return one.priority
