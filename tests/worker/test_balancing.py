"""Which backend a connection gets.

By load, limits, standby, weights, slow start, identity, and operators' overrides.
"""

import socket
import time
from collections import Counter

import pytest

from relay.demo.ca import LeafSpec
from relay.shared.entities import (
    HEALTH,
    HEALTH_VERSION,
    MODE_OVERRIDE,
    OVERRIDE_VERSION,
    RETRY_UNTIL_MS,
    RETURNED_AT_MS,
    WEIGHT_OVERRIDE,
    Series,
)
from relay.shared.scoreboard import SHARED_ROW, monotonic_ms
from tests.support.backend import name_itself
from tests.support.peer import Peer
from tests.support.worker import RunningWorker, client_context, pool_toml, route_toml, wait_until

UNKNOWN, UP, DOWN = range(3)
DRAIN, DISABLED = 2, 3


def ask(client):
    client.send(b"?\n")
    return client.receive(3)[:2].decode()


def change(relay, name, backend, value):
    """Change a state cell, then the version, as the checker and the supervisor do."""
    shared = relay.scoreboard.row(SHARED_ROW)
    shared[relay.layout.cell(name, "main", backend)] = value
    shared[
        relay.layout.cell(OVERRIDE_VERSION if name.endswith("override") else HEALTH_VERSION)
    ] += 1


@pytest.fixture
def backends(backend):
    def make(count):
        return [backend(name_itself(f"b{i}")) for i in range(1, count + 1)]

    return make


@pytest.fixture
def run(tmp_path, pki, stack):
    """Start a worker; `each` has more keys of the backends b1, b2, …"""

    def run(addresses, pool="", each=(), worker=None):
        toml = (
            '[[listener]]\nname = "https"\nlisten = ["127.0.0.1:0"]\n'
            f"{route_toml(pki)}\n{pool_toml(pki, addresses, extra=pool)}"
        )
        for number, keys in enumerate(each, 1):
            toml = toml.replace(f'route = "b{number}"\n', f'route = "b{number}"\n{keys}\n')
        running = RunningWorker(tmp_path, toml, beside=worker)
        stack.callback(running.close)
        return running

    return run


def test_least_connections_counts_those_of_all_workers(run, backends, call):
    addresses = [each.address for each in backends(2)]
    first = run(addresses, 'balance = "least_connections"')
    second = run(addresses, 'balance = "least_connections"', worker=first)
    held = [call(first) for _ in range(4)]
    assert Counter(ask(client) for client in held) == {"b1": 2, "b2": 2}
    leaving = [client for client in held if ask(client) == "b2"]
    for client in leaving:
        client.close()
    wait_until(
        lambda: first.value("relay_backend_connections_active", "main", "b2") == 0, "b2 to be idle"
    )
    # The second worker has no connections, but knows of the first one's.
    more = [call(second) for _ in range(2)]
    assert [ask(client) for client in more] == ["b2", "b2"]


def test_random_reaches_all_backends_and_prefers_the_idle_one(run, backends, call):
    relay = run([each.address for each in backends(2)], 'balance = "random"')
    held = [call(relay) for _ in range(12)]
    assert Counter(ask(client) for client in held) == {"b1": 6, "b2": 6}, (
        "with two backends the better of two is the better one"
    )


def test_weights_are_kept_and_an_operators_weight_replaces_them(run, backends, call):
    relay = run([each.address for each in backends(2)], each=("weight = 3", ""))
    assert Counter(ask(call(relay)) for _ in range(8)) == {"b1": 6, "b2": 2}
    change(relay, WEIGHT_OVERRIDE, "b1", 1)
    assert Counter(ask(call(relay)) for _ in range(8)) == {"b1": 4, "b2": 4}


def test_a_standby_backend_is_used_while_no_other_is_left(run, backends, call):
    relay = run([each.address for each in backends(2)], each=("", "standby = true"))
    assert {ask(call(relay)) for _ in range(4)} == {"b1"}
    change(relay, HEALTH, "b1", DOWN)
    assert {ask(call(relay)) for _ in range(4)} == {"b2"}
    change(relay, HEALTH, "b1", UP)
    assert {ask(call(relay)) for _ in range(4)} == {"b1"}


def test_when_every_backend_is_down_they_are_tried_anyway(run, backends, call):
    relay = run([each.address for each in backends(2)])
    for name in ("b1", "b2"):
        change(relay, HEALTH, name, DOWN)
    assert {ask(call(relay)) for _ in range(4)} == {"b1", "b2"}


def test_a_full_backend_gets_no_more_clients(run, backends, call):
    """They go to the next one; a full pool refuses them and says why."""
    relay = run(
        [each.address for each in backends(2)],
        'sticky = "source"',
        each=("max_connections = 2", "max_connections = 2"),
    )
    held = [call(relay) for _ in range(4)]
    assert Counter(ask(client) for client in held) == {"b1": 2, "b2": 2}
    assert call(relay).end()[0] == b""
    record = relay.record()
    assert (record["reason"], record["side"]) == ("no_backend", "outbound")
    assert "max_connections" in record["detail"]
    held[0].close()
    relay.record(1)
    assert ask(call(relay)) in {"b1", "b2"}


def test_two_workers_keep_one_limit(run, backends, call):
    addresses = [each.address for each in backends(2)]
    settings = {"pool": 'sticky = "source"', "each": ("max_connections = 1", "max_connections = 1")}
    first = run(addresses, **settings)
    second = run(addresses, **settings, worker=first)
    held = [call(first), call(second)]
    assert {ask(client) for client in held} == {"b1", "b2"}


