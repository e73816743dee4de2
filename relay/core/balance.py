"""Which backend of a pool a session gets: smooth weighted round robin, or weighted rendezvous hashing.

A session asks `pick` for a member, and asks again with the members it has tried when that one failed. Members that are not usable
(left alone after a failure) are passed over; when no other is left they are tried anyway, for a pool that lost its last
backend a second ago should rather try than refuse.

Never: knows addresses, sockets or the time; `usable` is the caller's judgement.
Next: `relay.worker.outbound.step`
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import blake2b
from math import gcd, log
from typing import Literal, Protocol

from relay.config.model import Pool

Usable = Callable[[int], bool]

# Keys whose ranking is remembered, per pool and worker; an entry of a ten-member pool takes about 300 bytes.
RANKS_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Member:
    """One backend as the balancers see it: a name that does not change when its place in the list does, and a weight of 1 or more."""

    name: str
    weight: int = 1


class Balancer(Protocol):
    """How the worker chooses; a member is its index in the pool's list of backends."""

    @property
    def keyed(self) -> bool:
        """Whether `pick` looks at its key; when False, b"" does."""

    @property
    def why(self) -> Literal["sticky", "balanced"]:
        """What the access log calls a first pick."""

    def pick(self, key: bytes, tried: Container[int], usable: Usable) -> int | None:
        """The member to try next, or None when all have been tried."""


def balancer_for(pool: Pool, offset: int) -> Balancer:
    """The balancer a pool's settings ask for; `sticky = "source"` decides before `balance`.

    `offset` is the worker's slot: it lets the workers begin their rounds at different members. Raises ValueError for settings
    that `config.rules` refuses in this version.
    """
    members = [Member(backend.route, backend.weight) for backend in pool.backend]
    if pool.sticky == "source":
        return Rendezvous(members, why="sticky")
    if pool.sticky == "none" and pool.balance == "hash":
        return Rendezvous(members)
    if pool.sticky == "none" and pool.balance == "round_robin":
        return RoundRobin(members, offset)
    raise ValueError(f"balance = {pool.balance!r} with sticky = {pool.sticky!r} is not supported in this version")


class RoundRobin:
    """Smooth weighted round robin, nginx's algorithm: 5, 1, 1 gives a a b a c a a rather than a a a a a b c.

    The order of turns repeats after sum(weights) / gcd(weights) turns, so it is computed once and replayed: the common pick is one
    list look-up. The turn of a member that cannot be had goes to the others by the same algorithm, run over them alone; so each
    of them gets its own turns and its share of the lost ones, both in proportion to its weight.
    """

    keyed = False
    why: Literal["sticky", "balanced"] = "balanced"

    def __init__(self, members: Sequence[Member], offset: int = 0) -> None:
        divisor = gcd(*(member.weight for member in members))
        self._weights = [member.weight // divisor for member in members]
        self._all = range(len(members))
        self._period = sum(self._weights)
        self._turns: list[int] = []  # grows to one period
        self._next_turn = 0
        self._planned = [0] * len(members)
        self._substituted = [0] * len(members)
        for _ in range(offset % self._period):
            self._turn()

    def pick(self, key: bytes, tried: Container[int], usable: Usable) -> int | None:  # noqa: ARG002 (the interface of all balancers)
        """The member whose turn it is, or a substitute; None when all have been tried."""
        member = self._turn()
        if member not in tried and usable(member):
            return member
        left = [i for i in self._all if i not in tried]
        # When none is usable, all that are left are tried anyway.
        candidates = [i for i in left if usable(i)] or left
        return self._step(candidates, self._substituted) if candidates else None

    def _turn(self) -> int:
        at = self._next_turn
        if at == len(self._turns):  # only in the first period
            self._turns.append(self._step(self._all, self._planned))
        self._next_turn = at + 1 if at + 1 < self._period else 0
        return self._turns[at]

    def _step(self, candidates: Sequence[int], current: list[int]) -> int:
        """Everyone's claim grows by its weight; the greatest claim wins and pays the sum of the weights."""
        weights = self._weights
        total = 0
        best = candidates[0]
        for i in candidates:
            total += weights[i]
            current[i] += weights[i]
            if current[i] > current[best]:
                best = i
        current[best] -= total
        return best


class Rendezvous:
    """Weighted rendezvous (highest random weight) hashing: a key's order of preference, the same in every worker and machine.

    A member that leaves gives only its own keys away, one that comes takes only its share; there is no table to keep.
    """

    keyed = True

    def __init__(self, members: Sequence[Member], why: Literal["sticky", "balanced"] = "balanced") -> None:
        self.why: Literal["sticky", "balanced"] = why
        self._rank = lru_cache(RANKS_REMEMBERED)(partial(rank, members=tuple(members)))

    def pick(self, key: bytes, tried: Container[int], usable: Usable) -> int | None:
        """The first of the key's preferences that is usable and not tried; else the first not tried; None when all have been."""
        fallback = None
        for member in self._rank(key):
            if member not in tried:
                if usable(member):
                    return member
                if fallback is None:
                    fallback = member
        return fallback


def rank(key: bytes, members: Sequence[Member]) -> tuple[int, ...]:
    """All members' indices, the most preferred first.

    A member's score is -weight / ln(h) with h a hash of key and name, uniform in (0, 1): the chance of the highest score is then
    proportional to the weight (Schindelhauer and Schomaker, 2005).
    """
    scores = []
    for index, member in enumerate(members):
        digest = blake2b(b"%b\0%b" % (member.name.encode(), key), digest_size=8, person=b"relay").digest()
        # 53 bits, the middle of each step: exactly representable, never 0 and never 1.
        uniform = ((int.from_bytes(digest, "big") >> 12) + 0.5) / (1 << 52)
        scores.append((member.weight / log(uniform), index))  # negative: ascending order is descending preference
    return tuple(index for _, index in sorted(scores))
