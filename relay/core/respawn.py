"""What a slot remembers after a worker's death, and how long it waits for the next start.

Never: looks at a clock; every instant is a second of one monotonic clock.
"""

from __future__ import annotations

from dataclasses import replace

from relay.core.fleet_plan import Phase, Rules, Slot, Worker


def after_death(now: float, slot: Slot, worker: Worker, rules: Rules) -> Slot:
    """The slot's memory after this worker ended unasked."""
    if worker.phase is not Phase.STARTING:
        return Slot(spawn_at=max(now, worker.started_at + rules.spacing_s))
    if now - worker.started_at >= rules.early_death_s:
        return Slot(spawn_at=now, closed=slot.closed)
    return after_failed_start(now, slot, rules)


def after_failed_start(now: float, slot: Slot, rules: Rules) -> Slot:
    """The slot's memory after a worker that did not serve, or could not even be forked."""
    deaths = slot.early_deaths + 1
    delay_s = respawn_delay_s(deaths, rules)
    alone_at = now + min(delay_s, rules.lone_delay_s)
    return Slot(deaths, now + delay_s, closed=slot.closed, alone_at=alone_at)


def after_park(now: float, slot: Slot, rules: Rules) -> Slot:
    """The slot's memory once its sockets are closed, or could not be opened again."""
    alone_at = now + rules.lone_delay_s
    return replace(slot, parked=True, closed=True, spawn_at=now + rules.park_s, alone_at=alone_at)


def after_reopen(now: float, rules: Rules) -> Slot:
    """The slot's memory once it has sockets again: one more early death parks it again."""
    return Slot(early_deaths=rules.park_after_deaths - 1, spawn_at=now, closed=True)


def respawn_delay_s(early_deaths: int, rules: Rules) -> float:
    """The wait before the next start: nothing after the first early death, then doubling."""
    if early_deaths <= 1:
        return 0
    return min(rules.first_delay_s * 2.0 ** min(early_deaths - 2, 32), rules.longest_delay_s)
