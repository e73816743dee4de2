"""What a worker knows of its pools: the balancer, the members, who is left alone until when, and the sessions to resume.

The time until which a failed backend is left alone is in the scoreboard's shared row: what one worker learns, all know. So are the
checks' results and what operators have changed; how many connections a backend has is the sum over all workers' rows.
No cell is believed: another process may have written anything, so a value that cannot be counts as its default.

Never: opens a connection.
Next: `relay.core.balance.Balancer.pick`
"""

from __future__ import annotations

import random
from collections.abc import Container
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple

from relay.config.model import Pool
from relay.core.balance import balancer_for
from relay.core.candidates import CandidateStatus, Mode
from relay.core.cookie import Inserter
from relay.core.cookie_balancer import CookieBalancer
from relay.core.overrides import MAX_WEIGHT
from relay.core.sniff import SniffResult
from relay.core.sticky import identity_key, source_key
from relay.errors import Reason
from relay.shared.addresses import Addresses
from relay.shared.entities import HEALTH_DOWN, HEALTH_VERSION, OVERRIDE_VERSION
from relay.shared.failed_backends import FailedBackends
from relay.shared.scoreboard import SHARED_ROW, Layout, Scoreboard, monotonic_ms
from relay.tls.contexts import BackendTarget
from relay.tls.explain import Failure
from relay.tls.identity import Identity
from relay.worker.address_rotation import AddressRotation
from relay.worker.backend import BackendState
from relay.worker.connecting_limit import TRYING_ANYWAY, ConnectingLimit

if TYPE_CHECKING:
    from relay.worker.connection import Connection

# A failed backend that has kept a session so long after its handshake is back.
PROVEN_S = 1.0
# By the value of a MODE_OVERRIDE cell; 0 is as configured.
_MODES: Final = (None, Mode.ENABLED, Mode.DRAIN, Mode.DISABLED, Mode.STANDBY)


class Choice(NamedTuple):
    """The backend to try, why it was chosen, and our claim when it is one that has failed (0: none)."""

    member: BackendState
    why: str
    claim: int


