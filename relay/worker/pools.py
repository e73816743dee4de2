"""One pool in one worker: its balancer, its backends, and which of them may be used.

What one worker learns about a failed backend is in the scoreboard's state cells, so all
workers know it; so are the results of health checks and the operators' overrides. The
number of a backend's connections is the sum over the rows of all workers.

Never: opens a connection; trusts a cell. Another process may have written anything, so
a value that is not possible counts as the default.
Next: `relay.core.balance.Balancer.pick`
"""

from __future__ import annotations

import random
from collections.abc import Container
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from relay.config.pool_model import Pool
from relay.core.balance import balancer_for
from relay.core.candidates import CandidateStatus
from relay.core.cookie import Inserter
from relay.core.cookie_balancer import CookieBalancer
from relay.core.sniff import SniffResult
from relay.core.sticky import identity_key, source_key
from relay.errors import Reason
from relay.shared.entities import HEALTH_DOWN, HEALTH_VERSION, OVERRIDE_VERSION
from relay.shared.failed_backends import FailedBackends
from relay.shared.scoreboard import SHARED_ROW, Layout, Scoreboard, monotonic_ms
from relay.tls.explain import Failure
from relay.tls.generation import Target
from relay.tls.identity import Identity
from relay.worker.backend import BackendState
from relay.worker.backend_status import read_status
from relay.worker.connecting_limit import TRIES_IN_OUTAGE, ConnectingLimit
from relay.worker.service_rotation import rotation_of
from relay.worker.trials import Trials

if TYPE_CHECKING:
    from relay.worker.connection import Connection


class Choice(NamedTuple):
    """The backend to try, why it was chosen, and the session's claim if it has failed.

    `claim` is 0 for a backend that has not failed. See `shared.failed_backends`.
    """

    backend: BackendState
    why: str
    claim: int


