"""Which backends of a pool may be picked: as configured, changed by operators, or full.

The mode of a backend says which clients it gets:

    ENABLED    all
    DRAIN      only those that a cookie sends there: running sessions finish, new
               clients go elsewhere
    DISABLED   none
    STANDBY    those that a cookie sends there, and all others while no enabled backend
               is left

Never: knows addresses, sockets or the time. The caller says whether a backend works
(`usable`) and how many connections it has (`counts`).
Next: `relay.core.balance.Balancer.pick`
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf

Usable = Callable[[int], bool]
"""Whether a backend, given by its index, is neither down nor marked failed."""
Counts = Callable[[int], int]
"""How many connections a backend, given by its index, has over all workers."""

# The fraction of its weight that a backend has when its slow start begins. With 0, the
# weights of a pool would all be 0 if all its backends come back at the same moment.
SLOW_START_FLOOR = 0.01


@dataclass(frozen=True, slots=True)
class Candidate:
    """One backend as configured."""

    name: str
    """Its `route`. Hashes use it, so that the order in the file does not matter."""
    weight: int = 1
    """1 or more."""
    standby: bool = False
    max_connections: int = 0
    """Over all workers; 0 is no limit."""


class Mode(StrEnum):
    """Which clients a backend gets; see the top of this file."""

    ENABLED = "enabled"
    DRAIN = "drain"
    DISABLED = "disabled"
    STANDBY = "standby"


@dataclass(frozen=True, slots=True)
class CandidateStatus:
    """How a backend differs from its configuration; by default it does not."""

    mode: Mode | None = None
    """None: as configured, that is ENABLED or STANDBY."""
    weight: int | None = None
    """None: as configured. Never 0: use DRAIN for that."""
    returned_at: float | None = None
    """When it last came back from DOWN, which starts its slow start. None: never."""


class Candidates:
    """The backends of a pool with their statuses; immutable: a change makes a new one.

    A backend is given by its index in the pool's list.
    """

    __slots__ = (
        "_counts",
        "_slow_start_s",
        "configured",
        "enabled",
        "limited",
        "modes",
        "returned_at",
        "slow_until_at",
        "standby",
        "weights",
    )

    def __init__(
        self,
        configured: Sequence[Candidate],
        statuses: Sequence[CandidateStatus] = (),
        *,
        counts: Counts | None = None,
        slow_start_s: float = 0.0,
    ) -> None:
        """`statuses` has one entry per backend, or none at all.

        Raises ValueError for a weight below 1, and for a limit without `counts`.
        """
        statuses = statuses or (CandidateStatus(),) * len(configured)
        self.configured = tuple(configured)
        self.modes = tuple(
            status.mode or (Mode.STANDBY if candidate.standby else Mode.ENABLED)
            for candidate, status in zip(configured, statuses, strict=True)
        )
        self.weights = tuple(
            candidate.weight if status.weight is None else status.weight
            for candidate, status in zip(configured, statuses, strict=True)
        )
        if min(self.weights, default=1) < 1:
            raise ValueError("a backend's weight is below 1; drain the backend instead")
        self.enabled = tuple(i for i, mode in enumerate(self.modes) if mode is Mode.ENABLED)
        self.standby = tuple(i for i, mode in enumerate(self.modes) if mode is Mode.STANDBY)
        self.limited = any(candidate.max_connections for candidate in configured)
        """Whether any backend has a limit of connections."""
        if self.limited and counts is None:
            raise ValueError("max_connections needs the backends' counts")
        self._counts = counts
        self._slow_start_s = slow_start_s
        self.returned_at = tuple(
            -inf if status.returned_at is None else status.returned_at for status in statuses
        )
        self.slow_until_at = (
            max(self.returned_at, default=-inf) + slow_start_s if slow_start_s > 0 else -inf
        )
        """From this time on `weights` holds; before it, ask `weights_at`."""

    def weights_at(self, now_at: float) -> Sequence[float]:
        """The weights now; a backend that came back regains its weight linearly."""
        if now_at >= self.slow_until_at:
            return self.weights
        span = self._slow_start_s
        return [
            weight * min(1.0, max(SLOW_START_FLOOR, (now_at - at) / span))
            for weight, at in zip(self.weights, self.returned_at, strict=True)
        ]

    def full(self, index: int) -> bool:
        """Whether a backend has reached its limit of connections."""
        limit = self.configured[index].max_connections
        return limit > 0 and self._counts is not None and self._counts(index) >= limit

    def admits(self, index: int, tried: Container[int], usable: Usable) -> bool:
        """Whether a client that a cookie sends to this backend may go there."""
        return (
            self.modes[index] is not Mode.DISABLED
            and index not in tried
            and usable(index)
            and not self.full(index)
        )

    def eligible(self, tried: Container[int], usable: Usable) -> list[int]:
        """The backends that may be picked for a client without a cookie.

        They come from the first of these groups that has a backend that is neither
        tried nor full: enabled and usable; standby and usable; enabled; standby. The
        last two exist because a pool whose last backend failed a second ago should try
        it again rather than refuse the client. The list is empty when all are tried,
        full, draining or disabled.
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
