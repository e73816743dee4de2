"""Half-open clients: their number is bounded, and the stalest is closed first."""

import contextlib
import ssl

import psutil
import pytest

from bench.hellos import make_hello
from bench.strangers import Strangers, StrangersChild
from relay.worker.admission import MOST_PROGRESS, address_key
from relay.worker.lingering_close import LingeringCloses
from relay.worker.loop import Loop
from tests.support import ready
from tests.support.fragments import FragmentingClient, split_records
from tests.support.handshakes import tcp_pair
from tests.support.peer import dial
from tests.support.strangers import NAME, STRANGERS, knock, last_flight
from tests.support.worker import client_context, wait_until

PATIENT = "[timeouts]\nhello_s = 600\nhandshake_s = 600\n"
DRIP = make_hello(NAME)


@pytest.fixture
def stranger(pki, stack):
    """A client that stops half open; see STRANGERS."""

    def connect(relay, kind="silent", host="127.0.0.1"):
        return stack.enter_context(STRANGERS[kind](relay.port, pki, host))

    return connect


@pytest.fixture
def visit(stack):
    """A connection that has sent these bytes."""

    def connect(relay, data=b"", host="127.0.0.1"):
        return stack.enter_context(knock(relay.port, data, host))

    return connect


def is_open(sock):
    """No FIN and no reset has come."""
    while ready.select([sock], [], 0)[0]:
        try:
            if not sock.recv(65536):
                return False
        except OSError:
            return False
    return True


def read_to_end(sock):
    with contextlib.suppress(OSError):
        while sock.recv(65536):
            pass


def half_open(relay, count):
    """Wait until this many connections are open."""
    wait_until(lambda: relay.value("relay_connections_active") == count, f"{count} connections")


def evicted(relay, reason="half_open_limit"):
    return relay.value("relay_sessions_closed_total", reason)


def check_service(client, server):
    client.send(b"served?")
    assert server.receive(7) == b"served?"
    server.send(b"yes")
    assert client.receive(3) == b"yes"


@pytest.mark.parametrize("kind", STRANGERS)
def test_half_open_clients_take_no_place_from_finishing_ones(start, door, pair, stranger, kind):
    """The bound holds at whatever step they stop, no client waits, sessions stay."""
    back = door()
    relay = start([back.address], top=f"{PATIENT}[limits]\nhandshakes = 4")
    early = pair(relay, back)
    held = [stranger(relay, kind) for _ in range(12)]
    wait_until(lambda: evicted(relay) == 8, "eight evictions")
    assert relay.value("relay_connections_active") == 1 + 4
    late = pair(relay, back)
    check_service(*late)
    check_service(*early)
    for sock in held[:8]:
        read_to_end(sock)
    record = relay.record()
    assert (record["reason"], record["side"]) == ("half_open_limit", "inbound")
    assert "limits.handshakes" in record["remedy"]
    assert "4 connections were half open" in record["detail"]
    assert relay.value("relay_handshakes_total", "inbound", "half_open_limit") >= 8


def test_the_one_without_progress_for_longest_goes_first(start, door, visit, pki):
    relay = start([door().address], top=f"{PATIENT}[limits]\nhandshakes = 3")
    first, second = visit(relay, DRIP[:50]), visit(relay)
    flight = visit(relay)
    rest = b"".join(last_flight(flight, pki, ssl.TLSVersion.TLSv1_3))
    first.sendall(DRIP[50:])
    assert first.recv(1), "the relay's answer"
    visit(relay)
    read_to_end(second)
    assert is_open(first)
    assert is_open(flight)
    visit(relay)
    read_to_end(flight)
    assert is_open(first)
    assert rest
    assert evicted(relay) == 2


