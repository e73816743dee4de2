"""The catalogue of metrics: every name, its type, its labels, its help, and where its value comes from.

A series with a scoreboard cell belongs to a `Kind` of entities; the rest (`source = "admin"`) is made by the scraper itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from relay.config.address import is_ip, parse_address
from relay.config.model import Config
from relay.errors import Reason, Side

MetricType = Literal["counter", "gauge", "histogram"]

# Upper bounds of handshake_seconds, in seconds; the last bucket (+Inf) is implied.
HANDSHAKE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

NO_ROUTE = "none"
TO_BACKEND, FROM_BACKEND = "to_backend", "from_backend"
# Named by its cookie; by the hash of a cookie that names nobody; by who the client is; by balance; instead of one that failed, is down or full.
WHYS = ("cookie", "hashed", "sticky", "balanced", "failover")
HANDSHAKE_OK, HANDSHAKE_RESUMED = "ok", "resumed"
CHECK_OK = "ok"
CHECK_RESULTS = (CHECK_OK, "connect_failed", "handshake_failed", "http_failed")


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: `scale` turns a cell's integer into the metric's unit."""

    name: str
    kind: MetricType
    help: str
    labels: tuple[str, ...] = ()
    scale: float = 1
    source: Literal["scoreboard", "admin"] = "scoreboard"


FAMILIES: dict[str, Family] = {
    f.name: f
    for f in (
        Family(
            "relay_connections_total",
            "counter",
            "Client connections accepted, by the route they were given; route is none when refused before routing.",
            ("listener", "route"),
        ),
        Family("relay_connections_active", "gauge", "Client connections open now."),
        Family("relay_sessions_closed_total", "counter", "Sessions ended, by reason.", ("reason",)),
        Family(
            "relay_handshakes_total",
            "counter",
            "TLS handshakes ended, by side and by result: ok, resumed, or the reason of the failure.",
            ("side", "result"),
        ),
        Family(
            "relay_handshake_seconds",
            "histogram",
            "Wall time of completed TLS handshakes.",
            ("side",),
            1e-6,
        ),
        Family(
            "relay_bytes_total",
            "counter",
            "Plaintext bytes relayed.",
            ("pool", "backend", "direction"),
        ),
        Family(
            "relay_backend_connections_active",
            "gauge",
            "Connections to the backend open now.",
            ("pool", "backend"),
        ),
        Family(
            "relay_backend_selected_total",
            "counter",
            "Times the backend was chosen, and why.",
            ("pool", "backend", "why"),
        ),
        Family(
            "relay_route_disabled",
            "gauge",
            "1 while the route, or its pool, cannot work and its clients are refused, else 0.",
            ("listener", "route"),
            source="admin",
        ),
        Family(
            "relay_backend_up",
            "gauge",
            "1 when the backend is used, 0 while it is left alone after a failure, its health checks fail, or it or its pool is disabled.",
            ("pool", "backend"),
            source="admin",
        ),
        Family(
            "relay_health_checks_total",
            "counter",
            "Health checks ended, by result: ok, connect_failed, handshake_failed, http_failed.",
            ("pool", "backend", "result"),
        ),
        Family(
            "relay_backend_certificate_not_after_timestamp_seconds",
            "gauge",
            "When the certificate that a health check saw last expires, Unix time.",
            ("pool", "backend"),
            source="admin",
        ),
        Family(
            "relay_certificate_not_after_timestamp_seconds",
            "gauge",
            "When a configured certificate expires, Unix time.",
            ("file", "subject"),
            source="admin",
        ),
        Family(
            "relay_worker_restarts_total",
            "counter",
            "Workers that ended unasked and were replaced.",
        ),
        Family(
            "relay_worker_cpu_seconds_total",
            "counter",
            "CPU time of the workers of a slot, user and system.",
            ("slot",),
            source="admin",
        ),
        Family(
            "relay_worker_resident_bytes",
            "gauge",
            "Resident memory of the slot's worker, shared pages included.",
            ("slot",),
            source="admin",
        ),
        Family(
            "relay_access_log_dropped_total",
            "counter",
            "Access-log lines dropped because their destination did not take them.",
        ),
        Family(
            "relay_messages_dropped_total",
            "counter",
            "The relay's own messages dropped because stderr did not take them.",
        ),
        Family(
            "relay_build_info",
            "gauge",
            "Always 1; the labels say what runs.",
            ("version", "openssl"),
            source="admin",
        ),
        Family(
            "relay_config_generation",
            "gauge",
            "Number of the configuration in use; 1 at start, one more after every reload.",
            source="admin",
        ),
    )
}

