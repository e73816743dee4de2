"""Weighted rendezvous hashing: each key has its own order of backends.

The order is the same in every worker and on every machine, and no table is needed. When
a backend leaves, only its own keys move. When one is added, it gets only its share of
the keys.

With a load factor c of 1 or more, no backend gets more than c times its share of the
current connections. The keys of a backend that has reached this bound go to their next
preference (Mirrokni, Thorup and Zadimoghaddam, 2016), so a key may move.

Never: knows what a key stands for (see `core.sticky`).
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from functools import lru_cache, partial
from hashlib import blake2b
from math import ceil, log

from relay.core.balancer_base import BalancerBase, Why
from relay.core.candidates import Candidate, CandidateStatus, Counts, Usable

# Per pool and worker: how many keys keep their order. An entry takes about 300 bytes in
# a pool of ten backends.
RANKS_REMEMBERED = 4096


class Rendezvous(BalancerBase):
    """Picks the first usable backend in the key's order of preference."""

    keyed = True

    def __init__(
        self,
        configured: Sequence[Candidate],
        why: Why = "balanced",
        *,
        counts: Counts | None = None,
        slow_start_s: float = 0.0,
        load_factor: float = 0.0,
    ) -> None:
        super().__init__(configured, counts, slow_start_s)
        if load_factor and (load_factor < 1 or counts is None):
            raise ValueError("a load factor is 1 or more, and needs the backends' counts")
        self.why: Why = why
        self._load_factor = load_factor
        self._slow_until_at = 0.0
        self._weights: tuple[int, ...] = ()
        self._prepare()

    def update(self, statuses: Sequence[CandidateStatus]) -> None:
        """Use these statuses. Unchanged weights keep the cached orders valid."""
        super().update(statuses)
        self._prepare()

    def _prepare(self) -> None:
        candidates = self.candidates
        self._slow_until_at = candidates.slow_until_at
        # Then `tried` and `usable` are the only reasons to skip a backend.
        self._plain = (
            len(candidates.enabled) == len(candidates.configured)
            and not candidates.limited
            and not self._load_factor
        )
        if candidates.weights != self._weights:
            self._weights = candidates.weights
            self._rank = lru_cache(RANKS_REMEMBERED)(
                partial(rank, configured=candidates.configured, weights=candidates.weights)
            )

    def pick(
        self, key: bytes, tried: Container[int], usable: Usable, now_at: float = 0.0
    ) -> int | None:
        """The key's first backend that is usable and not tried.

        If there is none, the first one that is not tried; None if all are tried.
        """
        slow = now_at < self._slow_until_at
        if not self._plain or slow:
            return self._pick_eligible(key, tried, usable, now_at, slow=slow)
        fallback = None
        for index in self._rank(key):
            if index not in tried:
                if usable(index):
                    return index
                if fallback is None:
                    fallback = index
        return fallback

    def _pick_eligible(
        self, key: bytes, tried: Container[int], usable: Usable, now_at: float, *, slow: bool
    ) -> int | None:
        candidates = self.candidates
        eligible = candidates.eligible(tried, usable)
        weights = candidates.weights_at(now_at)
        if self._load_factor and self._counts is not None and len(eligible) > 1:
            eligible = _below(eligible, weights, self._counts, self._load_factor)
        order = rank(key, candidates.configured, weights) if slow else self._rank(key)
        return next((index for index in order if index in eligible), None)


def rank(
    key: bytes, configured: Sequence[Candidate], weights: Sequence[float] = ()
) -> tuple[int, ...]:
    """All indices, the most preferred first, by these weights or the configured ones.

    A backend's score is -weight / ln(h), where h is a hash of its name and the key,
    uniform in (0, 1). The chance of the highest score is then proportional to the
    weight (Schindelhauer and Schomaker, 2005).
    """
    scores = []
    for index, candidate in enumerate(configured):
        digest = blake2b(
            b"%b\0%b" % (candidate.name.encode(), key), digest_size=8, person=b"relay"
        ).digest()
        # 53 bits, the middle of each step: an exact float, never 0 and never 1.
        uniform = ((int.from_bytes(digest, "big") >> 12) + 0.5) / (1 << 52)
        weight = weights[index] if weights else candidate.weight
        # Negative, so that ascending order is descending preference.
        scores.append((weight / log(uniform), index))
    return tuple(index for _, index in sorted(scores))


def _below(
    eligible: Sequence[int], weights: Sequence[float], counts: Counts, factor: float
) -> list[int]:
    """The backends that may take one more connection within `factor` times their share.

    At least one always qualifies; if rounding excludes all, all are returned.
    """
    loads = [counts(i) for i in eligible]
    share = factor * (sum(loads) + 1) / sum(weights[i] for i in eligible)
    below = [i for i, load in zip(eligible, loads, strict=True) if load < ceil(share * weights[i])]
    return below or [*eligible]
