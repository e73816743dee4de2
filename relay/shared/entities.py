"""The entities that are counted, such as backends and routes, and the cells of each.

An entity has gauges and counters in the row of each worker, and states that all
processes share. `shared.cell_layout` turns the name of a series into the number of its
cell.

Never: holds a value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from relay.config.backend_address import lookup_name
from relay.errors import Reason, Side
from relay.shared.label_values import (
    CANARY_RESULTS,
    CHECK_RESULTS,
    CRL_FETCH_RESULTS,
    FROM_BACKEND,
    HANDSHAKE_BUCKETS_S,
    HANDSHAKE_OK,
    HANDSHAKE_RESUMED,
    LOOK_UP_RESULTS,
    NO_ROUTE,
    RENEWAL_RESULTS,
    SESSION_BUCKETS_S,
    TO_BACKEND,
    WHYS,
)

if TYPE_CHECKING:
    from relay.config.model import Config
    from relay.config.section import Crl

# Cells without a metric of their own. The processes use them among themselves.

# CPU microseconds of a slot's ended workers; label: slot; in the totals only.
SLOT_CPU_US = "slot_cpu_us"

# A worker's gauge: how many sessions the operators' kicks have ended in it.
KICKED_SESSIONS = "kicked_sessions"

# States of a backend. Labels: pool, backend. Instants are CLOCK_MONOTONIC milliseconds.
# A process stores a value and never adds to one.
RETRY_UNTIL_MS = "retry_until_ms"  # by any worker whose connection to the backend failed
TRIAL_UNTIL_MS = "trial_until_ms"  # by the worker whose session tries a failed backend
HEALTH = "health"  # by the checker
HEALTH_UNKNOWN, HEALTH_UP, HEALTH_DOWN = range(3)
# By the checker: Unix time at which the backend's certificate expires, 0 if not seen
# yet.
BACKEND_NOT_AFTER_S = "backend_not_after_s"
# By the checker: Unix time at which the server of a revocation list last confirmed it,
# 0 if never. Label: url.
CRL_LAST_SUCCESS_S = "crl_last_success_s"
# By the checker, or without health checks by a worker: when the backend came back, 0 if
# never.
RETURNED_AT_MS = "returned_at_ms"
# By the supervisor, for an operator: 0 as configured, 1 enabled, 2 drain, 3 disabled, 4
# standby.
MODE_OVERRIDE = "mode_override"
WEIGHT_OVERRIDE = "weight_override"  # by the supervisor, for an operator; 0 as configured

# States of the relay, without labels. They grow by one after every change of the states
# above, so a worker sees in one cell whether anything has changed.
HEALTH_VERSION = "health_version"  # by the checker
OVERRIDE_VERSION = "override_version"  # by the supervisor

# States of a host name or service, by the checker: see `shared.addresses`. Labels: the
# name, and a number below RESOLVED_CELLS. A snapshot has them decoded.
RESOLVED = "resolved"
MAX_ADDRESSES = 64
ADDRESS_CELLS = 4
RESOLVED_CELLS = 3 + ADDRESS_CELLS * MAX_ADDRESSES


class Series(NamedTuple):
    """One cell: a metric name and label values in the order of the metric's family.

    A histogram has one series per bucket (label `le`), and one for the sum.
    """

    name: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of entities, such as all backends, and the series of each entity.

    `key` is the number of labels that name an entity. The series here have only the
    labels that follow those. Series of one tuple have consecutive cells, in the tuple's
    order.
    """

    name: str
    key: int
    # In each worker's row; gone when the worker ends.
    gauges: tuple[Series, ...] = ()
    # In each worker's row; added to the totals when the worker ends.
    counters: tuple[Series, ...] = ()
    # One cell for all processes and generations.
    states: tuple[Series, ...] = ()


def _relay_counters() -> Iterator[Series]:
    yield Series("relay_access_log_dropped_total")
    yield Series("relay_messages_dropped_total")
    yield Series("relay_sessions_unjudged_total")
    for result in CRL_FETCH_RESULTS:
        yield Series("relay_crl_fetch_total", (result,))
    for result in LOOK_UP_RESULTS:
        yield Series("relay_name_lookups_total", (result,))
    for name, buckets in (
        ("relay_handshake_seconds", HANDSHAKE_BUCKETS_S),
        ("relay_session_seconds", SESSION_BUCKETS_S),
    ):
        for side in Side:
            # Bucket i is cell base + i; then +Inf, then the sum in microseconds.
            for bound in (*map(str, buckets), "+Inf", "sum"):
                yield Series(name, (side.value, bound))


