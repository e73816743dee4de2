"""Which backend of a pool a session gets: by turns, by load, by chance, or by hash.

A session asks `pick` for a member, and asks again with the members it has tried when that one failed. Members that are not usable
(left alone after a failure) are passed over; when no other is left they are tried anyway: see `core.roster.Roster.candidates`.
What operators change is told with `use`; the balancers prepare for it there, so that the common pick stays one look-up.

Measured with timeit, CPython 3.11, three members, the caller's `usable` included: 0.18 µs by turns and by hash,
2.9 µs by load, 2.6 µs by chance, 4.1 µs by hash with a bounded load.

Never: knows addresses, sockets, chance or the time; those are the caller's arguments.
Next: `relay.worker.outbound.step`
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from functools import lru_cache, partial
from hashlib import blake2b
from math import ceil, gcd, log
from typing import Literal, Protocol

from relay.config.model import Pool
from relay.core.roster import Candidate, Counts, Roster, Status, Usable

Why = Literal["sticky", "balanced"]
Chance = Callable[[], float]
"""Gives a number that is uniform in [0, 1)."""

# Keys whose ranking is remembered, per pool and worker; an entry of a ten-member pool takes about 300 bytes.
RANKS_REMEMBERED = 4096


class Balancer(Protocol):
    """How the worker chooses; a member is its index in the pool's list of backends."""

    @property
    def keyed(self) -> bool:
        """Whether `pick` looks at its key; when False, b"" does."""

    @property
    def why(self) -> Why:
        """What the access log calls a first pick."""

    @property
    def roster(self) -> Roster:
        """The members as they are now."""

    def use(self, statuses: Sequence[Status]) -> None:
        """Go on with these statuses, in the order of the members; none: as configured. Raises ValueError like `Roster`."""

    def pick(
        self, key: bytes, tried: Container[int], usable: Usable, now_at: float = 0.0
    ) -> int | None:
        """The member to try next, or None when there is none left. `now_at` counts only with a slow start."""


def balancer_for(
    pool: Pool, offset: int, *, counts: Counts | None = None, chance: Chance | None = None
) -> Balancer:
    """The balancer a pool's settings ask for, with `sticky = "cookie"` that of clients without one; stickiness decides before `balance`.

    `offset` is the worker's slot: it lets the workers begin their rounds at different members. Raises ValueError for settings
    that need `counts` (least_connections, max_connections, load_factor) or `chance` (random) without it.
    """
    members = [
        Candidate(backend.route, backend.weight, backend.standby, backend.max_connections)
        for backend in pool.backend
    ]
    slow_start_s = pool.slow_start_s
    sticky = pool.sticky in {"source", "identity"} or (
        pool.sticky == "cookie" and pool.sticky_fallback == "source"
    )
    if sticky or pool.balance == "hash":
        why: Why = "sticky" if sticky else "balanced"
        return Rendezvous(
            members, why, counts=counts, slow_start_s=slow_start_s, load_factor=pool.load_factor
        )
    if pool.balance == "least_connections" and counts is not None:
        return LeastConnections(members, counts, offset, slow_start_s=slow_start_s)
    if pool.balance == "random" and chance is not None:
        return RandomOfTwo(members, chance, counts=counts, slow_start_s=slow_start_s)
    if pool.balance == "round_robin":
        return RoundRobin(members, offset, counts=counts, slow_start_s=slow_start_s)
    raise ValueError(f"balance = {pool.balance!r} needs what it was not given")


class _Balancer:
    """What the balancers share: a roster that is replaced as a whole."""

    keyed = False
    why: Why = "balanced"

    def __init__(
        self, members: Sequence[Candidate], counts: Counts | None, slow_start_s: float
    ) -> None:
        self._counts = counts
        self._slow_start_s = slow_start_s
        self.roster = Roster(members, counts=counts, slow_start_s=slow_start_s)

    def use(self, statuses: Sequence[Status]) -> None:
        self.roster = Roster(
            self.roster.members, statuses, counts=self._counts, slow_start_s=self._slow_start_s
        )


