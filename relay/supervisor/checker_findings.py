"""Clears what a checker has found about backends and names that are not configured now.

Never: runs while a checker does, which writes the same cells.
"""

from __future__ import annotations

from collections.abc import Iterable

from relay.config.model import Config
from relay.shared.addresses import write_addresses, write_failing
from relay.shared.cell_layout import state_offset
from relay.shared.entities import (
    BACKEND,
    BACKEND_NOT_AFTER_S,
    CHECKED_BACKEND,
    HEALTH,
    HEALTH_UNKNOWN,
    HEALTH_VERSION,
    HOST,
    RELAY,
    Key,
    hosts_of,
)
from relay.shared.state_cells import StateCells, bump


def forget_findings(states: StateCells, before: Config, now: Config) -> None:
    """Forget what the new configuration has dropped or changed."""
    kept = _checked_backends(now)
    changed = [
        backend
        for backend, target in _checked_backends(before).items()
        if kept.get(backend) != target
    ]
    _forget(states, changed, [(host,) for host in hosts_of(before).keys() - hosts_of(now).keys()])


def _checked_backends(config: Config) -> dict[tuple[str, str], tuple[str, str | None]]:
    """The backends with health checks: (pool, route) to (address, name)."""
    return {
        (name, backend.route): (backend.address, backend.name)
        for name, pool in config.pool.items()
        if pool.health is not None
        for backend in pool.backend
    }


def _forget(states: StateCells, backends: Iterable[tuple[str, str]], hosts: Iterable[Key]) -> None:
    """Clear what a checker has found, for every generation that shares the cells."""
    found: list[tuple[int, int]] = []
    for backend in backends:
        for kind, name, value in (
            (BACKEND, HEALTH, HEALTH_UNKNOWN),
            (CHECKED_BACKEND, BACKEND_NOT_AFTER_S, 0),
        ):
            base = states.base(kind.name, backend)
            if base is not None:
                found.append((base + state_offset(name)[1], value))
    for cell, value in found:
        states.cells[cell] = value
    version = states.base(RELAY.name, ())
    if found and version is not None:
        bump(states.cells, version + state_offset(HEALTH_VERSION)[1])
    for host in hosts:
        first = states.base(HOST.name, host)
        if first is not None:
            write_addresses(states.cells, first, ())
            write_failing(states.cells, first, failing=False)