def test_a_client_that_drips_its_handshake_soon_counts_as_stale(start, door, visit, pki, tmp_path):
    relay = start([door().address], top=f"{PATIENT}[limits]\nhandshakes = 2")
    context = client_context(pki, pki.client, version=ssl.TLSVersion.TLSv1_2)
    client = FragmentingClient(visit(relay), context, NAME, 1, tmp_path / "keys")
    records = split_records(client.flight)
    worker = psutil.Process(relay.pid)
    for record in records[: 2 * MOST_PROGRESS]:
        client.sock.sendall(record)
        wait_until(lambda: worker.status() == psutil.STATUS_SLEEPING, "it to be read")
    silent = visit(relay)
    half_open(relay, 2)
    client.sock.sendall(records[2 * MOST_PROGRESS])
    relay.let_it_turn()
    visit(relay)
    read_to_end(client.sock)
    assert is_open(silent)


def test_a_dripping_client_is_closed_after_handshake_s(start, door, visit, pki, tmp_path):
    relay = start([door().address], top="[timeouts]\nhandshake_s = 0.5")
    context = client_context(pki, pki.client, version=ssl.TLSVersion.TLSv1_2)
    client = FragmentingClient(visit(relay), context, NAME, 1, tmp_path / "keys")
    with contextlib.suppress(ConnectionError):
        for each in split_records(client.flight):
            client.sock.sendall(each)
            if ready.select([client.sock], [], 0.02)[0]:
                break
    record = relay.record()
    assert record["reason"] == "handshake_timeout"
    assert 0.5 <= record["duration_s"] < 5


@pytest.mark.serial  # a worker without a CPU does not accept 500 connections a second
@pytest.mark.parametrize("hello", ["retry", "silent", "whole"])
def test_a_flood_keeps_no_real_client_out(start, door, pair, hello):
    """Thousands of strangers, many more than the limit, while clients come and go."""
    back = door()
    relay = start([back.address], top=f"{PATIENT}[limits]\nhandshakes = 300")
    running = pair(relay, back)
    with StrangersChild(Strangers("127.0.0.1", relay.port, NAME, hello, 500.0, 60.0)) as crowd:
        crowd.go()
        wait_until(lambda: evicted(relay) > 50, "the places to be taken")
        for _ in range(10):
            client, server = pair(relay, back)
            check_service(client, server)
            check_service(*running)
            client.close()
            server.close()
        crowd.stop()
    assert relay.value("relay_handshakes_total", "inbound", "ok") == 11
    assert relay.value("relay_sessions_closed_total", "half_open_per_client") == 0


def test_waiting_for_a_backend_takes_no_place(start, door, call, stranger):
    back = door()
    relay = start([back.address], top=f"{PATIENT}[limits]\nhandshakes = 1")
    clients = []
    for number in range(1, 4):
        clients.append(call(relay))  # its backend has not answered yet
        wait_until(
            lambda number=number: relay.value("relay_handshakes_total", "inbound", "ok") == number,
            "its handshake to be judged",
        )
    stranger(relay)
    for number, client in enumerate(clients):
        client.send(b"%d" % number)
    assert sorted(back.accept().receive(1) for _ in clients) == [b"0", b"1", b"2"]
    assert evicted(relay) == 0


def test_a_failed_handshake_gives_its_place_back(start, door, pair, visit):
    back = door()
    relay = start([back.address], top="[limits]\nhandshakes = 1\n[timeouts]\nhandshake_s = 0.3")
    for _ in range(3):
        read_to_end(visit(relay, DRIP))
    closed = "relay_sessions_closed_total", "handshake_timeout"
    wait_until(lambda: relay.value(*closed) == 3, "three timeouts")
    check_service(*pair(relay, back))
    assert evicted(relay) == 0


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_stranger_pushes_out_its_own_connections_first(start, door, stranger, pki, kind):
    back = door()
    relay = start(
        [back.address], top=f"{PATIENT}[limits]\nhandshakes = 5\nhalf_open_per_client = 3"
    )
    slow = stranger(relay, host="127.0.0.2")
    rest = last_flight(slow, pki, ssl.TLSVersion.TLSv1_3)
    for _ in range(9):
        stranger(relay, kind, "127.0.0.3")
    wait_until(lambda: evicted(relay, "half_open_per_client") == 6, "six evictions")
    assert relay.value("relay_connections_active") == 1 + 3
    slow.sendall(b"".join(rest))
    back.accept()
    record = relay.record()
    assert record["client"].startswith("127.0.0.3:")
    assert "limits.half_open_per_client" in record["remedy"]
    assert evicted(relay) == 0


