"""What the supervisor remembers of each slot: early deaths, and its next start.

Never: starts a worker, or opens or closes a socket.
"""

from __future__ import annotations

from dataclasses import replace

from relay.core.fleet_view import Rules, Slot, Worker
from relay.core.respawn import after_death, after_failed_start, after_park, after_reopen
from relay.shared.replies import SlotStatus


class SlotMemory:
    """One `Slot` per slot. It only grows: a later reload may bring a slot back."""

    def __init__(self, count: int, rules: Rules) -> None:
        self._rules = rules
        self._slots = [Slot()] * count

    def __getitem__(self, slot: int) -> Slot:
        """What is remembered of one slot."""
        return self._slots[slot]

    def all(self) -> tuple[Slot, ...]:
        """What is remembered of every slot, by number."""
        return tuple(self._slots)

    def forget(self, count: int) -> None:
        """No slot waits any more: a new configuration may have removed the cause."""
        self._slots = [Slot()] * max(len(self._slots), count)

    def died(self, now: float, slot: int, worker: Worker) -> str:
        """A worker ended without being asked. Returns in words when the next starts."""
        memory = self._slots[slot] = after_death(now, self._slots[slot], worker, self._rules)
        waits = bool(memory.early_deaths) and memory.spawn_at > now
        return self._when(now, slot) + ("; until then its sockets are closed" if waits else "")

    def failed(self, now: float, slot: int) -> str:
        """A worker could not be forked. Returns in words when the next try is."""
        self._slots[slot] = after_failed_start(now, self._slots[slot], self._rules)
        return self._when(now, slot)

    def close(self, slot: int) -> None:
        """The slot takes no clients until a worker serves."""
        self._slots[slot] = replace(self._slots[slot], closed=True)

    def served(self, slot: int) -> None:
        """A worker serves."""
        if self._slots[slot].closed:
            self._slots[slot] = replace(self._slots[slot], closed=False)

    def park(self, now: float, slot: int) -> None:
        """The slot's sockets are closed for `Rules.park_s`."""
        self._slots[slot] = after_park(now, self._slots[slot], self._rules)

    def reopen(self, now: float, slot: int) -> None:
        """The slot has sockets again."""
        self._slots[slot] = after_reopen(now, self._rules)

    def failing(self, deaths: int) -> int | None:
        """The first slot with at least `deaths` early deaths, or None."""
        found = [slot for slot, memory in enumerate(self._slots) if memory.early_deaths >= deaths]
        return found[0] if found else None

    def status(self, now: float, count: int) -> list[SlotStatus]:
        """The slots for `relay status`."""
        return [
            {
                "slot": number,
                "parked": slot.parked,
                "early_deaths": slot.early_deaths,
                "next_start_in_s": round(max(0.0, slot.spawn_at - now), 1),
            }
            for number, slot in enumerate(self._slots[:count])
        ]

    def _when(self, now: float, slot: int) -> str:
        wait_s = self._slots[slot].spawn_at - now
        return f"in {round(wait_s, 3):g} s" if wait_s > 0 else "at once"
