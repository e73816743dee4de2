"""An outage of all backends and its end, a backend that hangs, a pool without any."""

import contextlib
import socket
import threading
import time
from collections import Counter

import pytest

from relay.shared.entities import RETRY_UNTIL_MS, TRIAL_UNTIL_MS, Series
from relay.shared.failed_backends import FailedBackends
from relay.shared.scoreboard import SHARED_ROW, monotonic_ms
from tests.support.backend import name_itself
from tests.support.peer import dial
from tests.support.ports import held_port
from tests.support.worker import client_context, client_hello, pool_toml, route_toml, wait_until

QUICK = "[timeouts]\nconnect_s = 0.5\nhandshake_s = 30"


def ask(client):
    client.send(b"?\n")
    name = client.receive(3)[:2]
    client.close()
    return name.decode()


def state(relay, name, backend="b1"):
    return relay.snapshot().states[Series(name, ("main", backend))]


def outage_of(relay, backends=("b1",)):
    return FailedBackends(
        relay.scoreboard.row(SHARED_ROW), relay.layout, [("main", each) for each in backends]
    )


@pytest.fixture
def ports(stack):
    """Three ports that refuse connections."""
    return [stack.enter_context(held_port()) for _ in range(3)]


@pytest.fixture
def hole(stack):
    """An address whose SYNs are dropped: a listener whose queue is full."""
    full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    for _ in range(4):
        filler = stack.enter_context(socket.socket())
        filler.setblocking(False)
        filler.connect_ex(full.getsockname())
    return f"127.0.0.1:{full.getsockname()[1]}"


@pytest.fixture
def tarpit(stack):
    """Start a backend that accepts and stays silent: address and connections."""

    def begin():
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512))
        kept = []

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    kept.append(listener.accept()[0])

        def end():
            listener.shutdown(socket.SHUT_RDWR)
            for sock in kept:
                sock.close()

        threading.Thread(target=serve, daemon=True).start()
        stack.callback(end)
        return f"127.0.0.1:{listener.getsockname()[1]}", kept

    return begin


def test_the_first_answer_after_an_outage_ends_it_for_all(start, backend, call, ports):
    relay = start([f"127.0.0.1:{port}" for port in ports], pool="retry_s = 3600")
    call(relay).end()
    assert all(state(relay, RETRY_UNTIL_MS, f"b{i}") > monotonic_ms() for i in (1, 2, 3))
    for number, port in enumerate(ports, 1):
        backend(name_itself(f"b{number}"), port=port)
    shares = Counter(ask(call(relay)) for _ in range(48))
    assert sorted(shares) == ["b1", "b2", "b3"]
    assert min(shares.values()) >= 15, shares
    assert all(state(relay, RETRY_UNTIL_MS, f"b{i}") == 0 for i in (1, 2, 3))


def test_the_end_of_an_outage_is_known_to_all_workers(start, backend, call, ports):
    addresses = [f"127.0.0.1:{port}" for port in ports]
    first = start(addresses, pool="retry_s = 3600")
    second = start(addresses, pool="retry_s = 3600", worker=first)
    call(first).end()
    for number, port in enumerate(ports, 1):
        backend(name_itself(f"b{number}"), port=port)
    assert ask(call(first)) in {"b1", "b2", "b3"}
    assert {ask(call(second)) for _ in range(6)} == {"b1", "b2", "b3"}


def test_a_backend_still_broken_after_an_outage_costs_one_try(start, backend, call, ports):
    relay = start([f"127.0.0.1:{port}" for port in ports], pool="retry_s = 3600")
    call(relay).end()
    for number, port in list(enumerate(ports, 1))[:2]:
        backend(name_itself(f"b{number}"), port=port)
    before = relay.value("relay_handshakes_total", "outbound", "backend_refused")
    assert {ask(call(relay)) for _ in range(24)} == {"b1", "b2"}
    assert relay.value("relay_handshakes_total", "outbound", "backend_refused") - before <= 2


def test_a_draining_backend_does_not_prevent_an_outage(start, ports):
    relay = start([f"127.0.0.1:{port}" for port in ports], pool="retry_s = 3600")
    outage = outage_of(relay, ("b1", "b2", "b3"))
    for index in (0, 1):
        outage.fail(index, 3_600_000)
    outage.end_outage()
    assert not outage.usable(0), "b3 serves"
    cells = relay.scoreboard.row(SHARED_ROW)
    cells[relay.layout.cell("mode_override", "main", "b3")] = 2
    outage.end_outage()
    assert outage.usable(0)
    assert outage.usable(1)