class PoolState:
    """What a worker knows of one pool.

    `max_connections` is how many connections the worker may have, and `pools` how many
    pools share them. `trial_s` is how long a claim of a failed backend lasts.
    """

    def __init__(
        self,
        name: str,
        pool: Pool,
        targets: tuple[Target, ...],
        *,
        layout: Layout,
        scoreboard: Scoreboard,
        slot: int,
        secret: bytes = b"",
        trial_s: float = 10.0,
        max_connections: int = 20_000,
        pools: int = 1,
    ) -> None:
        self.name = name
        self.retry_s = pool.retry_s
        self._shared = scoreboard.row(SHARED_ROW)
        self.backends = [
            self._make_backend(index, target, layout) for index, target in enumerate(targets)
        ]
        named = [each.rotation for each in self.backends if each.rotation]
        self.named = named if len(named) == len(self.backends) else []
        self._by_identity = pool.sticky == "identity"
        self._prefixes = (pool.source_prefix_v4, pool.source_prefix_v6)
        self._starts_slowly = pool.slow_start_s > 0
        # With health checks, the checker stores when a backend came back.
        self._stores_returns = self._starts_slowly and pool.health is None
        self._failed_backends = FailedBackends(
            self._shared, layout, [(target.pool, target.route) for target in targets]
        )
        self._retry_ms = int(pool.retry_s * 1000)
        self._trials = Trials(self._failed_backends, trial_s)
        self.connecting = ConnectingLimit(
            len(targets), pool.max_connecting, max_connections=max_connections, pools=pools
        )
        self._scoreboard = scoreboard
        self.find_worker_rows()
        self._cell_health_version = layout.cell(HEALTH_VERSION)
        self._cell_override_version = layout.cell(OVERRIDE_VERSION)
        self._statuses = [CandidateStatus()] * len(self.backends)
        self._closes_on_down = pool.on_down == "close"
        self._down: frozenset[int] = frozenset()
        self._balancer = balancer_for(pool, slot, counts=self._connections, chance=random.random)
        sticky = pool.sticky == "cookie"
        self._cookies = CookieBalancer(name, pool, secret, self._connections) if sticky else None
        self.sticky_names = self._cookies.names if self._cookies is not None else None
        self.refresh()

    def _make_backend(self, index: int, target: Target, layout: Layout) -> BackendState:
        backend = BackendState(index, target, layout)
        backend.rotation = rotation_of(target, layout, self._shared, self.retry_s)
        return backend

    @property
    def has_no_address(self) -> bool:
        """Whether all backends have names, and none of these has an address now."""
        return bool(self.named) and not any(each.has_address for each in self.named)

    # Choosing.

    def pick(
        self,
        client: str,
        tried: Container[int],
        identity: Identity | None = None,
        cookies: tuple[bytes, ...] = (),
    ) -> Choice | None:
        """The backend to try next; None if all usable ones were tried or are full."""
        shared = self._shared
        if shared[self._cell_health_version] + shared[self._cell_override_version] != self._seen:
            self.refresh()
        now_at = monotonic() if self._starts_slowly else 0.0
        balancer = self._balancer
        key = self._key(client, identity) if balancer.keyed else b""
        skipped: set[int] = set()
        excluded: Container[int] = tried
        while True:
            if cookies and self._cookies is not None:
                index, why = self._cookies.pick(cookies, excluded, self._usable, now_at)
            else:
                index = balancer.pick(key, excluded, self._usable, now_at)
                why = "failover" if tried else balancer.why
            if index is None:
                return None
            if not self._failed_backends.has_failed(index):
                return Choice(self.backends[index], why, 0)
            if self._usable(index):
                return Choice(self.backends[index], why, self._trials.claim(index))
            # No backend is usable, and this one may be back.
            if self.connecting.by_backend[index] < TRIES_IN_OUTAGE:
                return Choice(self.backends[index], why, 0)
            skipped.add(index)
            excluded = [i for i in range(len(self.backends)) if i in tried or i in skipped]

    def why_none(self) -> Failure:
        """Why `pick` found no backend for a client that has tried none."""
        failed = [each for each in self.backends if self._failed_backends.has_failed(each.index)]
        if not failed:
            return Failure(
                Reason.NO_BACKEND,
                f"every backend of pool {self.name} is disabled, draining, "
                "or has its max_connections",
            )
        last = ", ".join(
            f"{each.target.route}: {each.failure or 'by its health checks or another worker'}"
            for each in failed[:8]
        )
        return Failure(
            Reason.NO_BACKEND,
            f"every backend of pool {self.name} has failed, "
            f"and {TRIES_IN_OUTAGE} clients are trying each ({last})",
        )

    def others_serve(self, backend: BackendState, tried: Container[int]) -> bool:
        """Whether another backend works that the session has not tried."""
        candidates = self._balancer.candidates
        return any(
            i != backend.index and i not in tried and self._usable(i)
            for i in (*candidates.enabled, *candidates.standby)
        )

    def inserter(self, backend: BackendState, found: SniffResult) -> Inserter | None:
        """What inserts the relay's cookie into the first response, if needed."""
        return self._cookies.inserter(backend.index, found) if self._cookies is not None else None

    def _key(self, client: str, identity: Identity | None) -> bytes:
        """What identifies the client for the balancer."""
        if self._by_identity and identity is not None:
            return identity_key(identity.spki_sha256, client, *self._prefixes)
        return source_key(client, *self._prefixes)

    def _connections(self, index: int) -> int:
        """The backend's connections over all workers, older generations included."""
        return max(0, sum(map(sum, self._active[index])))

    def _usable(self, index: int) -> bool:
        rotation = self.backends[index].rotation
        if rotation is not None and not rotation.has_address:
            return False
        if self.connecting.by_backend[index] >= self.connecting.share:
            return False
        return self._failed_backends.usable(index)

    # A session's way to its backend.

    def begin(self, backend: BackendState, end: Connection, claim: int) -> None:
        """A session starts to connect. With a claim it tries a failed backend."""
        self.connecting.by_backend[backend.index] += 1
        self.connecting.total += 1
        end.waits, end.claim = True, claim
        if claim:
            self._trials.begin(backend, end)

    def reached(self, backend: BackendState, end: Connection) -> None:
        """The handshake with the backend is done."""
        self.connecting.by_backend[backend.index] -= 1
        self.connecting.total -= 1
        end.waits = False

    def left(self, backend: BackendState, end: Connection) -> None:
        """The session has given the backend up, or has ended."""
        if end.waits:
            self.reached(backend, end)
        self._trials.end(end)

    def release(self, backend: BackendState, claim: int) -> None:
        """Give back the claim of a session that could not start to connect."""
        self._trials.release(backend, claim)

    def mark_failed(self, backend: BackendState, reason: Reason) -> bool:
        """No worker uses the backend for retry_s. True if it was not marked already."""
        backend.failure = reason
        return self._failed_backends.fail(backend.index, self._retry_ms)

    def answered(self, backend: BackendState, began_at: float) -> None:
        """The backend has sent data. If it failed before, it works again.

        `began_at` is when the connection began (CLOCK_MONOTONIC): a connection that is
        older than the failure shows nothing.
        """
        failed_at_ms = self._failed_backends.failed_at_ms(backend.index, self._retry_ms)
        if failed_at_ms and began_at * 1000 > failed_at_ms:
            # First, so that no process sees the failure end and misses the return.
            if self._stores_returns:
                self._shared[backend.cell_returned] = monotonic_ms()
            self._failed_backends.answered(backend.index)
            if self._stores_returns:
                self.refresh()

    # Changes from outside.

    def find_worker_rows(self) -> None:
        """Find the rows whose connections count. Those of ended generations do not."""
        self._active = [
            self._scoreboard.columns(
                "relay_backend_connections_active", each.target.pool, each.target.route
            )
            for each in self.backends
        ]

    def refresh(self) -> None:
        """Read the operators' overrides, and which backends came back.

        The versions are read first, so a change in between is seen by the next `pick`.
        """
        shared = self._shared
        self._seen = shared[self._cell_health_version] + shared[self._cell_override_version]
        statuses = [read_status(shared, each) for each in self.backends]
        if statuses != self._statuses:
            self._statuses = statuses
            self._balancer.update(statuses)
            if self._cookies is not None:
                self._cookies.update(statuses)

    def on_tick(self, now: float) -> list[BackendState]:
        """Once a second. Returns the backends that went DOWN since the last tick.

        The caller closes their sessions, if the pool's on_down says so. Sessions that
        started while a backend was already down are kept.
        """
        for backend, began_at in self._trials.take_proven(now):
            self.answered(backend, began_at)
        if self._stores_returns:  # another worker's return has no new version
            self.refresh()
        if not self._closes_on_down:
            return []
        down = frozenset(
            each.index for each in self.backends if self._shared[each.cell_health] == HEALTH_DOWN
        )
        newly_down, self._down = down - self._down, down
        return [self.backends[index] for index in newly_down]
