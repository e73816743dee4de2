"""What the scoreboard counts is what a scraper reads."""

from __future__ import annotations

import subprocess

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from relay.admin.metrics import RelayCollector
from relay.config.model import Config
from relay.config.pool_model import Health
from relay.errors import Reason
from relay.shared.catalogue import FAMILIES
from relay.shared.entities import (
    BACKEND_NOT_AFTER_S,
    HEALTH,
    HEALTH_DOWN,
    HEALTH_UP,
    RETRY_UNTIL_MS,
    SLOT_CPU_US,
    entities_of,
)
from relay.shared.label_values import HANDSHAKE_BUCKETS_S
from relay.shared.route_series import MOST_ROUTES_WITH_ZEROS
from relay.shared.scoreboard import (
    CPU_US,
    PHASE,
    PHASE_SERVING,
    RESIDENT_BYTES,
    SHARED_ROW,
    monotonic_ms,
)
from tests.support.programs import program
from tests.support.scoreboard import CONFIG, Board, open_scoreboards

CHECKED = CONFIG.model_copy(
    update={
        "pool": {
            name: pool.model_copy(update={"health": Health()}) for name, pool in CONFIG.pool.items()
        }
    }
)


LABEL = "app.example.com"
ROUTE = ("https", LABEL)


@pytest.fixture
def world():
    return Board()


@pytest.fixture
def registry(world):
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RelayCollector(world.scoreboards))
    return registry


def serve(world, slot, cpu_us=0, resident_bytes=0):
    """A worker's row, as the worker fills it."""
    row = world.scoreboard.lease(slot)
    cells = world.scoreboard.row(row)
    cells[PHASE], cells[CPU_US], cells[RESIDENT_BYTES] = PHASE_SERVING, cpu_us, resident_bytes
    return row


def test_every_family_is_exposed_with_its_type_and_help(registry):
    text = generate_latest(registry).decode()
    for family in FAMILIES.values():
        assert f"# TYPE {family.name} {family.kind}" in text
        assert f"# HELP {family.name} {family.help}" in text
    assert "_total_total" not in text
    assert SLOT_CPU_US not in text
    assert RETRY_UNTIL_MS not in text


def test_promtool_finds_nothing_to_say(world, registry):
    promtool = program("promtool")
    world.count(world.scoreboard.lease(0), "relay_handshakes_total", *ROUTE, "inbound", "expired")
    checked = subprocess.run(
        [promtool, "check", "metrics"],
        input=generate_latest(registry),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_counts_of_all_workers_and_of_the_dead_are_added_up(world, registry):
    labels = ("https", "app.example.com")
    first, second = world.scoreboard.lease(0), world.scoreboard.lease(1)
    world.count(first, "relay_connections_total", *labels, by=5)
    world.count(second, "relay_connections_total", *labels, by=7)
    world.count(first, "relay_connections_active", by=2)
    world.count(second, "relay_connections_active", by=3)
    world.scoreboards.fold(world.scoreboard, first)
    assert (
        registry.get_sample_value(
            "relay_connections_total", {"listener": "https", "route": "app.example.com"}
        )
        == 12
    )
    assert registry.get_sample_value("relay_connections_active") == 3


def test_a_histogram_bucket_contains_the_buckets_below_it(world, registry):
    row = world.scoreboard.lease(0)
    for bound in HANDSHAKE_BUCKETS_S[:3]:
        world.count(row, "relay_handshake_seconds", "inbound", str(bound), by=2)
    world.count(row, "relay_handshake_seconds", "inbound", "+Inf")
    world.count(row, "relay_handshake_seconds", "inbound", "sum", by=12_500_000)
    values = [
        registry.get_sample_value(
            "relay_handshake_seconds_bucket", {"side": "inbound", "le": str(bound)}
        )
        for bound in (*HANDSHAKE_BUCKETS_S, "+Inf")
    ]
    assert values == [2.0, 4.0] + [6.0] * (len(HANDSHAKE_BUCKETS_S) - 2) + [7.0]
    assert registry.get_sample_value("relay_handshake_seconds_count", {"side": "inbound"}) == 7
    assert registry.get_sample_value("relay_handshake_seconds_sum", {"side": "inbound"}) == 12.5


def test_a_failed_backend_is_down_until_its_retry_is_due(world, registry):
    shared = world.scoreboard.row(SHARED_ROW)
    shared[world.layout.cell(RETRY_UNTIL_MS, "httpslb", "worker1")] = monotonic_ms() + 60_000
    shared[world.layout.cell(RETRY_UNTIL_MS, "httpslb", "worker2")] = monotonic_ms() - 1

    def up(backend):
        return registry.get_sample_value(
            "relay_backend_up", {"pool": "httpslb", "backend": backend}
        )

    assert (up("worker1"), up("worker2")) == (0, 1)
    entities = entities_of(CONFIG)
    entities["backend"].remove(("httpslb", "worker2"))
    world.scoreboards.begin(4, entities, 1)
    world.publish(generation=4)
    assert (up("worker1"), up("worker2")) == (0, None)


def test_a_backend_whose_checks_fail_is_down(world, registry):
    shared = world.scoreboard.row(SHARED_ROW)
    shared[world.layout.cell(HEALTH, "httpslb", "worker1")] = HEALTH_DOWN
    shared[world.layout.cell(HEALTH, "httpslb", "worker2")] = HEALTH_UP
    shared[world.layout.cell("health_version")] = 2
    up = {
        (s.labels["pool"], s.labels["backend"]): s.value
        for family in registry.collect()
        for s in family.samples
        if s.name == "relay_backend_up"
    }
    assert up == {("httpslb", "worker1"): 0, ("httpslb", "worker2"): 1}


def test_the_certificate_that_a_check_saw_has_its_end_shown():
    world = Board(config=CHECKED)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RelayCollector(world.scoreboards))
    world.scoreboard.row(SHARED_ROW)[
        world.layout.cell(BACKEND_NOT_AFTER_S, "httpslb", "worker1")
    ] = 1_900_000_000
    name = "relay_backend_certificate_not_after_timestamp_seconds"
    assert (
        registry.get_sample_value(name, {"pool": "httpslb", "backend": "worker1"}) == 1_900_000_000
    )
    assert registry.get_sample_value(name, {"pool": "httpslb", "backend": "worker2"}) is None


