"""Health monitoring of one backend: plans its checks, stores and logs each change.

Never: opens a connection itself (that is `checker.probe`).
Next: `relay.checker.backend_check.BackendCheck`
"""

from __future__ import annotations

import logging
import selectors
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from relay.checker.backend_check import BackendCheck
from relay.checker.check import CheckResult, CheckSettings
from relay.config.pool_model import Health
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
from relay.shared.addresses import Addresses
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
from relay.shared.label_values import CHECK_RESULTS
from relay.shared.scoreboard import Cells, Layout
from relay.shared.state_cells import bump
from relay.tls.generation import Target

_CELL_VALUES = {
    HealthStatus.UNKNOWN: HEALTH_UNKNOWN,
    HealthStatus.UP: HEALTH_UP,
    HealthStatus.DOWN: HEALTH_DOWN,
}
_STATUSES = {value: status for status, value in _CELL_VALUES.items()}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CheckerContext:
    """What all monitors of a checker share. `cells` is the checker's own row.

    `at` calls back at an instant; `chance` is uniform in [0, 1).
    """

    selector: selectors.BaseSelector
    at: Callable[[float, Callable[[], None]], None]
    chance: Callable[[], float]
    on_change: Callable[[], None]
    layout: Layout
    shared: Cells
    cells: Cells


class Monitor:
    """One backend's monitor.

    It starts with the status in the scoreboard, so the status stays when a new checker
    replaces one that died.
    """

    def __init__(
        self,
        context: CheckerContext,
        target: Target,
        health: Health,
        settings: CheckSettings,
        failed_backends: FailedBackends | None = None,
    ) -> None:
        """`failed_backends` is of the backend's whole pool."""
        self.target = target
        self._failed_backends = failed_backends
        self._context = context
        self._settings = settings
        self._rules = HealthRules(health.interval_s, health.rise, health.fall)
        labels = (target.pool, target.route)
        layout = context.layout
        self._addresses = Addresses(
            target.address, (target.family, target.sockaddr), layout, context.shared
        )
        self._cell_health = layout.cell(HEALTH, *labels)
        self._cell_returned = layout.cell(RETURNED_AT_MS, *labels)
        self._cell_not_after = layout.cell(BACKEND_NOT_AFTER_S, *labels)
        self._cell_version = layout.cell(HEALTH_VERSION)
        self._cells_result = {
            result: layout.cell("relay_health_checks_total", *labels, result)
            for result in CHECK_RESULTS
        }
        status = _STATUSES.get(context.shared[self._cell_health], HealthStatus.UNKNOWN)
        self.state = BackendHealth(status, time.monotonic())
        self.result: CheckResult | None = None
        self.inherited: Mapping[str, Any] = {}
        """The previous checker's entry of the backend, until the first check."""
        self._first_endpoint = 0  # the one that passed, or the one after the last that failed
        self._out_of_resources = False
        self._schedule()

    def _schedule(self) -> None:
        now_at, chance = time.monotonic(), self._context.chance()
        self._context.at(next_check_at(self.state, self._rules, now_at, chance), self._begin)

    def _begin(self) -> None:
        endpoints = self._addresses.endpoints()
        if not endpoints:
            # Nothing to check. Running sessions go on, so the health stays as it is.
            self._context.at(time.monotonic() + self._rules.interval_s, self._begin)
            return
        BackendCheck(
            self.target,
            self._settings,
            endpoints,
            self._first_endpoint if self._first_endpoint < len(endpoints) else 0,
            selector=self._context.selector,
            at=self._context.at,
            on_end=self._on_end,
        ).begin()

    def _on_end(self, result: CheckResult) -> None:
        if result.reason == Reason.NO_RESOURCES:
            self._on_shortage(result)
            return
        context = self._context
        self._out_of_resources = False
        context.cells[self._cells_result[result.label]] += 1
        if result.not_after_at:
            context.shared[self._cell_not_after] = int(result.not_after_at)
        if result.ok:
            self._first_endpoint = result.endpoint
            if self._failed_backends is not None:
                self._failed_backends.end_outage()
        else:
            self._first_endpoint = result.endpoint + 1
        self.result = result
        self.inherited = {}
        outcome = CheckOutcome(result.ok, _in_words(result), result.began_at, result.ended_at)
        self.state, change = next_state(self.state, outcome, self._rules)
        if change is not None:
            self._publish(change, result)
        context.on_change()
        self._schedule()

    def _on_shortage(self, result: CheckResult) -> None:
        """Log that the machine lacks resources. The backend's health stays as it is."""
        if not self._out_of_resources:
            log.error(
                "pool %s: backend %s cannot be checked: %s; %s",
                self.target.pool,
                self.target.route,
                _in_words(result),
                result.remedy,
            )
        self._out_of_resources = True
        self._context.at(time.monotonic() + self._rules.interval_s, self._begin)

    def _publish(self, change: StatusChange, result: CheckResult) -> None:
        """Store the change in the scoreboard, for the workers, and log it."""
        shared = self._context.shared
        if change.before is HealthStatus.DOWN:
            shared[self._cell_returned] = int(change.at * 1000)
        shared[self._cell_health] = _CELL_VALUES[change.after]
        bump(shared, self._cell_version)
        pool, backend = self.target.pool, self.target.route
        if change.after is HealthStatus.DOWN:
            log.warning("pool %s: backend %s %s; %s", pool, backend, change, result.remedy)
        else:
            log.info("pool %s: backend %s %s", pool, backend, change)


def _in_words(result: CheckResult) -> str:
    if result.ok:
        return f"{result.detail} at {result.address}"
    return f"{result.reason} at {result.address}" + (f": {result.detail}" if result.detail else "")
