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
from typing import Final

from relay.config.model import Pool
from relay.core.balance import balancer_for
from relay.core.cookie import Inserter
from relay.core.member import Mode, Status
from relay.core.overrides import MAX_WEIGHT
from relay.core.sniff import Sniffed
from relay.core.sticky import identity_key, source_key
from relay.observe.addresses import Addresses
from relay.observe.names import (
    FROM_BACKEND,
    HEALTH,
    HEALTH_DOWN,
    HEALTH_VERSION,
    MODE_OVERRIDE,
    OVERRIDE_VERSION,
    RETRY_UNTIL_MS,
    RETURNED_AT_MS,
    TO_BACKEND,
    WEIGHT_OVERRIDE,
    WHYS,
)
from relay.observe.scoreboard import SHARED_ROW, Layout, Scoreboard, monotonic_ms
from relay.tls.contexts import Target
from relay.tls.identity import Identity, identity_of
from relay.tls.raw import NULL, Pointer, ffi, lib
from relay.worker.choice import CookieChoice
from relay.worker.places import Places

# A session is renewed this long after it was stored, long before a usual ticket lifetime is over.
RENEW_S = 60.0
# A longer wait than any configuration can ask for is none: the cell was not written by a worker in its right mind.
MOST_RETRY_MS = 31_536_000_000
# A backend that answers resumptions with an alert gets full handshakes this long.
NO_RESUMPTION_S = 600.0
# By the value of a MODE_OVERRIDE cell; 0 is as configured.
_MODES: Final = (None, Mode.ENABLED, Mode.DRAIN, Mode.DISABLED, Mode.STANDBY)


class Member:
    """One backend, seen from one worker."""

    __slots__ = (
        "cell_active", "cell_from", "cell_health", "cell_mode", "cell_retry", "cell_returned", "cell_to", "cell_weight", "cells_why",
        "index", "places", "renew_at", "resume_after_at", "session", "target", "valid_until_at",
    )  # fmt: skip

    def __init__(self, index: int, target: Target, layout: Layout) -> None:
        self.index = index
        self.target = target
        labels = (target.pool, target.route)
        self.cell_to = layout.cell("relay_bytes_total", *labels, TO_BACKEND)
        self.cell_from = layout.cell("relay_bytes_total", *labels, FROM_BACKEND)
        self.cell_active = layout.cell("relay_backend_connections_active", *labels)
        self.cell_retry = layout.cell(RETRY_UNTIL_MS, *labels)
        self.cell_health = layout.cell(HEALTH, *labels)
        self.cell_returned = layout.cell(RETURNED_AT_MS, *labels)
        self.cell_mode = layout.cell(MODE_OVERRIDE, *labels)
        self.cell_weight = layout.cell(WEIGHT_OVERRIDE, *labels)
        self.cells_why = {why: layout.cell("relay_backend_selected_total", *labels, why) for why in WHYS}
        self.places: Places | None = None  # of a backend whose address is a host name
        self.session: Pointer = None  # to resume; owned by cffi's collector
        self.renew_at = 0.0
        self.valid_until_at = 0.0
        self.resume_after_at = 0.0  # on the loop's clock

    def session_to_resume(self, now_at: float) -> Pointer:
        """A session of an earlier connection, or None. Never one that outlives a certificate of the chain it was verified with."""
        return self.session if now_at < self.valid_until_at else None

    def drop_session(self, session: Pointer) -> None:
        """Offer this session no more; one that has taken its place meanwhile stays."""
        if self.session is session:
            self.session = None

    def stop_resuming(self, now: float) -> bool:
        """Keep no session for NO_RESUMPTION_S; `now` is the loop's. True when this is news."""
        news = now >= self.resume_after_at
        self.resume_after_at = now + NO_RESUMPTION_S
        self.session = None
        return news

    def keep_session(self, ssl: Pointer, *, resumed: bool, now_at: float, now: float) -> None:
        """Remember the session of a connection that has read application data (only then its TLS 1.3 ticket is there)."""
        if (resumed and now_at < self.renew_at) or now < self.resume_after_at:
            return
        if not resumed:
            self.valid_until_at = _chain_valid_until(ssl)
        session = lib.SSL_get1_session(ssl)
        if session != NULL:
            self.session = ffi.gc(session, lib.SSL_SESSION_free)
            self.renew_at = now_at + RENEW_S


def _chain_valid_until(ssl: Pointer) -> float:
    """The earliest not_after of the chain that OpenSSL has verified, Unix time; 0, that is never resumed, when there is none."""
    chain = lib.SSL_get0_verified_chain(ssl)
    if chain == NULL:
        return 0.0
    return min((identity_of(lib.sk_X509_value(chain, i)).not_after_at for i in range(lib.sk_X509_num(chain))), default=0.0)


