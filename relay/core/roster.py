"""Who of a pool may be picked: the members as configured, what operators have changed about them, and who is full.

An operator's word for a member (`Mode`) says which clients it gets:

    ENABLED    all
    DRAIN      only those that a cookie sends there: its sessions finish, and it gets no new ones
    DISABLED   none
    STANDBY    those that a cookie sends there, and all while no enabled member is left

Never: knows addresses, sockets or the time; whether a member works is the caller's judgement (`usable`), and so is how busy it is (`counts`).
Next: `relay.core.balance.Balancer.pick`
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf

Usable = Callable[[int], bool]
"""Whether a member, by its index, is neither down nor left alone after a failure."""
Counts = Callable[[int], int]
"""How many connections a member has now, over all workers."""

# A member that came back this moment has this part of its weight: not nothing, or it would stay at nothing in a pool of its like.
SLOW_START_FLOOR = 0.01


@dataclass(frozen=True, slots=True)
class Candidate:
    """One backend as configured: a name that does not change when its place in the list does, and a weight of 1 or more."""

    name: str
    weight: int = 1
    standby: bool = False
    max_connections: int = 0
    """Over all workers; 0 is no limit."""


class Mode(StrEnum):
    """Which clients a member gets; see above."""

    ENABLED = "enabled"
    DRAIN = "drain"
    DISABLED = "disabled"
    STANDBY = "standby"


@dataclass(frozen=True, slots=True)
class Status:
    """What has changed about a member since the configuration was read; `Status()` is nothing."""

    mode: Mode | None = None
    """None: as configured, that is ENABLED or STANDBY."""
    weight: int | None = None
    """None: as configured. For no weight at all there is DRAIN."""
    returned_at: float | None = None
    """When it was last found working after it was not: its slow start begins here. None: it always was."""


class Roster:
    """The members of a pool with their statuses; immutable, so a change makes a new one."""

    __slots__ = (
        "_counts",
        "_slow_start_s",
        "enabled",
        "limited",
        "members",
        "modes",
        "returned_at",
        "slow_until_at",
        "standby",
        "weights",
    )

    def __init__(
        self,
        members: Sequence[Candidate],
        statuses: Sequence[Status] = (),
        *,
        counts: Counts | None = None,
        slow_start_s: float = 0.0,
    ) -> None:
        """`statuses` are in the order of the members, or none. Raises ValueError for a weight below 1, and for limits without `counts`."""
        statuses = statuses or (Status(),) * len(members)
        self.members = tuple(members)
        self.modes = tuple(
            status.mode or (Mode.STANDBY if member.standby else Mode.ENABLED)
            for member, status in zip(members, statuses, strict=True)
        )
        self.weights = tuple(
            member.weight if status.weight is None else status.weight
            for member, status in zip(members, statuses, strict=True)
        )
        if min(self.weights, default=1) < 1:
            raise ValueError("a member's weight is below 1; drain the member instead")
        self.enabled = tuple(i for i, mode in enumerate(self.modes) if mode is Mode.ENABLED)
        self.standby = tuple(i for i, mode in enumerate(self.modes) if mode is Mode.STANDBY)
        self.limited = any(member.max_connections for member in members)
        """Whether a member may be full."""
        if self.limited and counts is None:
            raise ValueError("max_connections needs the members' counts")
        self._counts = counts
        self._slow_start_s = slow_start_s
        self.returned_at = tuple(
            -inf if status.returned_at is None else status.returned_at for status in statuses
        )
        self.slow_until_at = (
            max(self.returned_at, default=-inf) + slow_start_s if slow_start_s > 0 else -inf
        )
        """From this instant on `weights` are the weights; before it ask `weights_at`."""

    def weights_at(self, now_at: float) -> Sequence[float]:
        """The members' weights: that of one that came back grows in a straight line over `slow_start_s`."""
        if now_at >= self.slow_until_at:
            return self.weights
        span = self._slow_start_s
        return [
            weight * min(1.0, max(SLOW_START_FLOOR, (now_at - at) / span))
            for weight, at in zip(self.weights, self.returned_at, strict=True)
        ]

    def full(self, member: int) -> bool:
        """Whether a member has all the connections it may have."""
        limit = self.members[member].max_connections
        return limit > 0 and self._counts is not None and self._counts(member) >= limit

    def admits(self, member: int, tried: Container[int], usable: Usable) -> bool:
        """Whether a client that a cookie sends to this member may go there."""
        return (
            self.modes[member] is not Mode.DISABLED
            and member not in tried
            and usable(member)
            and not self.full(member)
        )

    def candidates(self, tried: Container[int], usable: Usable) -> list[int]:
        """Those that may be picked for a client without a cookie: the best of these groups that has anyone who is not tried and not full.

        Enabled and usable; standby and usable; enabled; standby. The last two because a pool that lost its last backend a second
        ago should rather try than refuse. None is left when all are tried, full, draining or disabled.
        """
        enabled = [i for i in self.enabled if i not in tried]
        standby = [i for i in self.standby if i not in tried]
        if self.limited:
            enabled = [i for i in enabled if not self.full(i)]
            standby = [i for i in standby if not self.full(i)]
        return (
            [i for i in enabled if usable(i)]
            or [i for i in standby if usable(i)]
            or enabled
            or standby
        )
