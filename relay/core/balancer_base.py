"""What all balancers have in common: interface, candidates, arithmetic.

Never: picks a backend.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Literal, Protocol

from relay.core.candidates import Candidate, Candidates, CandidateStatus, Counts, Usable

Why = Literal["sticky", "balanced"]


class Balancer(Protocol):
    """How a worker chooses a backend, which is an index in the pool's list."""

    @property
    def keyed(self) -> bool:
        """Whether `pick` uses its key; if not, b"" is enough."""

    @property
    def why(self) -> Why:
        """The access log's `why` for a first pick."""

    @property
    def candidates(self) -> Candidates:
        """The backends as they are now."""

    def update(self, statuses: Sequence[CandidateStatus]) -> None:
        """Use these statuses, one per backend; an empty list means as configured.

        Raises ValueError like `Candidates`.
        """

    def pick(
        self, key: bytes, tried: Container[int], usable: Usable, now_at: float = 0.0
    ) -> int | None:
        """The backend to try next, or None. `now_at` only matters in a slow start."""


class BalancerBase:
    """Holds a balancer's candidates; an update replaces all of them."""

    keyed = False
    why: Why = "balanced"

    def __init__(
        self, configured: Sequence[Candidate], counts: Counts | None, slow_start_s: float
    ) -> None:
        self._counts = counts
        self._slow_start_s = slow_start_s
        self.candidates = Candidates(configured, counts=counts, slow_start_s=slow_start_s)

    def update(self, statuses: Sequence[CandidateStatus]) -> None:
        """Use these statuses, one per backend; an empty list means as configured."""
        self.candidates = Candidates(
            self.candidates.configured,
            statuses,
            counts=self._counts,
            slow_start_s=self._slow_start_s,
        )


def next_turn(eligible: Sequence[int], weights: Sequence[float], claims: list[float]) -> int:
    """One turn of smooth weighted round robin, over these backends only.

    Each claim grows by its backend's weight. The greatest claim wins the turn and pays
    the sum of the weights.
    """
    total = 0.0
    best = eligible[0]
    for i in eligible:
        total += weights[i]
        claims[i] += weights[i]
        if claims[i] > claims[best]:
            best = i
    claims[best] -= total
    return best