@pytest.mark.parametrize("mode", [DRAIN, DISABLED])
def test_a_drained_backend_keeps_its_sessions_only(run, backends, call, mode):
    relay = run([each.address for each in backends(2)])
    held = [call(relay) for _ in range(2)]
    assert {ask(client) for client in held} == {"b1", "b2"}
    change(relay, MODE_OVERRIDE, "b1", mode)
    assert {ask(call(relay)) for _ in range(4)} == {"b2"}
    assert {ask(client) for client in held} == {"b1", "b2"}
    change(relay, MODE_OVERRIDE, "b1", 0)
    assert {ask(call(relay)) for _ in range(4)} == {"b1", "b2"}


def test_a_backend_that_came_back_begins_with_few_clients(run, backends, call):
    slow_start_ms = min(
        3_600_000, monotonic_ms() - 1
    )  # the monotonic clock starts at boot, which may be less than an hour ago
    relay = run([each.address for each in backends(2)], f"slow_start_s = {slow_start_ms / 1000}")
    change(relay, RETURNED_AT_MS, "b1", monotonic_ms())
    assert Counter(ask(call(relay)) for _ in range(30))["b1"] <= 2
    change(relay, RETURNED_AT_MS, "b1", monotonic_ms() - slow_start_ms)
    assert Counter(ask(call(relay)) for _ in range(30)) == {"b1": 15, "b2": 15}


CHECKED = "health = { interval_s = 3600 }\n"


def test_on_down_close_ends_the_sessions_of_a_backend(run, backends, call):
    relay = run([each.address for each in backends(2)], CHECKED + 'on_down = "close"')
    held = {ask(client): client for client in (call(relay), call(relay))}
    change(relay, HEALTH, "b1", DOWN)
    assert held["b1"].end() == (b"", "fin"), "not like an end that the backend has said"
    record = relay.record()
    assert (record["backend"], record["reason"], record["side"]) == (
        "b1",
        "backend_down",
        "outbound",
    )
    assert ask(held["b2"]) == "b2"
    # If no other backend is left, one that is down is tried, and keeps its sessions.
    change(relay, HEALTH, "b2", DOWN)
    assert held["b2"].end()[1] == "fin"
    client = call(relay)
    assert ask(client) in held
    relay.let_it_turn(2)
    assert ask(client) in held


def test_sessions_of_a_backend_that_goes_down_go_on_otherwise(run, backends, call):
    relay = run([each.address for each in backends(2)], CHECKED)
    held = {ask(client): client for client in (call(relay), call(relay))}
    change(relay, HEALTH, "b1", DOWN)
    relay.let_it_turn(2)
    assert ask(held["b1"]) == "b1"


def test_without_checks_slow_start_begins_at_the_first_answer(run, backends, call):
    relay = run([each.address for each in backends(2)], "slow_start_s = 3600\nretry_s = 1")
    shared, retry = (
        relay.scoreboard.row(SHARED_ROW),
        relay.layout.cell(RETRY_UNTIL_MS, "main", "b1"),
    )
    shared[retry] = monotonic_ms() - 1
    assert wait_until(lambda: ask(call(relay)) == "b1", "b1 to be tried again")
    wait_until(lambda: shared[retry] == 0, "the failure to be forgotten")
    assert shared[relay.layout.cell(RETURNED_AT_MS, "main", "b1")] > 0
    assert Counter(ask(call(relay)) for _ in range(30))["b1"] <= 2


def test_an_answer_on_an_older_connection_clears_no_failure(run, door, call):
    back = door()
    relay = run([back.address], "retry_s = 3600")
    early, server = call(relay), back.accept()
    shared, retry = (
        relay.scoreboard.row(SHARED_ROW),
        relay.layout.cell(RETRY_UNTIL_MS, "main", "b1"),
    )
    time.sleep(0.002)  # the clock's tick
    shared[retry] = monotonic_ms() + 3_600_000
    server.send(b"hello")
    assert early.receive(5) == b"hello"
    assert shared[retry] > 0
    late, server = call(relay), back.accept()
    server.send(b"hello")
    assert late.receive(5) == b"hello"
    wait_until(
        lambda: shared[retry] == 0, "the worker to have noticed the answer that it has passed on"
    )


def test_a_client_is_identified_by_its_key(run, backends, call, pki):
    """Whatever the client's certificate and address are."""
    relay = run([each.address for each in backends(3)], 'sticky = "identity"')
    served = {}
    for number in range(12):
        first = pki.authority.issue(LeafSpec(f"client {number}", purposes=("client",)))
        context = client_context(pki, pki.write(first))
        served[number] = {ask(call(relay, context=context)) for _ in range(2)}
    assert all(len(names) == 1 for names in served.values())
    assert len(set.union(*served.values())) > 1, "they come from one address, and are told apart"


def test_a_network_stays_together_when_its_prefix_says_so(run, backends, stack, pki):
    relay = run([each.address for each in backends(3)], 'sticky = "source"\nsource_prefix_v4 = 24')
    context = client_context(pki, pki.client)
    names = set()
    for host in range(1, 13):
        sock = socket.create_connection(
            ("127.0.0.1", relay.port), 15, source_address=(f"127.0.0.{host}", 0)
        )
        stack.callback(sock.close)
        names.add(ask(Peer(sock, context, server_side=False, name="app.example.com")))
    assert len(names) == 1


def test_why_a_backend_was_chosen_is_counted(run, backends, call):
    relay = run([each.address for each in backends(1)], 'sticky = "identity"')
    assert ask(call(relay)) == "b1"
    assert (
        relay.snapshot().values[Series("relay_backend_selected_total", ("main", "b1", "sticky"))]
        == 1
    )
