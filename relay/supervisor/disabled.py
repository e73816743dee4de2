"""Which routes, pools and backends are disabled now, and why: for operators.

A certificate or CA file that is not valid now disables the routes or the pool that need
it. A host name that has never resolved disables its backends. Workers decide the same
by themselves, from the same dates and addresses. This module reports it, and names the
files whose renewal is awaited.

Never: disables anything itself.
Next: `relay.worker.intake.step`
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

from relay.config.backend_address import lookup_name
from relay.config.key_path import pool_path, routes_of
from relay.shared.addresses import cell_of, is_gone, read_addresses
from relay.shared.entities import HEALTH_VERSION, hosts_of
from relay.shared.messages import DisabledFact
from relay.shared.scoreboard import SHARED_ROW, Scoreboard
from relay.supervisor.prepared import Prepared
from relay.tls.certificates.validity_periods import ValidityPeriod, ValidityPeriods

EVERY_S = 1.0
TURN_S = 0.005  # what one turn of the supervisor's loop may spend on messages
_RENEW = "renew that file; the relay notices it and recovers by itself"
_RESOLVE = "check that this machine's name resolution works; the relay asks again by itself"

log = logging.getLogger(__name__)


class Component(NamedTuple):
    """A route (listener and label), a pool, or a backend of a pool."""

    kind: Literal["route", "pool", "backend"]
    parent: str  # the listener or the pool; "" for a pool
    name: str

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.parent}/{self.name}" if self.parent else f"{self.kind} {self.name}"
        )


class _Watched(NamedTuple):
    """A component, and when the files that it needs are valid."""

    component: Component
    periods: ValidityPeriods


class Disabled:
    """What is disabled of the serving generation; calls `on_change` when it changes."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._prepared: Prepared | None = None
        self._watched: tuple[_Watched, ...] = ()
        self._unresolved: dict[str, str] = {}
        self._names: tuple[str, ...] = ()
        self._version = 0
        self._change_at = 0.0
        self._check_at = 0.0
        self._checked_at = 0.0
        self._messages: deque[tuple[int, str]] = deque()
        self.reasons: dict[Component, str] = {}
        """Why each component is disabled."""

    def step(self, now: float, now_at: float, prepared: Prepared, scoreboard: Scoreboard) -> None:
        """Check once a second what has changed; log it, a few lines a turn."""
        self._write_messages()
        if prepared is not self._prepared:
            self._prepared = prepared
            self._watched = tuple(_watched(prepared))
            self._unresolved = dict(prepared.unresolved)
            self._names = tuple(hosts_of(prepared.config))
            self._check_at = self._change_at = 0.0
        if now < self._check_at:
            return
        self._check_at = now + EVERY_S
        # The checker has bumped it if a name has lost its addresses.
        version = scoreboard.row(SHARED_ROW)[scoreboard.layout.cell(HEALTH_VERSION)]
        changed, self._version = version != self._version, version
        # The clock may have been set back, so disabled components are checked every
        # second.
        if now_at >= self._change_at or self.reasons or changed:
            self._check(now_at, prepared, scoreboard)

    def _check(self, now_at: float, prepared: Prepared, scoreboard: Scoreboard) -> None:
        self._checked_at = now_at
        found = {
            each.component: why
            for each in self._watched
            if (why := each.periods.why_invalid(now_at))
        }
        changes = (each.periods.next_change_after(now_at) for each in self._watched)
        self._change_at = min(changes, default=float("inf"))
        shared = scoreboard.row(SHARED_ROW)
        for name in list(self._unresolved):
            if read_addresses(shared, cell_of(scoreboard.layout, name)):
                del self._unresolved[name]
        without = {
            name: f"{name} does not resolve: {why}" for name, why in self._unresolved.items()
        }
        for name in self._names:
            if is_gone(shared, cell_of(scoreboard.layout, name)):
                without[name] = f"{name} has no address any more"
        found.update(_without_address(prepared, without))
        if self._unresolved:
            self._change_at = 0.0
        before, self.reasons = self.reasons, found
        if before != found:
            self._queue_messages(before, prepared)
            self._on_change()

    def _queue_messages(self, before: Mapping[Component, str], prepared: Prepared) -> None:
        for component, why in self.reasons.items():
            # Log it again if another file is the cause: one was renewed, but a second
            # one has expired too.
            if _subject(before.get(component, "")) != _subject(why):
                backend = component.kind == "backend"
                remedy = _RESOLVE if backend else _RENEW
                self._messages.append((logging.ERROR, f"{component} is disabled: {why}; {remedy}"))
        gone = [component for component in before if component not in self.reasons]
        known = _components_of(prepared) if gone else frozenset()
        for component in gone:
            if component in known:
                message = f"{component} is no longer disabled"
                self._messages.append((logging.INFO, message))
        if self.why_no_route_is_left and before.keys() != self.reasons.keys():
            message = "every route is disabled: no client is served"
            self._messages.append((logging.ERROR, message))

    @property
    def has_messages(self) -> bool:
        """Whether messages wait. One expired file may disable hundreds of routes."""
        return bool(self._messages)

    def _write_messages(self) -> None:
        until = time.monotonic() + TURN_S
        while self._messages and time.monotonic() < until:
            level, message = self._messages.popleft()
            log.log(level, "%s", message)

    @property
    def why_no_route_is_left(self) -> str:
        """Why the first route, or its pool, is disabled; "" if any of them works."""
        if self._prepared is None:
            return ""
        reasons = [
            self.reasons.get(Component("route", listener.name, route.label))
            or self.reasons.get(Component("pool", "", route.pool), "")
            for listener in self._prepared.config.listener
            for route in listener.route
        ]
        return reasons[0] if all(reasons) else ""

    @property
    def awaited(self) -> frozenset[str]:
        """The key paths of files that are not valid now, whose renewal is awaited."""
        disabled = [each.periods for each in self._watched if each.component in self.reasons]
        at = self._checked_at
        return frozenset(
            period.where
            for periods in disabled
            for period in periods.periods
            if period.why_invalid(at)
        )

    def facts(self) -> list[DisabledFact]:
        """As JSON types, for the admin page, the metrics and `relay status`."""
        return [
            {"kind": each.kind, "parent": each.parent, "name": each.name, "why": why}
            for each, why in self.reasons.items()
        ]