def test_only_one_session_tries_a_hung_backend(start, backend, tarpit, call, pki):
    """After retry_s, and with at most connect_s for the handshake."""
    address, kept = tarpit()
    good = backend(name_itself("b2"))
    addresses = [address, good.address]
    # The pool's retry_s is long: however slow the machine, no more trials come due.
    workers = [start(addresses, top=QUICK, pool="retry_s = 3600")]
    workers.append(start(addresses, top=QUICK, pool="retry_s = 3600", worker=workers[0]))
    outage_of(workers[0]).fail(0, 1000)
    wait_until(lambda: state(workers[0], RETRY_UNTIL_MS) <= monotonic_ms(), "retry_s to be over")
    context, served = client_context(pki, pki.client), []

    def visit(number):
        began = time.monotonic()
        client = dial(workers[number % 2].port, context)
        served.append((ask(client), time.monotonic() - began))

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(40)]
    for each in threads:
        each.start()
        time.sleep(0.01)  # spread over a part of connect_s
    for each in threads:
        each.join(15)
    assert Counter(name for name, _ in served) == {"b2": 40}
    assert 1 <= len(kept) <= 3, (
        "two workers may claim it in the same moment, and a claim may be over before its try"
    )

    def records():
        return [record for each in workers for record in each.records()]

    wait_until(lambda: len(records()) == 40, "all records")
    delayed = [record for record in records() if record["why"] == "failover"]
    assert len(delayed) <= len(kept)
    assert max(seconds for _, seconds in served) < 5, "not handshake_s"


def test_a_claim_ends_with_its_session_and_by_itself(start, tarpit, backend, call):
    address, kept = tarpit()
    relay = start(
        [address, backend(name_itself("b2")).address],
        top="[timeouts]\nconnect_s = 30",
        pool="retry_s = 1",
    )
    outage = outage_of(relay)
    outage.fail(0, 0)
    client = call(relay)
    other = call(relay)
    wait_until(lambda: len(kept) == 1, "one of them to try it")
    assert state(relay, TRIAL_UNTIL_MS) > monotonic_ms()
    assert not outage.usable(0)
    client.reset()
    other.reset()
    wait_until(lambda: state(relay, TRIAL_UNTIL_MS) == 0, "the claim to be given back")
    assert outage.usable(0)
    claim = outage.claim(0, 50)
    assert not outage.usable(0)
    wait_until(lambda: outage.usable(0), "a claim whose worker has died to be over")
    newer = outage.claim(0, 60_000)
    outage.release(0, claim)
    assert not outage.usable(0), "it is another's"
    outage.release(0, newer)


@pytest.mark.parametrize("nonsense", [-1, -(2**62), 2**62])
def test_an_impossible_value_in_a_cell_keeps_no_client_out(start, backend, call, nonsense):
    relay = start([backend(name_itself("b1")).address])
    cells = relay.scoreboard.row(SHARED_ROW)
    cells[relay.layout.cell(RETRY_UNTIL_MS, "main", "b1")] = nonsense
    cells[relay.layout.cell(TRIAL_UNTIL_MS, "main", "b1")] = nonsense
    assert ask(call(relay)) == "b1"


def test_a_backend_that_only_takes_is_back_too(start, door, call):
    """Its protocol has no answer. That it keeps its sessions is enough."""
    back = door()
    relay = start([back.address], pool="retry_s = 3600")
    outage_of(relay).fail(0, 0)
    client = call(relay)
    client.send(b"<13>a line of syslog")
    assert back.accept().receive(20)
    wait_until(lambda: state(relay, RETRY_UNTIL_MS) == 0, "the backend to be back")


def test_a_pool_without_backends_refuses_at_once(start, backend, hole, pki, stack):
    """While all backends have failed, a few sessions try them and no other waits."""
    good = backend(name_itself("ok"))
    dead = route_toml(pki, pool="dead", sni='["a.example.com"]') + pool_toml(
        pki, [hole], name="dead"
    )
    relay = start(
        [good.address], top="[timeouts]\nconnect_s = 2", sni='["app.example.com"]', route=dead
    )
    context = client_context(pki, pki.client)
    first = dial(relay.port, context, "a.example.com")
    first.end()
    first.sock.close()
    assert relay.record()["reason"] == "backend_timeout"
    waiting = [dial(relay.port, context, "a.example.com") for _ in range(30)]
    for each in waiting:
        stack.callback(each.sock.close)
    began = time.monotonic()
    assert ask(dial(relay.port, context)) == "ok"
    assert time.monotonic() - began < 1
    wait_until(
        lambda: sum(each["reason"] == "no_backend" for each in relay.records()) == 22,
        "all but eight to be refused at once",
    )
    record = next(each for each in relay.records() if each["reason"] == "no_backend")
    assert "every backend of pool dead has failed" in record["detail"]
    assert "b1: backend_timeout" in record["detail"]
    assert record["duration_s"] < 1
    assert record["remedy"]