class PoolState:
    """One pool, seen from one worker."""

    def __init__(self, name: str, pool: Pool, targets: tuple[Target, ...], *, layout: Layout, board: Scoreboard, slot: int, secret: bytes = b"") -> None:
        self.name = name
        self.members = [Member(index, target, layout) for index, target in enumerate(targets)]
        self.retry_s = pool.retry_s
        for member in self.members:
            addresses = Addresses(member.target.address, (member.target.family, member.target.sockaddr), layout, board.row(SHARED_ROW))
            member.places = Places(addresses, pool.retry_s) if addresses.may_change else None
        self._retry_ms = int(pool.retry_s * 1000)
        self._by_identity = pool.sticky == "identity"
        self._prefixes = (pool.source_prefix_v4, pool.source_prefix_v6)
        self._starts_slowly = pool.slow_start_s > 0
        self._notes_returns = self._starts_slowly and pool.health is None
        self._shared = board.row(SHARED_ROW)
        self._board = board
        self.see_workers()
        self._cell_health_version = layout.cell(HEALTH_VERSION)
        self._cell_override_version = layout.cell(OVERRIDE_VERSION)
        self._statuses = [Status()] * len(self.members)
        self._closes = pool.on_down == "close"
        self._down: frozenset[int] = frozenset()
        self._balancer = balancer_for(pool, slot, counts=self._connections, chance=random.random)
        self.cookie = pool.cookie if pool.sticky == "cookie" else ""
        self._cookies = CookieChoice(name, pool, secret, self._connections) if self.cookie else None
        self.refresh()

    def pick(self, client: str, tried: Container[int], who: Identity | None = None, cookies: tuple[bytes, ...] = ()) -> tuple[Member, str] | None:
        """The member to try and why it was chosen; None when all have been tried, are full, or are not to be used."""
        shared = self._shared
        if shared[self._cell_health_version] + shared[self._cell_override_version] != self._seen:
            self.refresh()
        now_at = monotonic() if self._starts_slowly else 0.0
        if cookies and self._cookies is not None:
            named, why = self._cookies.pick(cookies, tried, self._usable, now_at)
            return None if named is None else (self.members[named], why)
        balancer = self._balancer
        key = self._key(client, who) if balancer.keyed else b""
        index = balancer.pick(key, tried, self._usable, now_at)
        if index is None:
            return None
        return self.members[index], "failover" if tried else balancer.why

    def _key(self, client: str, who: Identity | None) -> bytes:
        """Who the client is."""
        if self._by_identity and who is not None:
            return identity_key(who.spki_sha256, client, *self._prefixes)
        return source_key(client, *self._prefixes)

    def see_workers(self) -> None:
        """See which workers there are whose connections count: those of generations that are over count no more."""
        self._active = [
            self._board.columns("relay_backend_connections_active", member.target.pool, member.target.route) for member in self.members
        ]

    def refresh(self) -> None:
        """See what operators have changed, and who has come back. The versions are read first: what changes meanwhile is seen the next time."""
        shared = self._shared
        self._seen = shared[self._cell_health_version] + shared[self._cell_override_version]
        statuses = [
            Status(_mode(shared[each.cell_mode]), _weight(shared[each.cell_weight]), _returned_at(shared[each.cell_returned]))
            for each in self.members
        ]
        if statuses != self._statuses:
            self._statuses = statuses
            self._balancer.use(statuses)
            if self._cookies is not None:
                self._cookies.use(statuses)

    def inserter(self, member: Member, found: Sniffed) -> Inserter | None:
        """What puts our cookie into the member's first response, for a client that came without one."""
        return self._cookies.inserter(member.index, found) if self._cookies is not None else None

    def leave_alone(self, member: Member) -> bool:
        """The backend failed: nobody tries it for retry_s. True when this is news."""
        now_ms = monotonic_ms()
        news = bool(self._shared[member.cell_retry] <= now_ms)
        self._shared[member.cell_retry] = now_ms + self._retry_ms
        return news

    def answered(self, member: Member, began_at: float) -> None:
        """The backend has sent something on a connection that began at `began_at` (CLOCK_MONOTONIC): if it failed before that, it is back."""
        until_ms = self._shared[member.cell_retry]
        if until_ms and began_at * 1000 > until_ms - self._retry_ms:
            self._shared[member.cell_retry] = 0
            if self._notes_returns:  # with checks it is the checker who says so
                self._shared[member.cell_returned] = monotonic_ms()
                self.refresh()

    def on_tick(self) -> list[Member]:
        """Once a second: whose sessions are to be closed, as the checks have found it down since; who is tried although it is down keeps what it gets."""
        if self._notes_returns:  # by another worker, and without a new version
            self.refresh()
        if not self._closes:
            return []
        before, self._down = self._down, frozenset(each.index for each in self.members if self._shared[each.cell_health] == HEALTH_DOWN)
        return [self.members[index] for index in self._down - before]

    def _connections(self, index: int) -> int:
        """How many connections a member has, over all workers, also those of earlier generations."""
        return max(0, sum(map(sum, self._active[index])))

    def _usable(self, index: int) -> bool:
        member, shared = self.members[index], self._shared
        until = shared[member.cell_retry]
        return bool((until == 0 or not 0 < until - monotonic_ms() <= MOST_RETRY_MS) and shared[member.cell_health] != HEALTH_DOWN)


def _mode(code: int) -> Mode | None:
    """What the cell says; as configured when it says nothing that there is."""
    return _MODES[code] if 0 <= code < len(_MODES) else None


def _weight(value: int) -> int | None:
    return value if 0 < value <= MAX_WEIGHT else None


def _returned_at(value_ms: int) -> float | None:
    return value_ms / 1000 if 0 < value_ms <= monotonic_ms() + 1000 else None
