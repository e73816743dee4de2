"""The endpoints of a backend that is a service: by priority and weight (RFC 2782).

The endpoints with the lowest priority number are used, each for its share of the
connections. Those with higher numbers are used while all of these have failed within
`retry_s`.

Never: looks a name up (that is `checker.resolver`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from math import inf

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


class ServiceRotation(AddressRotation):
    """The endpoints of one service in one worker; `chance` is uniform in [0, 1).

    `_usable` are the endpoints to draw from, with the running sum of their shares. They
    hold until `_replan_at`, and until an endpoint fails or the service changes.
    """

    __slots__ = ("_chance", "_of", "_replan_at", "_running", "_usable")

    def __init__(self, addresses: Addresses, retry_s: float, chance: Callable[[], float]) -> None:
        super().__init__(addresses, retry_s)
        self._chance = chance
        self._of: tuple[Located, ...] = ()
        self._usable: list[Endpoint] = []
        self._running: list[float] = []
        self._replan_at = 0.0

    def pick(self, now: float) -> Endpoint | None:
        """An endpoint of the first priority that has one that is not marked failed.

        If all are, the next one, so that a session can try each of them.
        """
        self._addresses.endpoints()
        if self._addresses.located is not self._of or now >= self._replan_at:
            self._plan(now)
        if self._usable:
            return self._usable[draw(self._running, self._chance())]
        return super().pick(now)

    def failed(self, endpoint: Endpoint, now: float) -> bool:
        """Mark the endpoint failed for retry_s. True if it was not marked already."""
        self._replan_at = 0.0
        return super().failed(endpoint, now)

    def _plan(self, now: float) -> None:
        """Find the endpoints of the first priority that has one to use."""
        failed = {each: at for each, at in self._failed_until_at.items() if at > now}
        self._failed_until_at = failed
        self._replan_at = min(failed.values(), default=inf)
        self._of = located = self._addresses.located
        members = [(each.endpoint(), each) for each in located]
        working = [(endpoint, each) for endpoint, each in members if endpoint not in failed]
        lowest = min((each.priority for _, each in working), default=0)
        chosen = [(endpoint, each) for endpoint, each in working if each.priority == lowest]
        self._usable = [endpoint for endpoint, _ in chosen]
        self._running = shares([(each.weight, each.siblings) for _, each in chosen])
