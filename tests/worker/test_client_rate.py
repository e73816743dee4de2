"""per_client_rate: new connections per second of one client address, in workers."""

import contextlib
import socket

import pytest

from tests.support.peer import PATIENCE_S
from tests.support.worker import client_context, connect, receive, wait_until

SLOW = "per_client_rate = 0.01\nper_client_burst = 3"


def refusals(relay):
    return relay.value("relay_sessions_closed_total", "per_client_rate")


@pytest.fixture
def knock(stack):
    """Connect once to each relay from this address; how many relays refuse it."""

    def knock(relays, host="127.0.0.1"):
        first = relays[0]  # its scoreboard is that of all
        before = first.value("relay_connections_active") + refusals(first)
        refused = refusals(first)
        for number, relay in enumerate(relays, 1):
            sock = stack.enter_context(
                socket.create_connection(
                    ("127.0.0.1", relay.port), PATIENCE_S, source_address=(host, 0)
                )
            )
            wait_until(
                lambda number=number: (
                    first.value("relay_connections_active") + refusals(first) >= before + number
                ),
                "the relay to accept",
            )
            if refusals(first) > refused:
                with contextlib.suppress(ConnectionResetError):
                    assert sock.recv(1) == b""
        return refusals(first) - refused

    return knock


def test_a_client_above_its_rate_is_refused_before_its_hello(start, backend, knock):
    relay = start([backend().address], listener=SLOW)
    assert knock([relay] * 3) == 0
    assert knock([relay] * 2) == 2
    assert knock([relay], "127.0.0.2") == 0
    refused = [relay.record(0), relay.record(1)]
    assert [one["reason"] for one in refused] == ["per_client_rate"] * 2
    assert refused[0]["side"] == "inbound"
    assert "0.01 connections per second, burst 3" in refused[0]["detail"]
    assert "per_client_burst" in refused[0]["remedy"]
    assert relay.value("relay_sessions_closed_total", "per_client_rate") == 2
    assert relay.value("relay_handshakes_total", "inbound", "per_client_rate") == 2


def test_sessions_that_are_open_are_not_touched(start, backend, pki, knock):
    relay = start([backend().address], listener=SLOW)
    with connect(relay.port, client_context(pki, pki.client)) as client:
        assert knock([relay] * 2) == 0
        assert knock([relay] * 2) == 2
        client.sendall(b"hello")
        assert receive(client, 5) == b"hello"


def test_the_rate_is_over_all_workers_of_a_relay(start, backend, knock):
    first = start([backend().address], listener=SLOW)
    second = start([backend().address], listener=SLOW, worker=first)
    assert knock([first, second, first]) == 0
    assert knock([first, second]) == 2


@pytest.mark.parametrize(("prefix", "refused"), [(24, True), (32, False)])
def test_a_network_can_be_one_client(start, backend, knock, prefix, refused):
    relay = start([backend().address], listener=f"{SLOW}\nper_client_prefix_v4 = {prefix}")
    assert [knock([relay], f"127.0.0.{number}") for number in range(1, 4)] == [0] * 3
    assert knock([relay], "127.0.0.9") == refused
    assert knock([relay], "127.0.1.9") == 0


def test_behind_a_balancer_the_headers_address_counts(start, backend, stack):
    settings = f'{SLOW}\naccept_proxy = {{ from = ["127.0.0.1"] }}'
    relay = start([backend().address], listener=settings)
    for client in ("192.0.2.1", "192.0.2.2"):
        for _ in range(4):
            sock = stack.enter_context(
                socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S)
            )
            sock.sendall(f"PROXY TCP4 {client} 198.51.100.9 1 2\r\n".encode())
    records = wait_until(lambda: len(relay.records()) == 2 and relay.records(), "two refusals")
    assert [one["reason"] for one in records] == ["per_client_rate"] * 2
    assert {one["client"] for one in records} == {"192.0.2.1:1", "192.0.2.2:1"}
    for _ in range(6):
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S))
        sock.sendall(b"PROXY UNKNOWN\r\n")
    relay.let_it_turn()
    assert len(relay.records()) == 2, "a connection without an address has no limit per client"