# Cells the processes use among themselves; they have no metric of their own.
SLOT_CPU_US = (
    "slot_cpu_us"  # CPU microseconds of a slot's dead workers, label slot; in the totals only
)
# The rest has the labels pool, backend and is shared by all generations: plain stores, no additions.
RETRY_UNTIL_MS = (
    "retry_until_ms"  # CLOCK_MONOTONIC milliseconds; by any worker whose attempt failed
)
TRIAL_UNTIL_MS = "trial_until_ms"  # CLOCK_MONOTONIC milliseconds; by the worker whose session tries a failed backend
HEALTH = "health"  # 0 not checked, 1 up, 2 down; by the checker
HEALTH_UNKNOWN, HEALTH_UP, HEALTH_DOWN = range(3)
BACKEND_NOT_AFTER_S = "backend_not_after_s"  # Unix time at which the certificate it last showed expires, 0 not seen; by the checker
RETURNED_AT_MS = (
    "returned_at_ms"  # CLOCK_MONOTONIC milliseconds at which it came back, 0 never; by the checker
)
MODE_OVERRIDE = "mode_override"  # 0 as configured, 1 enabled, 2 drain, 3 disabled, 4 standby; by the supervisor, for an operator
WEIGHT_OVERRIDE = "weight_override"  # 0 as configured; by the supervisor, for an operator
# Without labels: grow by one after every change of the cells above, so that a worker looks at one cell to see that nothing has changed.
HEALTH_VERSION = "health_version"  # by the checker
OVERRIDE_VERSION = "override_version"  # by the supervisor
# Host name and a number from 0 to RESOLVED_CELLS - 1; see `shared.addresses`. Too many to be published, and nobody asks.
RESOLVED = "resolved"  # by the checker
MAX_ADDRESSES = 8
RESOLVED_CELLS = 2 + 3 * MAX_ADDRESSES


class Series(NamedTuple):
    """One cell: a metric name with label values in the family's order; histograms have one per bucket (`le`), then `sum`."""

    name: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kind:
    """Entities that are counted alike, such as all backends, and which series each of them has.

    `key` is how many labels name one thing. The series here have only the labels that follow these.
    Series of one tuple have consecutive cells in its order.
    """

    name: str
    key: int
    gauges: tuple[Series, ...] = ()  # in each worker's row; they end with the worker
    counters: tuple[
        Series, ...
    ] = ()  # in each worker's row; folded into the totals when the worker has ended
    states: tuple[Series, ...] = ()  # one cell for all processes and generations


def _of_the_relay() -> Iterator[Series]:
    yield Series("relay_access_log_dropped_total")
    yield Series("relay_messages_dropped_total")
    for reason in Reason:
        yield Series("relay_sessions_closed_total", (reason.value,))
    for side in Side:
        for result in (HANDSHAKE_OK, HANDSHAKE_RESUMED, *(reason.value for reason in Reason)):
            yield Series("relay_handshakes_total", (side.value, result))
        # Consecutive cells: bucket i is cell base + i, +Inf comes after the last bound, the sum (microseconds) after that.
        for bound in (*map(str, HANDSHAKE_BUCKETS_S), "+Inf", "sum"):
            yield Series("relay_handshake_seconds", (side.value, bound))


RELAY = Kind(
    "relay",
    0,
    (Series("relay_connections_active"),),
    tuple(_of_the_relay()),
    (Series(HEALTH_VERSION), Series(OVERRIDE_VERSION)),
)
SUPERVISOR = Kind(
    "supervisor", 0, counters=(Series("relay_worker_restarts_total"),)
)  # in the totals only
ROUTE = Kind("route", 2, counters=(Series("relay_connections_total"),))
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
SLOT = Kind("slot", 1, counters=(Series(SLOT_CPU_US),))
KINDS: dict[str, Kind] = {
    kind.name: kind for kind in (RELAY, SUPERVISOR, ROUTE, BACKEND, CHECKED_BACKEND, HOST, SLOT)
}

Key = tuple[str, ...]
"""The labels that name one thing of a kind."""
Entities = dict[str, list[Key]]
"""By the name of their kind, everything that is counted."""


def hosts_of(config: Config) -> dict[str, float]:
    """The host names that backends' addresses are, each with how often to look it up, in seconds."""
    found: dict[str, float] = {}
    for pool in config.pool.values():
        for backend in pool.backend:
            host, _ = parse_address(backend.address)
            if not is_ip(host):
                found[host] = min(pool.resolve_s, found.get(host, pool.resolve_s))
    return found


def entities_of(config: Config) -> Entities:
    """Everything that a worker or the checker with this configuration may count, each exactly once."""
    return {
        RELAY.name: [()],
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
    }
