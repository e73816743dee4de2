"""What of the configuration cannot work now, and why: routes, pools and backends.

A certificate or a CA file that is not valid now disables the routes or the pool that need it, a host
name that was never found disables its backends. Workers find the same out by themselves, from the
same dates and addresses; here it is told to operators, and looked for the renewal.

Never: disables anything itself.
Next: `relay.worker.intake.step`
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from relay.config.address import is_ip, parse_address
from relay.config.key_path import listener_paths, pool_path
from relay.shared.addresses import cell_of, read_addresses
from relay.shared.scoreboard import SHARED_ROW, Scoreboard
from relay.supervisor.prepared import Prepared
from relay.tls.certificates.validity_periods import ValidityPeriod, ValidityPeriods

EVERY_S = 1.0
TURN_S = 0.005  # what one turn of the supervisor's loop may spend on messages
_RENEW = "renew that file: the relay looks at it every {:g} s and goes on by itself"
_FIND = "see whether the resolver of this machine answers; the relay asks again by itself"

log = logging.getLogger(__name__)


class Thing(NamedTuple):
    """A route (listener and label), a pool, or a backend of a pool."""

    kind: str
    parent: str  # the listener, or the pool; a pool has none
    name: str

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.parent}/{self.name}" if self.parent else f"{self.kind} {self.name}"
        )


class _Watched(NamedTuple):
    """A thing, and when what it needs is valid."""

    thing: Thing
    periods: ValidityPeriods


class Disabled:
    """What is disabled of the generation that serves. `on_change` is called when readers should be told."""

    def __init__(self, on_change: Callable[[], None], recheck_s: float) -> None:
        self._on_change = on_change
        self._recheck_s = recheck_s
        self._prepared: Prepared | None = None
        self._watched: tuple[_Watched, ...] = ()
        self._homeless: dict[str, str] = {}
        self._change_at = 0.0
        self._step_at = 0.0
        self._looked_at = 0.0
        self._untold: deque[tuple[int, str]] = deque()
        self.now: dict[Thing, str] = {}
        """Why each is disabled."""

    def step(self, now: float, now_at: float, prepared: Prepared, scoreboard: Scoreboard) -> None:
        """Once a second, find out what has changed; say it a few lines at a time."""
        self._say()
        if prepared is not self._prepared:
            self._prepared = prepared
            self._watched = tuple(_watched(prepared))
            self._homeless = dict(prepared.homeless)
            self._step_at = self._change_at = 0.0
        if now < self._step_at:
            return
        self._step_at = now + EVERY_S
        # The clock may be set back: so what is disabled is looked at again every time.
        if now_at >= self._change_at or self.now:
            self._look(now_at, prepared, scoreboard)

    def _look(self, now_at: float, prepared: Prepared, scoreboard: Scoreboard) -> None:
        self._looked_at = now_at
        found = {
            each.thing: why for each in self._watched if (why := each.periods.why_invalid(now_at))
        }
        edges = (each.periods.next_change_after(now_at) for each in self._watched)
        self._change_at = min(edges, default=float("inf"))
        shared = scoreboard.row(SHARED_ROW)
        for host in list(self._homeless):
            if read_addresses(shared, cell_of(scoreboard.layout, host)):
                del self._homeless[host]
        found.update(_without_address(prepared, self._homeless))
        if self._homeless:
            self._change_at = 0.0
        before, self.now = self.now, found
        if before != found:
            self._tell(before, prepared)
            self._on_change()

    def _tell(self, before: Mapping[Thing, str], prepared: Prepared) -> None:
        for thing, why in self.now.items():
            # A certificate was renewed, and the route's CA file has expired as well.
            if _place(before.get(thing, "")) != _place(why):
                remedy = _FIND if thing.kind == "backend" else _RENEW.format(self._recheck_s)
                self._untold.append((logging.ERROR, f"{thing} is disabled: {why}; {remedy}"))
        gone = [thing for thing in before if thing not in self.now]
        known = _things_of(prepared) if gone else frozenset()
        for thing in gone:
            if thing in known:
                said = f"{thing} works again: it is disabled no more"
                self._untold.append((logging.INFO, said))
        if self.no_route_left and before.keys() != self.now.keys():
            self._untold.append((logging.ERROR, "every route is disabled: no client is served"))

    @property
    def telling(self) -> bool:
        """There is something to say at once: one file may disable hundreds of routes."""
        return bool(self._untold)

    def _say(self) -> None:
        until = time.monotonic() + TURN_S
        while self._untold and time.monotonic() < until:
            level, said = self._untold.popleft()
            log.log(level, "%s", said)

    @property
    def no_route_left(self) -> bool:
        """Whether every route, or its pool, is disabled."""
        if self._prepared is None:
            return False
        return all(
            Thing("route", listener.name, route.label) in self.now
            or Thing("pool", "", route.pool) in self.now
            for listener in self._prepared.config.listener
            for route in listener.route
        )

    @property
    def awaited(self) -> frozenset[str]:
        """The keys of the configuration that name something that is not valid now, to be looked at again."""
        disabled = [each.periods for each in self._watched if each.thing in self.now]
        at = self._looked_at
        return frozenset(
            period.where
            for periods in disabled
            for period in periods.periods
            if period.why_invalid(at)
        )

    def facts(self) -> list[dict[str, str]]:
        """As JSON types, for the page, the metrics and `relay status`."""
        return [
            {"kind": thing.kind, "parent": thing.parent, "name": thing.name, "why": why}
            for thing, why in self.now.items()
        ]


def _place(why: str) -> str:
    return why.partition(": ")[0]


def _watched(prepared: Prepared) -> Iterator[_Watched]:
    def periods_of(*wheres: str) -> ValidityPeriods:
        found: list[ValidityPeriod] = [
            prepared.periods[each] for each in wheres if each in prepared.periods
        ]
        return ValidityPeriods.of(found)

    config = prepared.config
    places = listener_paths([each.name for each in config.listener])
    for where, listener in zip(places, config.listener, strict=True):
        for index, route in enumerate(listener.route):
            at = f"{where}.route[{index}]"
            thing = Thing("route", listener.name, route.label)
            yield _Watched(thing, periods_of(f"{at}.certificate", f"{at}.client_ca"))
    for name in config.pool:
        at = pool_path(name)
        periods = periods_of(f"{at}.machine_certificate", f"{at}.backend_ca")
        yield _Watched(Thing("pool", "", name), periods)


def _without_address(
    prepared: Prepared, homeless: Mapping[str, str]
) -> Iterator[tuple[Thing, str]]:
    if not homeless:
        return
    for name, pool in prepared.config.pool.items():
        for backend in pool.backend:
            host, _ = parse_address(backend.address)
            if not is_ip(host) and host in homeless:
                why = f"{host} does not resolve: {homeless[host]}"
                yield Thing("backend", name, backend.route), why


def _things_of(prepared: Prepared) -> frozenset[Thing]:
    config = prepared.config
    return frozenset(
        [
            *(
                Thing("route", one.name, route.label)
                for one in config.listener
                for route in one.route
            ),
            *(Thing("pool", "", name) for name in config.pool),
            *(
                Thing("backend", name, backend.route)
                for name, pool in config.pool.items()
                for backend in pool.backend
            ),
        ]
    )
