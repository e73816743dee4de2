"""A worker that drains: sessions finish, waiting clients are served, and it ends."""

import signal
import socket

import pytest

from relay.shared.scoreboard import PHASE, PHASE_DRAINING
from tests.support.peer import PATIENCE_S, Peer, dial
from tests.support.worker import client_context, wait_until

STAY = "[relay]\ndrain_timeout_s = 30"


def test_a_worker_without_sessions_leaves_at_once(start, door):
    relay = start([door().address], top=STAY)
    relay.signal(signal.SIGTERM)
    assert relay.wait() == 0


def test_sigterm_lets_a_session_finish_and_takes_no_new_one(start, door, pair, pki):
    back = door()
    relay = start([back.address], top=STAY)
    client, server = pair(relay, back)
    relay.signal(signal.SIGTERM)
    wait_until(lambda: relay.cells[PHASE] == PHASE_DRAINING, "the drain")
    client.send(b"one more")
    assert server.receive(8) == b"one more"
    server.send(b"and its answer")
    assert client.receive(14) == b"and its answer"
    client.close()
    server.close()
    assert relay.wait() == 0
    assert relay.record()["reason"] == "finished"
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S)


def test_a_full_worker_serves_its_queue_before_it_ends(start, door, pair, pki, stack):
    back = door()
    relay = start([back.address], top=f"{STAY}\n[limits]\nconnections = 1")
    client, server = pair(relay, back)
    waiting = [
        stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S))
        for _ in range(3)
    ]
    relay.let_it_turn(1)
    assert relay.value("relay_connections_active") == 1
    relay.signal(signal.SIGTERM)
    wait_until(lambda: relay.value("relay_connections_active") == 4, "the queue to be taken")
    client.close()
    server.close()
    for sock in waiting:
        queued = Peer(
            sock, client_context(pki, pki.client), server_side=False, name="app.example.com"
        )
        at_backend = back.accept()
        queued.send(b"promised")
        assert at_backend.receive(8) == b"promised"
        queued.close()
        at_backend.close()
    assert relay.wait() == 0
    assert [record["reason"] for record in relay.records()] == ["finished"] * 4


def test_the_end_of_the_drain_closes_hundreds_of_sessions(start, backend, pki, stack):
    relay = start([backend().address], top="[relay]\ndrain_timeout_s = 0.5")
    context = client_context(pki, pki.client)
    clients = []
    for _ in range(300):
        client = dial(relay.port, context)
        stack.callback(client.sock.close)
        client.send(b"x")
        assert client.receive(1) == b"x"
        clients.append(client)
    relay.signal(signal.SIGTERM)
    assert relay.wait() == 0
    for client in clients:
        assert client.end()[1] in {"fin", "reset"}
    reasons = [record["reason"] for record in relay.records()]
    assert reasons == ["drain_timeout"] * 300
    assert relay.messages().count("drain_timeout_s is over") == 1


def test_a_client_in_its_handshake_at_the_drains_end_is_logged(start, door, stack):
    relay = start([door().address], top="[relay]\ndrain_timeout_s = 0.3")
    sock = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S))
    wait_until(lambda: relay.value("relay_connections_active") == 1, "the client to be accepted")
    relay.signal(signal.SIGTERM)
    assert relay.wait() == 0
    assert sock.recv(1) == b""
    assert relay.record()["reason"] == "draining"


def test_sigquit_ends_everything_now(start, door, pair):
    back = door()
    relay = start([back.address], top=STAY)
    client, server = pair(relay, back)
    relay.signal(signal.SIGQUIT)
    assert relay.wait() == 0
    assert client.end()[1] in {"fin", "reset"}
    assert server.end()[1] in {"fin", "reset"}
    assert len(relay.records()) == 1


def test_sigquit_cuts_a_drain_short(start, door, pair):
    back = door()
    relay = start([back.address], top=STAY)
    client, _ = pair(relay, back)
    relay.signal(signal.SIGTERM)
    wait_until(lambda: relay.cells[PHASE] == PHASE_DRAINING, "the drain")
    relay.signal(signal.SIGTERM)  # once more changes nothing
    client.send(b"x")
    relay.signal(signal.SIGQUIT)
    assert relay.wait() == 0
    assert client.end()[1] in {"fin", "reset"}


def test_a_worker_whose_supervisor_is_gone_drains(start, door, pair):
    back = door()
    relay = start([back.address], top=STAY)
    client, server = pair(relay, back)
    relay.cut_lifeline()
    wait_until(lambda: relay.cells[PHASE] == PHASE_DRAINING, "the drain")
    client.send(b"x")
    assert server.receive(1) == b"x"
    client.close()
    server.close()
    assert relay.wait() == 0
    assert "supervisor is gone" in relay.messages()


def test_sigusr1_reopens_the_log_under_its_name(start, door, pair):
    back = door()
    relay = start([back.address])
    for _ in range(2):
        client, server = pair(relay, back)
        client.close()
        server.close()
        relay.record()
        if not (moved := relay.access_log.with_suffix(".1")).exists():
            relay.access_log.rename(moved)
            relay.signal(signal.SIGUSR1)
            relay.let_it_turn(1)
    assert len(moved.read_text().splitlines()) == len(relay.records()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_for_the_supervisor_changes_nothing(start, door, pair, number):
    back = door()
    relay = start([back.address])
    client, server = pair(relay, back)
    relay.signal(number)
    relay.let_it_turn(1)
    client.send(b"x")
    assert server.receive(1) == b"x"


def test_a_drain_in_the_middle_of_a_transfer_loses_no_byte(start, backend, call):
    blob = bytes(range(256)) * 4096 * 20

    def send_all(connection):
        connection.sendall(blob)
        connection.unwrap()

    relay = start([backend(send_all).address], top=STAY)
    client = call(relay)
    head = client.receive_some()
    relay.signal(signal.SIGTERM)
    wait_until(lambda: relay.cells[PHASE] == PHASE_DRAINING, "the drain")
    tail, end = client.end()
    assert (head + tail == blob, end) == (True, "close_notify")
    client.close()
    assert relay.wait() == 0
    assert relay.record()["bytes_out"] == len(blob)


def test_a_drain_and_a_stop_in_one_turn_log_the_queued_clients(start, door, stack):
    relay = start([door().address], top=STAY)
    relay.suspend()
    for _ in range(20):
        stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S))
    relay.signal(signal.SIGTERM)
    relay.signal(signal.SIGQUIT)
    relay.signal(signal.SIGCONT)
    assert relay.wait() == 0
    assert [record["reason"] for record in relay.records()] == ["draining"] * 20
    assert relay.value("relay_sessions_closed_total", "draining") == 20
