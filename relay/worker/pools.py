"""What a worker knows of its pools: the balancer, the members, who is left alone until when, and the sessions to resume.

The time until which a failed backend is left alone is in the scoreboard's shared row: what one worker learns, all know.

Never: opens a connection.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from relay.config.model import Pool
from relay.core.balance import balancer_for
from relay.core.sticky import source_key
from relay.observe.names import FROM_BACKEND, HEALTH, HEALTH_DOWN, RETRY_UNTIL_MS, TO_BACKEND, WHYS
from relay.observe.scoreboard import Layout, monotonic_ms
from relay.tls.contexts import Target
from relay.tls.identity import identity_of
from relay.tls.raw import NULL, Pointer, ffi, lib

# A session is renewed this long after it was stored, long before a usual ticket lifetime is over.
RENEW_S = 60.0


class Member:
    """One backend, seen from one worker."""

    __slots__ = ("cell_active", "cell_from", "cell_health", "cell_retry", "cell_to", "cells_why", "index", "renew_at", "session", "target", "valid_until_at")

    def __init__(self, index: int, target: Target, layout: Layout) -> None:
        self.index = index
        self.target = target
        labels = (target.pool, target.route)
        self.cell_to = layout.cell("relay_bytes_total", *labels, TO_BACKEND)
        self.cell_from = layout.cell("relay_bytes_total", *labels, FROM_BACKEND)
        self.cell_active = layout.cell("relay_backend_connections_active", *labels)
        self.cell_retry = layout.cell(RETRY_UNTIL_MS, *labels)
        self.cell_health = layout.cell(HEALTH, *labels)
        self.cells_why = {why: layout.cell("relay_backend_selected_total", *labels, why) for why in WHYS}
        self.session: Pointer = None  # to resume; owned by cffi's collector
        self.renew_at = 0.0
        self.valid_until_at = 0.0

    def session_to_resume(self, now_at: float) -> Pointer:
        """A session of an earlier connection, or None. Never one that outlives a certificate of the chain it was verified with."""
        return self.session if now_at < self.valid_until_at else None

    def keep_session(self, ssl: Pointer, *, resumed: bool, now_at: float) -> None:
        """Remember the session of a connection that has read application data (only then its TLS 1.3 ticket is there)."""
        if resumed and now_at < self.renew_at:
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
    """One pool, seen from one worker. `shared` is the scoreboard's shared row."""

    def __init__(self, name: str, pool: Pool, targets: tuple[Target, ...], *, layout: Layout, shared: Any, slot: int) -> None:
        self.name = name
        self.members = [Member(index, target, layout) for index, target in enumerate(targets)]
        self._balancer = balancer_for(pool, slot)
        self.retry_s = pool.retry_s
        self._retry_ms = int(pool.retry_s * 1000)
        self._shared = shared

    def pick(self, client: str, tried: Container[int]) -> tuple[Member, str] | None:
        """The member to try and why it was chosen; None when all have been tried."""
        balancer = self._balancer
        index = balancer.pick(source_key(client) if balancer.keyed else b"", tried, self._usable)
        if index is None:
            return None
        return self.members[index], "failover" if tried else balancer.why

    def leave_alone(self, member: Member) -> bool:
        """The backend failed: nobody tries it for retry_s. True when this is news."""
        now_ms = monotonic_ms()
        news = bool(self._shared[member.cell_retry] <= now_ms)
        self._shared[member.cell_retry] = now_ms + self._retry_ms
        return news

    def _usable(self, index: int) -> bool:
        member, shared = self.members[index], self._shared
        until = shared[member.cell_retry]
        return bool(shared[member.cell_health] != HEALTH_DOWN and (until == 0 or until <= monotonic_ms()))
