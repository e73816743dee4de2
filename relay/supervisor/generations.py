"""The serving generation, and the one that a reload starts beside it.

Never: changes what the serving generation uses before the next one replaces it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from relay.core.fleet_view import CANARY_SLOT, Target
from relay.supervisor.closing_sockets import ClosingSockets
from relay.supervisor.prepared import Prepared
from relay.supervisor.slot_sockets import SlotSockets


@dataclass(slots=True)
class NextGeneration:
    """A generation until it takes over or is given up.

    `closing` are the sockets of the serving generation that it does not share.
    `deaths` counts its workers that died or could not be forked. `canary`: only one
    slot has a worker of it. `is_tried`: this worker serves, and its end is awaited.
    `withdrawn`: why it is given up, if it is.
    """

    prepared: Prepared
    sockets: SlotSockets = field(repr=False)
    closing: ClosingSockets = field(repr=False)
    since_at: float
    deaths: int = 0
    canary: bool = False
    is_tried: bool = False
    withdrawn: str = ""

    @property
    def number(self) -> int:
        """Its number."""
        return self.prepared.generation.number

    @property
    def target(self) -> Target:
        """It as `relay.core.fleet_plan.plan` sees it."""
        return Target(
            self.number,
            self.prepared.slots,
            self.since_at,
            self.deaths,
            self.canary,
            self.withdrawn,
        )

    def promote(self, now: float) -> None:
        """It is a canary no more: all its slots get workers."""
        self.canary = self.is_tried = False
        self.since_at = now


class Generations:
    """Which generation serves, which one starts, and the listening sockets of both."""

    def __init__(self, prepared: Prepared, sockets: SlotSockets) -> None:
        self.serving = prepared
        self.sockets = sockets
        self.next: NextGeneration | None = None
        sockets.set_options()  # they may come from systemd, or from another version
        # Of the version before an upgrade, until the serving generation serves: the
        # generation that accepts, and the sockets that only that one has.
        self.kept: frozenset[int] = frozenset()
        self._leaving: tuple[SlotSockets, ClosingSockets] | None = None
        self.last_number = prepared.generation.number

    @property
    def number(self) -> int:
        """The number of the serving generation."""
        return self.serving.generation.number

    @property
    def next_number(self) -> int:
        """The number for the next generation.

        Numbers are not used twice: a generation that was given up may still have
        workers that drain.
        """
        return self.last_number + 1

    @property
    def wanted_numbers(self) -> set[int]:
        """The numbers of the generations whose workers are not told to drain."""
        return {self.number} | ({self.next.number} if self.next is not None else set())

    def keep(self, number: int, sockets: SlotSockets) -> None:
        """The version before an upgrade accepts on these sockets."""
        self.kept = frozenset({number})
        self._leaving = sockets, ClosingSockets(sockets.all() - self.sockets.all())

    def release_kept(self, now: float) -> None:
        """The serving generation serves: the version before is not needed any more."""
        if self._leaving is None:
            return
        sockets, closing = self._leaving
        if closing.ready_to_close(now):
            sockets.remove_names(self.sockets)
            sockets.close_all_but(self.sockets)
            self.kept, self._leaving = frozenset(), None

    def start_next(self, prepared: Prepared, now: float, *, canary: bool = False) -> None:
        """Open the sockets that another generation needs, and make it the next one.

        Raises StartupError; then nothing has changed.
        """
        only_slot = CANARY_SLOT if canary else None
        sockets = self.sockets.extend(prepared.config, prepared.slots, only_slot=only_slot)
        closing = ClosingSockets(self.sockets.all() - sockets.all())
        self.next = NextGeneration(prepared, sockets, closing, now, canary=canary)
        self.last_number = prepared.generation.number

    def may_commit(self, now: float) -> bool:
        """Whether the sockets that the next generation does not share are empty."""
        return self.next is not None and self.next.closing.ready_to_close(now)

    def commit(self) -> None:
        """The next generation becomes the serving one."""
        assert self.next is not None  # noqa: S101  for mypy
        following, self.next = self.next, None
        # The supervisor's copies are closed first. The old workers then empty the
        # queues of theirs when they are told to drain.
        self.sockets.remove_names(following.sockets)
        self.sockets.close_all_but(following.sockets)
        self.serving, self.sockets = following.prepared, following.sockets
        self.sockets.set_options()

    def give_up(self) -> None:
        """Drop the next generation, and close the sockets that only it has."""
        assert self.next is not None  # noqa: S101  for mypy
        self.next.sockets.remove_names(self.sockets)
        self.next.sockets.close_all_but(self.sockets)
        self.next = None

    def all_sockets(self) -> list[SlotSockets]:
        """The sockets of both."""
        found = [self.sockets] + ([self.next.sockets] if self.next is not None else [])
        return found + ([self._leaving[0]] if self._leaving is not None else [])

    def remove_names(self) -> None:
        """Remove the files of unix sockets: no client comes any more."""
        for sockets in self.all_sockets():
            sockets.remove_names()

    def close_files(self) -> None:
        """Close all sockets: at the end, and in a child that does not accept."""
        for sockets in self.all_sockets():
            sockets.close_all_but()
