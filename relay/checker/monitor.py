"""One backend under watch: when it is checked, what is thought of it, and who is told.

Never: opens a connection itself (that is `checker.probe`).
Next: `relay.checker.probe.Probe`
"""

from __future__ import annotations

import logging
import selectors
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from relay.checker.check import CheckResult, CheckSettings
from relay.checker.probe import Probe
from relay.config.model import Health
from relay.core.health import (
    BackendHealth,
    CheckOutcome,
    HealthRules,
    HealthStatus,
    StatusChange,
    next_check_at,
    next_state,
)
from relay.errors import Reason
from relay.remedies import REMEDIES
from relay.shared.addresses import Addresses
from relay.shared.catalogue import CHECK_RESULTS
from relay.shared.entities import (
    BACKEND_NOT_AFTER_S,
    HEALTH,
    HEALTH_DOWN,
    HEALTH_UNKNOWN,
    HEALTH_UP,
    HEALTH_VERSION,
    RETURNED_AT_MS,
)
from relay.shared.failed_backends import FailedBackends
from relay.shared.scoreboard import Cells, Layout
from relay.shared.state_cells import bump
from relay.tls.contexts import BackendTarget

_WORDS = {
    HealthStatus.UNKNOWN: HEALTH_UNKNOWN,
    HealthStatus.UP: HEALTH_UP,
    HealthStatus.DOWN: HEALTH_DOWN,
}
_STATUSES = {number: status for status, number in _WORDS.items()}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Around:
    """What all watches of a checker share. `cells` is the checker's own row."""

    selector: selectors.BaseSelector
    at: Callable[[float, Callable[[], None]], None]
    chance: Callable[[], float]
    on_change: Callable[[], None]
    layout: Layout
    shared: Cells
    cells: Cells


class Monitor:
    """One backend. It goes on from the status in the scoreboard, so a checker that replaces a dead one changes nothing."""

    def __init__(
        self,
        around: Around,
        target: BackendTarget,
        health: Health,
        plan: CheckSettings,
        outage: FailedBackends | None = None,
    ) -> None:
        """`outage` has the failures of the backend's whole pool."""
        self.target = target
        self._outage = outage
        self._around = around
        self._plan = plan
        self._rules = HealthRules(health.interval_s, health.rise, health.fall)
        labels = (target.pool, target.route)
        layout = around.layout
        self._addresses = Addresses(
            target.address, (target.family, target.sockaddr), layout, around.shared
        )
        self._cell_health = layout.cell(HEALTH, *labels)
        self._cell_returned = layout.cell(RETURNED_AT_MS, *labels)
        self._cell_not_after = layout.cell(BACKEND_NOT_AFTER_S, *labels)
        self._cell_version = layout.cell(HEALTH_VERSION)
        self._cells_result = {
            result: layout.cell("relay_health_checks_total", *labels, result)
            for result in CHECK_RESULTS
        }
        self.state = BackendHealth(
            _STATUSES.get(around.shared[self._cell_health], HealthStatus.UNKNOWN), time.monotonic()
        )
        self.result: CheckResult | None = None
        self.inherited: dict[str, Any] = {}
        """What the checker before this one has written about the backend, until there is news."""
        self._good_place = 0
        self._out_of_resources = False
        around.at(
            next_check_at(self.state, self._rules, time.monotonic(), around.chance()), self._begin
        )

    def _begin(self) -> None:
        places = self._addresses.endpoints()
        if not places:
            self._on_end(self._without_address())
            return
        first = self._good_place if self._good_place < len(places) else 0
        Probe(
            self.target,
            self._plan,
            places,
            first,
            selector=self._around.selector,
            at=self._around.at,
            on_end=self._on_end,
        ).begin()

    def _without_address(self) -> CheckResult:
        now = time.monotonic()
        reason = Reason.BACKEND_UNRESOLVED
        what = "its host name has no address"
        address = self.target.address
        return CheckResult(
            "connect_failed", reason, what, REMEDIES[reason], now, now, address=address
        )

    def _on_end(self, result: CheckResult) -> None:
        around = self._around
        check = CheckOutcome(result.ok, _in_words(result), result.began_at, result.ended_at)
        if result.word == Reason.NO_RESOURCES:
            # Not the backend's fault, and nothing is known.
            if not self._out_of_resources:
                log.error(
                    "pool %s: backend %s cannot be checked: %s; %s",
                    self.target.pool,
                    self.target.route,
                    check.detail,
                    result.remedy,
                )
            self._out_of_resources = True
            around.at(time.monotonic() + self._rules.interval_s, self._begin)
            return
        self._out_of_resources = False
        around.cells[self._cells_result[result.label]] += 1
        if result.not_after_at:
            around.shared[self._cell_not_after] = int(result.not_after_at)
        if result.ok:
            self._good_place = result.place
            if self._outage is not None:
                self._outage.end_outage()
        self.result = result
        self.inherited = {}
        self.state, change = next_state(self.state, check, self._rules)
        if change is not None:
            self._tell(change, result)
        around.on_change()
        around.at(
            next_check_at(self.state, self._rules, time.monotonic(), around.chance()), self._begin
        )

    def _tell(self, change: StatusChange, result: CheckResult) -> None:
        shared = self._around.shared
        if change.before is HealthStatus.DOWN:
            shared[self._cell_returned] = int(change.at * 1000)
        shared[self._cell_health] = _WORDS[change.after]
        bump(shared, self._cell_version)
        if change.after is HealthStatus.DOWN:
            log.warning(
                "pool %s: backend %s %s; %s",
                self.target.pool,
                self.target.route,
                change,
                result.remedy,
            )
        else:
            log.info("pool %s: backend %s %s", self.target.pool, self.target.route, change)


def _in_words(result: CheckResult) -> str:
    if result.ok:
        return f"{result.detail} at {result.address}"
    return f"{result.word} at {result.address}" + (f": {result.detail}" if result.detail else "")