class PoolState:
    """One pool, seen from one worker."""

    def __init__(
        self,
        name: str,
        pool: Pool,
        targets: tuple[BackendTarget, ...],
        *,
        layout: Layout,
        scoreboard: Scoreboard,
        slot: int,
        secret: bytes = b"",
        trial_s: float = 10.0,
        places: int = 20_000,
        pools: int = 1,
    ) -> None:
        self.name = name
        self.members = [BackendState(index, target, layout) for index, target in enumerate(targets)]
        self.retry_s = pool.retry_s
        for member in self.members:
            addresses = Addresses(
                member.target.address,
                (member.target.family, member.target.sockaddr),
                layout,
                scoreboard.row(SHARED_ROW),
            )
            member.places = (
                AddressRotation(addresses, pool.retry_s) if addresses.may_change else None
            )
        lost = [each.places for each in self.members if each.places and not each.target.sockaddr]
        self._nowhere = lost if len(lost) == len(self.members) else []
        self._retry_ms = int(pool.retry_s * 1000)
        self._by_identity = pool.sticky == "identity"
        self._prefixes = (pool.source_prefix_v4, pool.source_prefix_v6)
        self._starts_slowly = pool.slow_start_s > 0
        self._notes_returns = self._starts_slowly and pool.health is None
        self._shared = scoreboard.row(SHARED_ROW)
        self._outage = FailedBackends(
            self._shared, layout, [(target.pool, target.route) for target in targets]
        )
        self._trial_ms = int(trial_s * 1000)
        self._trials: dict[Connection, BackendState] = {}
        self.waiting = ConnectingLimit(
            len(targets), pool.max_connecting, places=places, pools=pools
        )
        self._scoreboard = scoreboard
        self.see_workers()
        self._cell_health_version = layout.cell(HEALTH_VERSION)
        self._cell_override_version = layout.cell(OVERRIDE_VERSION)
        self._statuses = [CandidateStatus()] * len(self.members)
        self._closes = pool.on_down == "close"
        self._down: frozenset[int] = frozenset()
        self._balancer = balancer_for(pool, slot, counts=self._connections, chance=random.random)
        self.cookie = pool.cookie if pool.sticky == "cookie" else ""
        self._cookies = (
            CookieBalancer(name, pool, secret, self._connections) if self.cookie else None
        )
        self.refresh()

    @property
    def nowhere(self) -> bool:
        """Whether no backend has had an address yet: none of their names resolves."""
        if self._nowhere and any(each.any for each in self._nowhere):
            self._nowhere = []  # an answer is kept for good
        return bool(self._nowhere)

    def pick(
        self,
        client: str,
        tried: Container[int],
        who: Identity | None = None,
        cookies: tuple[bytes, ...] = (),
    ) -> Choice | None:
        """The member to try and why it was chosen; None when all have been tried, are full, or are not to be used."""
        shared = self._shared
        if shared[self._cell_health_version] + shared[self._cell_override_version] != self._seen:
            self.refresh()
        now_at = monotonic() if self._starts_slowly else 0.0
        balancer = self._balancer
        key = self._key(client, who) if balancer.keyed else b""
        passed: set[int] = set()
        left = tried
        while True:
            if cookies and self._cookies is not None:
                index, why = self._cookies.pick(cookies, left, self._usable, now_at)
            else:
                index = balancer.pick(key, left, self._usable, now_at)
                why = "failover" if tried else balancer.why
            if index is None:
                return None
            if not self._outage.has_failed(index):
                return Choice(self.members[index], why, 0)
            if self._usable(index):
                return Choice(self.members[index], why, self._outage.claim(index, self._trial_ms))
            if (
                self.waiting.by_backend[index] < TRYING_ANYWAY
            ):  # no backend is usable, and this one may be back
                return Choice(self.members[index], why, 0)
            passed.add(index)
            left = _Either(tried, passed)

    def why_none(self) -> Failure:
        """Why `pick` has found nobody for a client that has tried nobody."""
        failed = [each for each in self.members if self._outage.has_failed(each.index)]
        if not failed:
            return Failure(
                Reason.NO_BACKEND,
                f"every backend of pool {self.name} is disabled, draining, or has its max_connections",
            )
        last = ", ".join(
            f"{each.target.route}: {each.failure or 'by its health checks or another worker'}"
            for each in failed[:8]
        )
        return Failure(
            Reason.NO_BACKEND,
            f"every backend of pool {self.name} has failed, and {TRYING_ANYWAY} clients are trying each ({last})",
        )

    def others_serve(self, member: BackendState, tried: Container[int]) -> bool:
        """Whether a session that gives this member up could go to another one that works."""
        candidates = self._balancer.candidates
        return any(
            i != member.index and i not in tried and self._usable(i)
            for i in (*candidates.enabled, *candidates.standby)
        )

    def begin(self, member: BackendState, end: Connection, claim: int) -> None:
        """A session waits for this backend, and tries it for all others if it has a claim."""
        self.waiting.begin(member.index)
        end.waits, end.claim = True, claim
        if claim:
            self._trials[end] = member

    def reached(self, member: BackendState, end: Connection) -> None:
        """The handshake is done."""
        self.waiting.end(member.index)
        end.waits = False

    def left(self, member: BackendState, end: Connection) -> None:
        """The session has given this backend up, or has ended."""
        if end.waits:
            self.reached(member, end)
        if end in self._trials:
            del self._trials[end]
            self.release(member, end.claim)

    def release(self, member: BackendState, claim: int) -> None:
        """A trial is over."""
        if claim:
            self._outage.release(member.index, claim)

    def _key(self, client: str, who: Identity | None) -> bytes:
        """Who the client is."""
        if self._by_identity and who is not None:
            return identity_key(who.spki_sha256, client, *self._prefixes)
        return source_key(client, *self._prefixes)

    def see_workers(self) -> None:
        """See which workers there are whose connections count: those of generations that are over count no more."""
        self._active = [
            self._scoreboard.columns(
                "relay_backend_connections_active", member.target.pool, member.target.route
            )
            for member in self.members
        ]

    def refresh(self) -> None:
        """See what operators have changed, and who has come back. The versions are read first: what changes meanwhile is seen the next time."""
        shared = self._shared
        self._seen = shared[self._cell_health_version] + shared[self._cell_override_version]
        statuses = [
            CandidateStatus(
                _mode(shared[each.cell_mode]),
                _weight(shared[each.cell_weight]),
                _returned_at(shared[each.cell_returned]),
            )
            for each in self.members
        ]
        if statuses != self._statuses:
            self._statuses = statuses
            self._balancer.update(statuses)
            if self._cookies is not None:
                self._cookies.update(statuses)

    def inserter(self, member: BackendState, found: SniffResult) -> Inserter | None:
        """What puts our cookie into the member's first response, for a client that came without one."""
        return self._cookies.inserter(member.index, found) if self._cookies is not None else None

    def leave_alone(self, member: BackendState, reason: Reason) -> bool:
        """The backend failed: nobody tries it for retry_s. True when this is news."""
        member.failure = reason
        return self._outage.fail(member.index, self._retry_ms)

    def answered(self, member: BackendState, began_at: float) -> None:
        """The backend has sent something on a connection that began at `began_at` (CLOCK_MONOTONIC): if it failed before that, it is back."""
        failed_at_ms = self._outage.failed_at_ms(member.index, self._retry_ms)
        if failed_at_ms and began_at * 1000 > failed_at_ms:
            self._outage.answered(member.index)
            if self._notes_returns:  # with checks it is the checker who says so
                self._shared[member.cell_returned] = monotonic_ms()
                self.refresh()

    def on_tick(self, now: float) -> list[BackendState]:
        """Once a second: whose sessions are to be closed, as the checks have found it down since; who is tried although it is down keeps what it gets."""
        for end, member in list(self._trials.items()):
            # Refusals come at once. Some protocols have nothing to answer, and it works all the same.
            if end.established and end.began_at + PROVEN_S < now:
                del self._trials[end]
                self.answered(member, end.began_at)
        if self._notes_returns:  # by another worker, and without a new version
            self.refresh()
        if not self._closes:
            return []
        before, self._down = (
            self._down,
            frozenset(
                each.index for each in self.members if self._shared[each.cell_health] == HEALTH_DOWN
            ),
        )
        return [self.members[index] for index in self._down - before]

    def _connections(self, index: int) -> int:
        """How many connections a member has, over all workers, also those of earlier generations."""
        return max(0, sum(map(sum, self._active[index])))

    def _usable(self, index: int) -> bool:
        places = self.members[index].places
        if places is not None and not places.any:
            return False
        return self.waiting.by_backend[index] < self.waiting.share and self._outage.usable(index)


class _Either:
    """What is in one of two containers."""

    __slots__ = ("_one", "_other")

    def __init__(self, one: Container[int], other: Container[int]) -> None:
        self._one = one
        self._other = other

    def __contains__(self, index: object) -> bool:
        return index in self._one or index in self._other


def _mode(code: int) -> Mode | None:
    """What the cell says; as configured when it says nothing that there is."""
    return _MODES[code] if 0 <= code < len(_MODES) else None


def _weight(value: int) -> int | None:
    return value if 0 < value <= MAX_WEIGHT else None


def _returned_at(value_ms: int) -> float | None:
    return value_ms / 1000 if 0 < value_ms <= monotonic_ms() + 1000 else None
