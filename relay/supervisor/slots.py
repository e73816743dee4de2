"""Closes, parks and reopens slots: their sockets, and what is remembered of them.

Never: decides when (`relay.core.fleet_plan.plan` does).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from relay.core.fleet_view import Rules
from relay.errors import StartupError
from relay.shared.replies import SlotStatus
from relay.supervisor.generations import Generations
from relay.supervisor.slot_memory import SlotMemory

log = logging.getLogger(__name__)


class Slots:
    """The slots of the serving generation."""

    def __init__(self, generations: Generations, rules: Rules) -> None:
        self.memory = SlotMemory(generations.serving.slots, rules)
        self._generations = generations
        self._rules = rules

    def close(self, slot: int) -> None:
        """Stop the slot from getting clients until its next worker serves."""
        self._generations.sockets.park(slot)
        self.memory.close(slot)

    def park(self, now: float, slot: int, deaths: int) -> None:
        """Stop the slot from getting clients for `Rules.park_s`."""
        log.error(
            "slot %d is parked after %d early deaths of its workers: its sockets are closed,"
            " and the other workers take its clients; it is tried again in %g s, earlier when"
            " no slot is served, or after a reload",
            slot,
            deaths,
            self._rules.park_s,
        )
        self._generations.sockets.park(slot)
        self.memory.park(now, slot)

    def reopen(self, now: float, slot: int) -> None:
        """Try a parked slot again; it stays parked if it cannot have sockets."""
        try:
            self._generations.sockets.reopen(slot)
        except StartupError as error:
            log.error("slot %d stays parked: %s", slot, error)
            self.memory.park(now, slot)
        else:
            log.info("slot %d is tried again", slot)
            self.memory.reopen(now, slot)

    def prepare_start(self, slot: int) -> None:
        """Before a worker starts: bind the sockets of a closed slot.

        Raises StartupError.
        """
        if self.memory[slot].closed:
            self._generations.sockets.reopen(slot)

    def reopen_all(self, now: float) -> None:
        """Before a reload: no slot stays closed or parked. Raises StartupError."""
        for slot in range(self._generations.serving.slots):
            self.prepare_start(slot)
            if self.memory[slot].parked:
                self.memory.reopen(now, slot)

    def served(self, slots: Iterable[int]) -> None:
        """Workers serve these slots."""
        for slot in slots:
            self._generations.sockets.listen(slot)
            self.memory.served(slot)

    def status(self, now: float) -> list[SlotStatus]:
        """The slots for `relay status`."""
        return self.memory.status(now, self._generations.serving.slots)
