"""What a slot remembers after a worker's death, and how long it waits to start another.

Never: reads a clock; every time is in seconds of one monotonic clock.
"""

from __future__ import annotations

from dataclasses import replace

from relay.core.fleet_view import Phase, Rules, Slot, Worker


def after_death(now: float, slot: Slot, worker: Worker, rules: Rules) -> Slot:
    """The slot after this worker ended without being told to."""
    if worker.phase is not Phase.STARTING:
        return Slot(spawn_at=max(now, worker.started_at + rules.spacing_s))
    if now - worker.started_at >= rules.early_death_s:
        return Slot(spawn_at=now, closed=slot.closed)
    return after_failed_start(now, slot, rules)


def after_failed_start(now: float, slot: Slot, rules: Rules) -> Slot:
    """The slot after a worker that did not serve, or could not be forked."""
    deaths = slot.early_deaths + 1
    delay_s = respawn_delay_s(deaths, rules)
    lone_start_at = now + min(delay_s, rules.lone_delay_s)
    return Slot(deaths, now + delay_s, closed=slot.closed, lone_start_at=lone_start_at)


def after_park(now: float, slot: Slot, rules: Rules) -> Slot:
    """The slot after its sockets were closed, or could not be opened again."""
    return replace(
        slot,
        parked=True,
        closed=True,
        spawn_at=now + rules.park_s,
        lone_start_at=now + rules.lone_delay_s,
    )


def after_reopen(now: float, rules: Rules) -> Slot:
    """The slot after its sockets were opened again: one more early death parks it."""
    return Slot(early_deaths=rules.park_after_deaths - 1, spawn_at=now, closed=True)


def respawn_delay_s(early_deaths: int, rules: Rules) -> float:
    """The wait before the next start: none after one early death, then doubling."""
    if early_deaths <= 1:
        return 0
    return min(rules.first_delay_s * 2.0 ** min(early_deaths - 2, 32), rules.longest_delay_s)