class RoundRobin(_Balancer):
    """Smooth weighted round robin, nginx's algorithm: 5, 1, 1 gives a a b a c a a rather than a a a a a b c.

    The order of turns repeats after sum(weights) / gcd(weights) turns, so it is computed once and replayed: the common pick is one
    list look-up. The turn of a member that cannot be had goes to the others by the same algorithm, run over them alone; so each
    of them gets its own turns and its share of the lost ones, both in proportion to its weight. In a slow start there is no period,
    and every turn is computed.
    """

    def __init__(
        self,
        members: Sequence[Candidate],
        offset: int = 0,
        *,
        counts: Counts | None = None,
        slow_start_s: float = 0.0,
    ) -> None:
        super().__init__(members, counts, slow_start_s)
        self._offset = offset
        self._taking_turns: dict[int, int] = {}
        self._substituted = [0.0] * len(members)
        self._slow_until_at = 0.0
        self._limited = False
        self._plan()

    def use(self, statuses: Sequence[Status]) -> None:
        """Go on with these statuses; whose turn it is stays when they make no difference to it."""
        super().use(statuses)
        self._plan()

    def _plan(self) -> None:
        roster = self.roster
        self._slow_until_at = roster.slow_until_at
        self._limited = roster.limited
        taking_turns = {i: roster.weights[i] for i in roster.enabled}
        if taking_turns == self._taking_turns:
            return
        self._taking_turns = taking_turns
        divisor = gcd(*taking_turns.values())
        self._weights = [weight // divisor for weight in roster.weights] if divisor else []
        self._period = sum(self._weights[i] for i in taking_turns)
        self._turns: list[int] = []  # grows to one period
        self._next_turn = 0
        self._planned = [0.0] * len(roster.members)
        for _ in range(self._offset % self._period if self._period else 0):
            self._turn()

    def pick(
        self,
        key: bytes,  # noqa: ARG002  one interface for all balancers
        tried: Container[int],
        usable: Usable,
        now_at: float = 0.0,
    ) -> int | None:
        """The member whose turn it is, or a substitute; None when there is none left."""
        if now_at >= self._slow_until_at and self._period:
            member = self._turn()
            if (
                member not in tried
                and usable(member)
                and not (self._limited and self.roster.full(member))
            ):
                return member
        candidates = self.roster.candidates(tried, usable)
        return (
            _step(candidates, self.roster.weights_at(now_at), self._substituted)
            if candidates
            else None
        )

    def _turn(self) -> int:
        at = self._next_turn
        if at == len(self._turns):  # only in the first period
            self._turns.append(_step([*self._taking_turns], self._weights, self._planned))
        self._next_turn = at + 1 if at + 1 < self._period else 0
        return self._turns[at]


class LeastConnections(_Balancer):
    """The member with the fewest connections for its weight, those of all workers counted; equals take turns by weight.

    That is nginx's rule: in a pool that is nearly idle, where all have none, the weights still count.
    """

    def __init__(
        self,
        members: Sequence[Candidate],
        counts: Counts,
        offset: int = 0,
        *,
        slow_start_s: float = 0.0,
    ) -> None:
        super().__init__(members, counts, slow_start_s)
        self._load = counts
        self._claims = [0.0] * len(members)
        for _ in range(offset % max(1, sum(self.roster.weights))):
            _step(range(len(members)), self.roster.weights, self._claims)

    def pick(
        self,
        key: bytes,  # noqa: ARG002  one interface for all balancers
        tried: Container[int],
        usable: Usable,
        now_at: float = 0.0,
    ) -> int | None:
        """The candidate with the least load; None when there is none left."""
        candidates = self.roster.candidates(tried, usable)
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        weights, load = self.roster.weights_at(now_at), self._load
        loads = [load(i) / weights[i] for i in candidates]
        least = min(loads)
        return _step(
            [i for i, each in zip(candidates, loads, strict=True) if each == least],
            weights,
            self._claims,
        )


class RandomOfTwo(_Balancer):
    """Two different members drawn by weight, and of them the one with less load for its weight (Mitzenmacher, 2001).

    Nearly as even as the least load of all, and workers that look at the same moment do not all run to the same member.
    Without `counts` the first one drawn is it.
    """

    def __init__(
        self,
        members: Sequence[Candidate],
        chance: Chance,
        *,
        counts: Counts | None = None,
        slow_start_s: float = 0.0,
    ) -> None:
        super().__init__(members, counts, slow_start_s)
        self._chance = chance

    def pick(
        self,
        key: bytes,  # noqa: ARG002  one interface for all balancers
        tried: Container[int],
        usable: Usable,
        now_at: float = 0.0,
    ) -> int | None:
        """The better of two candidates; None when there is none left."""
        candidates = self.roster.candidates(tried, usable)
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        weights, load = self.roster.weights_at(now_at), self._counts
        first = _draw(candidates, weights, self._chance())
        if load is None:
            return first
        candidates.remove(first)
        second = _draw(candidates, weights, self._chance())
        return first if load(first) * weights[second] <= load(second) * weights[first] else second


class Rendezvous(_Balancer):
    """Weighted rendezvous (highest random weight) hashing: a key's order of preference, the same in every worker and machine.

    A member that leaves gives only its own keys away, one that comes takes only its share; there is no table to keep. With a
    `load_factor` c of 1 or more nobody gets more than c times its share of the connections there are: keys of a member that has
    that many go to their next preference (Mirrokni, Thorup and Zadimoghaddam, 2016), at the price that a key may move.
    """

    keyed = True

    def __init__(
        self,
        members: Sequence[Candidate],
        why: Why = "balanced",
        *,
        counts: Counts | None = None,
        slow_start_s: float = 0.0,
        load_factor: float = 0.0,
    ) -> None:
        super().__init__(members, counts, slow_start_s)
        if load_factor and (load_factor < 1 or counts is None):
            raise ValueError("a load factor is 1 or more, and needs the members' counts")
        self.why: Why = why
        self._load_factor = load_factor
        self._slow_until_at = 0.0
        self._weights: tuple[int, ...] = ()
        self._prepare()

    def use(self, statuses: Sequence[Status]) -> None:
        """Go on with these statuses; what is remembered of keys stays when the weights do."""
        super().use(statuses)
        self._prepare()

    def _prepare(self) -> None:
        roster = self.roster
        self._slow_until_at = roster.slow_until_at
        # Nobody is to be passed over but for the reasons that every pick asks about.
        self._plain = (
            len(roster.enabled) == len(roster.members)
            and not roster.limited
            and not self._load_factor
        )
        if roster.weights != self._weights:
            self._weights = roster.weights
            self._rank = lru_cache(RANKS_REMEMBERED)(
                partial(rank, members=roster.members, weights=roster.weights)
            )

    def pick(
        self, key: bytes, tried: Container[int], usable: Usable, now_at: float = 0.0
    ) -> int | None:
        """The first of the key's preferences that is usable and not tried; else the first not tried; None when there is none left."""
        slow = now_at < self._slow_until_at
        if not self._plain or slow:
            return self._pick_carefully(key, tried, usable, now_at, slow=slow)
        fallback = None
        for member in self._rank(key):
            if member not in tried:
                if usable(member):
                    return member
                if fallback is None:
                    fallback = member
        return fallback

    def _pick_carefully(
        self, key: bytes, tried: Container[int], usable: Usable, now_at: float, *, slow: bool
    ) -> int | None:
        roster = self.roster
        candidates = roster.candidates(tried, usable)
        weights = roster.weights_at(now_at)
        if self._load_factor and self._counts is not None and len(candidates) > 1:
            candidates = _below(candidates, weights, self._counts, self._load_factor)
        order = rank(key, roster.members, weights) if slow else self._rank(key)
        return next((member for member in order if member in candidates), None)


def rank(
    key: bytes, members: Sequence[Candidate], weights: Sequence[float] = ()
) -> tuple[int, ...]:
    """All members' indices, the most preferred first; the weights are the members' own, or those given.

    A member's score is -weight / ln(h) with h a hash of key and name, uniform in (0, 1): the chance of the highest score is then
    proportional to the weight (Schindelhauer and Schomaker, 2005).
    """
    scores = []
    for index, member in enumerate(members):
        digest = blake2b(
            b"%b\0%b" % (member.name.encode(), key), digest_size=8, person=b"relay"
        ).digest()
        # 53 bits, the middle of each step: exactly representable, never 0 and never 1.
        uniform = ((int.from_bytes(digest, "big") >> 12) + 0.5) / (1 << 52)
        weight = weights[index] if weights else member.weight
        scores.append(
            (weight / log(uniform), index)
        )  # negative: ascending order is descending preference
    return tuple(index for _, index in sorted(scores))


def _step(candidates: Sequence[int], weights: Sequence[float], claims: list[float]) -> int:
    """Everyone's claim grows by its weight; the greatest claim wins and pays the sum of the weights."""
    total = 0.0
    best = candidates[0]
    for i in candidates:
        total += weights[i]
        claims[i] += weights[i]
        if claims[i] > claims[best]:
            best = i
    claims[best] -= total
    return best


def _draw(candidates: Sequence[int], weights: Sequence[float], chance: float) -> int:
    """One of the candidates, each as likely as its weight is heavy."""
    left = chance * sum(weights[i] for i in candidates)
    for i in candidates:
        left -= weights[i]
        if left < 0:
            return i
    return candidates[-1]


def _below(
    candidates: Sequence[int], weights: Sequence[float], counts: Counts, factor: float
) -> list[int]:
    """Those whose load stays within `factor` times their share when they take one more; there always is one."""
    loads = [counts(i) for i in candidates]
    share = factor * (sum(loads) + 1) / sum(weights[i] for i in candidates)
    return [
        i for i, load in zip(candidates, loads, strict=True) if load < ceil(share * weights[i])
    ] or [*candidates]