def samples_of(registry, name):
    """The values by (route, ..., reason or result)."""
    return {
        tuple(sample.labels[label] for label in FAMILIES[name].labels[1:]): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == name
    }


def test_each_reason_is_there_before_it_occurs(world, registry):
    """Otherwise a rule would not see the first one."""
    row = world.scoreboard.lease(0)
    world.count(row, "relay_sessions_closed_total", *ROUTE, Reason.UNKNOWN_CA)
    world.count(row, "relay_handshakes_total", *ROUTE, "inbound", Reason.UNKNOWN_CA, by=2)
    closed = samples_of(registry, "relay_sessions_closed_total")
    handshakes = samples_of(registry, "relay_handshakes_total")
    assert closed.pop((LABEL, "unknown_ca")) == 1
    assert handshakes.pop((LABEL, "inbound", "unknown_ca")) == 2
    assert not any(closed.values())
    assert not any(handshakes.values())
    assert {reason for _, reason in closed} | {"unknown_ca"} == set(Reason)
    assert (LABEL, "outbound", "backend_expired") in handshakes
    assert ("none", "inbound", "unknown_sni") in handshakes
    impossible = {(LABEL, "unknown_sni"), ("none", "finished")}
    assert not impossible & set(closed)
    assert (LABEL, "outbound", "no_certificate") not in handshakes


def test_with_many_routes_the_zeros_are_there_once():
    count = MOST_ROUTES_WITH_ZEROS
    routes = [{"sni": [f"{number}.example.com"], "pool": "httpslb"} for number in range(count)]
    document = CONFIG.model_dump(mode="json")
    document["listener"][0]["route"] = routes
    world = Board(config=Config.model_validate(document))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RelayCollector(world.scoreboards))
    row = world.scoreboard.lease(0)
    world.count(row, "relay_sessions_closed_total", "https", "7.example.com", "truncated")
    closed = samples_of(registry, "relay_sessions_closed_total")
    assert {reason for route, reason in closed if route == "none"} == set(Reason)
    assert closed["7.example.com", "truncated"] == 1
    always = {
        (f"{number}.example.com", reason)
        for number in range(count)
        for reason in ("finished", "internal_error")
    }
    assert {key for key in closed if key[0] != "none"} == always | {("7.example.com", "truncated")}


def test_what_the_supervisor_publishes_is_shown(world, registry):
    world.publish(
        certificates=[
            {"file": "a.pem", "subject": "CN=a", "not_after": end} for end in (20.0, 10.0)
        ]
    )
    for _ in range(4):
        world.scoreboards.count("relay_worker_restarts_total")
    assert (
        registry.get_sample_value(
            "relay_build_info", {"version": "9.8.7", "openssl": "OpenSSL 4.0.3"}
        )
        == 1
    )
    assert registry.get_sample_value("relay_config_generation") == 3
    assert (
        registry.get_sample_value(
            "relay_certificate_not_after_timestamp_seconds", {"file": "a.pem", "subject": "CN=a"}
        )
        == 10
    )
    assert registry.get_sample_value("relay_worker_restarts_total") == 4


def test_cpu_and_memory_of_a_slot_include_all_its_living_workers(world, registry):
    serve(world, 0, 2_500_000, 7_000_000)
    serve(world, 0, 1_500_000, 5_000_000)
    assert registry.get_sample_value("relay_worker_resident_bytes", {"slot": "0"}) == 12_000_000
    assert registry.get_sample_value("relay_worker_cpu_seconds_total", {"slot": "0"}) == 4
    assert registry.get_sample_value("relay_worker_cpu_seconds_total", {"slot": "1"}) == 0
    assert registry.get_sample_value("relay_worker_resident_bytes", {"slot": "1"}) == 0
    world.publish(slots=1)  # the other one is spare, and nobody has used it
    assert registry.get_sample_value("relay_worker_cpu_seconds_total", {"slot": "1"}) is None


def test_cpu_time_never_goes_back_when_a_worker_dies(world, registry):
    def cpu():
        return registry.get_sample_value("relay_worker_cpu_seconds_total", {"slot": "0"})

    row = serve(world, 0, 1_250_000)
    assert cpu() == 1.25
    world.scoreboard.row(row)[CPU_US] = 0
    assert cpu() == 1.25
    world.scoreboards.fold(world.scoreboard, row, cpu_us=1_250_000 + 5_000_000)
    assert cpu() == pytest.approx(6.25, abs=0.001)


def test_a_worker_that_says_nonsense_of_itself_takes_nothing_away(world, registry):
    serve(world, 0, 2_000_000, 5_000_000)
    serve(world, 0, -(1 << 62), -1)
    assert registry.get_sample_value("relay_worker_cpu_seconds_total", {"slot": "0"}) == 2
    assert registry.get_sample_value("relay_worker_resident_bytes", {"slot": "0"}) == 5_000_000


def test_a_scoreboard_without_a_generation_yet_is_readable():
    fresh = open_scoreboards()
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RelayCollector(fresh))
    assert registry.get_sample_value("relay_config_generation") == 0