def test_established_sessions_are_not_half_open(start, door, pair):
    back = door()
    relay = start([back.address], top="[limits]\nhandshakes = 1\nhalf_open_per_client = 1")
    pairs = [pair(relay, back) for _ in range(6)]
    for each in pairs:
        check_service(*each)
    assert relay.value("relay_connections_active") == 6


def test_an_address_is_served_again_when_its_connections_end(start, door, pair, visit):
    back = door()
    relay = start([back.address], top=f"{PATIENT}[limits]\nhalf_open_per_client = 2")
    for _ in range(3):
        for sock in [visit(relay) for _ in range(2)]:
            sock.close()
        half_open(relay, 0)
    check_service(*pair(relay, back))
    assert evicted(relay, "half_open_per_client") == 0


@pytest.mark.parametrize("kind", STRANGERS)
def test_strangers_do_not_fill_limits_connections(start, door, pair, stranger, kind):
    back = door()
    relay = start([back.address], top=f"{PATIENT}[limits]\nconnections = 4")
    early = pair(relay, back)
    for _ in range(3):
        stranger(relay, kind)
    check_service(*pair(relay, back))
    check_service(*early)
    assert "limits.connections was reached" in relay.record()["detail"]


def test_a_stale_stranger_gives_way_at_limits_connections(start, door, pair, stranger):
    """Also when it is the only one, after a second without progress."""
    back = door()
    relay = start([back.address], top=f"{PATIENT}[limits]\nconnections = 4")
    pairs = [pair(relay, back) for _ in range(3)]
    stranger(relay)
    half_open(relay, 4)
    check_service(*pair(relay, back))
    for each in pairs:
        check_service(*each)
    assert evicted(relay) == 1


def test_refused_clients_that_stay_take_no_place(start, door, pair, pki, stack):
    back = door()
    relay = start([back.address], top=f"{PATIENT}[limits]\nconnections = 2")
    early = pair(relay, back)
    for number in range(8):
        refused = dial(relay.port, client_context(pki, None), NAME)
        stack.callback(refused.sock.close)
        with pytest.raises(ssl.SSLError):
            refused.receive_some()
        assert relay.record(number)["reason"] == "no_certificate"
    check_service(*pair(relay, back))
    check_service(*early)


def test_of_refused_clients_that_stay_the_oldest_goes(stack):
    loop = Loop()
    stack.callback(loop.close)
    lingering_closes = LingeringCloses(loop, 2)
    pairs = [tcp_pair() for _ in range(3)]
    for ours, theirs in pairs:
        stack.callback(theirs.close)
        stack.callback(ours.close)
        lingering_closes.take(ours, 0)
    loop.when_idle = lambda: setattr(loop, "running", False)
    loop.run()
    assert len(lingering_closes.open) == 2
    assert [ours.fileno() >= 0 for ours, _ in pairs] == [False, True, True]


ADDRESSES = {
    "192.0.2.1": "192.0.2.1",
    "::ffff:192.0.2.1": "192.0.2.1",
    "2001:db8:1:2::1": bytes.fromhex("20010db800010002"),
    "2001:db8:1:2:ffff:ffff:ffff:ffff": bytes.fromhex("20010db800010002"),
    "2001:db8:1:3::1": bytes.fromhex("20010db800010003"),
    "fe80::1%lo": bytes.fromhex("fe80000000000000"),
}


@pytest.mark.parametrize("host", ADDRESSES)
def test_a_client_is_an_ipv4_address_or_an_ipv6_network(host):
    assert address_key(host) == ADDRESSES[host]