def _route_counters() -> Iterator[Series]:
    yield Series("relay_connections_total")
    for reason in Reason:
        yield Series("relay_sessions_closed_total", (reason.value,))
    for side in Side:
        for result in (HANDSHAKE_OK, HANDSHAKE_RESUMED, *(reason.value for reason in Reason)):
            yield Series("relay_handshakes_total", (side.value, result))


RELAY = Kind(
    "relay",
    0,
    (Series("relay_connections_active"), Series(KICKED_SESSIONS)),
    tuple(_relay_counters()),
    (Series(HEALTH_VERSION), Series(OVERRIDE_VERSION)),
)
# In the totals only.
SUPERVISOR = Kind(
    "supervisor",
    0,
    counters=(
        Series("relay_worker_restarts_total"),
        *(Series("relay_renewals_total", (result,)) for result in RENEWAL_RESULTS),
        *(Series("relay_canaries_total", (result,)) for result in CANARY_RESULTS),
    ),
)
LISTENER = Kind("listener", 1, counters=(Series("relay_probes_total"),))
ROUTE = Kind("route", 2, counters=tuple(_route_counters()))
BACKEND = Kind(
    "backend",
    2,
    (Series("relay_backend_connections_active"),),
    (
        *(Series("relay_bytes_total", (direction,)) for direction in (TO_BACKEND, FROM_BACKEND)),
        *(Series("relay_backend_selected_total", (why,)) for why in WHYS),
    ),
    tuple(
        map(
            Series,
            (
                RETRY_UNTIL_MS,
                HEALTH,
                RETURNED_AT_MS,
                MODE_OVERRIDE,
                WEIGHT_OVERRIDE,
                TRIAL_UNTIL_MS,
            ),
        )
    ),
)
CHECKED_BACKEND = Kind(
    "checked_backend",
    2,
    counters=tuple(Series("relay_health_checks_total", (result,)) for result in CHECK_RESULTS),
    states=(Series(BACKEND_NOT_AFTER_S),),
)
HOST = Kind(
    "host", 1, states=tuple(Series(RESOLVED, (str(number),)) for number in range(RESOLVED_CELLS))
)
CRL_URL = Kind("crl_url", 1, states=(Series(CRL_LAST_SUCCESS_S),))
SLOT = Kind("slot", 1, counters=(Series(SLOT_CPU_US),))
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (RELAY, SUPERVISOR, LISTENER, ROUTE, BACKEND, CHECKED_BACKEND, HOST, CRL_URL, SLOT)
}

Key = tuple[str, ...]
"""The labels that name one entity of a kind."""
Entities = dict[str, list[Key]]
"""Everything that is counted, by the name of its kind."""


def hosts_of(config: Config) -> dict[str, float]:
    """The names in backends' addresses, each with its look-up interval in seconds."""
    found: dict[str, float] = {}
    for pool in config.pool.values():
        for backend in pool.backend:
            name = lookup_name(backend.address)
            if name:
                found[name] = min(pool.resolve_s, found.get(name, pool.resolve_s))
    return found


def fetches_lists(config: Config) -> bool:
    """Whether revocation lists are fetched, from configured or from other URLs."""
    return any(each.urls or each.from_certificates for each in _revocations(config))


def _revocations(config: Config) -> Iterator[Crl]:
    """The settings for revocation lists of all routes and pools."""
    for listener in config.listener:
        yield from (route.revocation for route in listener.route if route.revocation)
    yield from (pool.revocation for pool in config.pool.values() if pool.revocation)


def entities_of(config: Config) -> Entities:
    """Everything that a process with this configuration counts, each entity once."""
    return {
        RELAY.name: [()],
        LISTENER.name: [(listener.name,) for listener in config.listener],
        ROUTE.name: [
            (listener.name, label)
            for listener in config.listener
            for label in (*dict.fromkeys(route.label for route in listener.route), NO_ROUTE)
        ],
        BACKEND.name: [
            (name, backend.route) for name, pool in config.pool.items() for backend in pool.backend
        ],
        CHECKED_BACKEND.name: [
            (name, backend.route)
            for name, pool in config.pool.items()
            if pool.health is not None
            for backend in pool.backend
        ],
        HOST.name: [(host,) for host in hosts_of(config)],
        CRL_URL.name: [
            (url,)
            for url in dict.fromkeys(url for each in _revocations(config) for url in each.urls)
        ],
    }