def _subject(why: str) -> str:
    """The file that a message is about."""
    return why.partition(": ")[0]


def _watched(prepared: Prepared) -> Iterator[_Watched]:
    def periods_of(*wheres: str) -> ValidityPeriods:
        found: list[ValidityPeriod] = [
            prepared.periods[each] for each in wheres if each in prepared.periods
        ]
        return ValidityPeriods.of(found)

    config = prepared.config
    for at, listener, route in routes_of(config):
        component = Component("route", listener.name, route.label)
        yield _Watched(component, periods_of(f"{at}.certificate", f"{at}.client_ca"))
    for name in config.pool:
        at = pool_path(name)
        periods = periods_of(f"{at}.machine_certificate", f"{at}.backend_ca")
        yield _Watched(Component("pool", "", name), periods)


def _without_address(
    prepared: Prepared, without: Mapping[str, str]
) -> Iterator[tuple[Component, str]]:
    if not without:
        return
    for name, pool in prepared.config.pool.items():
        for backend in pool.backend:
            looked_up = lookup_name(backend.address)
            if looked_up in without:
                yield Component("backend", name, backend.route), without[looked_up]


def _components_of(prepared: Prepared) -> frozenset[Component]:
    config = prepared.config
    return frozenset(
        [
            *(
                Component("route", one.name, route.label)
                for one in config.listener
                for route in one.route
            ),
            *(Component("pool", "", name) for name in config.pool),
            *(
                Component("backend", name, backend.route)
                for name, pool in config.pool.items()
                for backend in pool.backend
            ),
        ]
    )