def test_at_max_connecting_the_newest_is_refused_at_once(start, tarpit, pki, call, stack):
    address, kept = tarpit()
    relay = start([address], pool="max_connecting = 5")
    context = client_context(pki, pki.client)
    waiting = [dial(relay.port, context) for _ in range(5)]
    for each in waiting:
        stack.callback(each.sock.close)
    wait_until(lambda: len(kept) == 5, "five to wait")
    assert call(relay).end()[1] in {"fin", "reset", "close_notify"}
    record = relay.record()
    assert (record["reason"], record["side"]) == ("connecting_limit", "outbound")
    assert "max_connecting" in record["remedy"]
    waiting.pop().reset()
    wait_until(lambda: len(relay.records()) == 2, "one of them to be gone")
    stack.callback(call(relay).sock.close)
    wait_until(lambda: len(kept) == 6, "the next one to have its place")


def test_a_pool_that_hangs_does_not_fill_the_worker_alone(start, backend, tarpit, pki, call):
    """Once its clients took all of limits.connections, and no others were accepted."""
    address, kept = tarpit()
    good = backend(name_itself("ok"))
    hung = route_toml(pki, "hung", '["hung.example.com"]') + pool_toml(pki, [address], "hung")
    relay = start(
        [good.address],
        top="[limits]\nconnections = 12",
        sni='["app.example.com"]',
        route=hung,
    )
    for _ in range(20):
        call(relay, "hung.example.com")
    wait_until(lambda: len(relay.records()) == 14, "all but six to be refused")
    assert len(kept) == 6
    began = time.monotonic()
    assert ask(call(relay)) == "ok"
    assert time.monotonic() - began < 1
    record = relay.record()
    assert record["reason"] == "connecting_limit"
    assert "limits.connections or open files" in record["detail"]


@pytest.mark.serial
def test_a_backend_that_hangs_leaves_room_for_the_others(start, backend, tarpit, pki, stack):
    """It gets at most its share of max_connecting until it is known to hang."""
    address, kept = tarpit()
    relay = start([address, backend(name_itself("b2")).address], pool="max_connecting = 20")
    context, served = client_context(pki, pki.client), []

    def visit():
        client = dial(relay.port, context)
        stack.callback(client.sock.close)
        client.sock.settimeout(8)  # less than handshake_s, after which other backends are tried
        with contextlib.suppress(OSError):
            served.append(ask(client))

    threads = [threading.Thread(target=visit) for _ in range(60)]
    for number, each in enumerate(threads):
        each.start()
        # On a busy machine more than max_connecting could be connecting at once.
        wait_until(
            lambda number=number: number - len(served) - len(kept) < 5, "few to be connecting"
        )
    for each in threads:
        each.join(15)
    assert len(kept) == 10
    assert served == ["b2"] * 50


def test_outbound_waits_end_with_their_client(start, tarpit, pki, call):
    """A client that leaves no longer counts towards max_connecting."""
    address, kept = tarpit()
    relay = start([address], pool="max_connecting = 1")
    for count in range(1, 4):
        client = call(relay)
        wait_until(lambda count=count: len(kept) == count, "the backend to be connected to")
        client.reset()
        wait_until(lambda count=count: len(relay.records()) == count, "the session to be over")
    assert {each["reason"] for each in relay.records()} == {"peer_gone"}


def test_half_open_clients_do_not_count_as_connecting(start, tarpit, pki, stack):
    """Half-open clients do not count towards max_connecting."""
    address, _ = tarpit()
    relay = start([address], pool="max_connecting = 1")
    hello = client_hello(client_context(pki, pki.client))
    for _ in range(5):
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port)))
        sock.sendall(hello)
    client = dial(relay.port, client_context(pki, pki.client))
    stack.callback(client.sock.close)
    client.sock.settimeout(0.5)
    with pytest.raises(TimeoutError):
        client.receive(1)
    assert relay.records() == []
