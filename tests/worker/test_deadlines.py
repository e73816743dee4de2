"""Every state ends by itself.

The client's hello_s and handshake_s are in test_strangers, connect_s in test_failover.
"""

import signal
import socket
import ssl
import time

import pytest

from tests.support.worker import client_context, wait_until


def let_pass(seconds):
    """Time is what these tests are about."""
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= until, "time to pass")


def test_an_idle_session_is_closed_cleanly_on_both_sides(start, door, pair):
    back = door()
    relay = start([back.address], top="[timeouts]\nidle_s = 0.5")
    client, server = pair(relay, back)
    client.send(b"x")
    assert server.receive(1) == b"x"
    began = time.monotonic()
    assert client.end() == (b"", "close_notify")
    assert server.end() == (b"", "close_notify")
    assert time.monotonic() - began >= 0.4
    record = relay.record()
    assert record["reason"] == "idle_timeout"
    assert "idle_s" in record["remedy"]
    assert relay.value("relay_sessions_closed_total", "idle_timeout") == 1
    assert (
        relay.value("relay_connections_active")
        == relay.value("relay_backend_connections_active", "main", "b1")
        == 0
    )


def test_bytes_in_either_direction_keep_a_session_past_idle_s(start, door, pair):
    back = door()
    relay = start([back.address], top="[timeouts]\nidle_s = 0.6")
    client, server = pair(relay, back)
    until = time.monotonic() + 1.5
    spoken = 0
    while time.monotonic() < until:
        let_pass(0.2)
        speaker, hearer = (client, server) if spoken % 2 else (server, client)
        speaker.send(b"x")
        assert hearer.receive(1) == b"x"
        spoken += 1
    assert spoken > 4
    assert relay.value("relay_connections_active") == 1


def test_a_client_that_never_reads_is_given_up_after_idle_s(start, backend, call):
    def send_for_ever(connection):
        while True:
            connection.sendall(bytes(65536))

    relay = start([backend(send_for_ever).address], top="[timeouts]\nidle_s = 0.5")
    client = call(relay)
    assert relay.record()["reason"] == "idle_timeout"
    assert client.end()[1] in {"fin", "reset"}, "what was cut must not look whole"


def test_a_side_that_does_not_end_is_closed_after_linger_s(start, door, pair):
    back = door()
    relay = start([back.address], top="[timeouts]\nlinger_s = 0.5")
    client, server = pair(relay, back)
    client.send(b"x")
    client.close_notify()
    client.fin()
    assert server.end() == (b"x", "close_notify")
    began = time.monotonic()
    assert client.end()[1] == "fin"
    assert time.monotonic() - began >= 0.4
    assert relay.record()["reason"] == "linger_timeout"


def test_a_side_that_goes_on_sending_outlives_linger_s(start, door, pair):
    back = door()
    relay = start([back.address], top="[timeouts]\nlinger_s = 0.6")
    client, server = pair(relay, back)
    client.close_notify()
    client.fin()
    assert server.end() == (b"", "close_notify")
    for _ in range(6):
        let_pass(0.25)
        server.send(b"more")
        assert client.receive(4) == b"more"
    server.close()
    assert client.end() == (b"", "close_notify")
    assert relay.record()["reason"] == "finished"


@pytest.mark.parametrize(
    "own",
    [
        {"top": "[timeouts]\nidle_s = 60", "listener": "idle_s = 0.5"},
        {"listener": "idle_s = 60", "pool": "idle_s = 0.5"},
    ],
    ids=["listener over general", "pool over listener"],
)
def test_the_nearest_idle_s_counts(start, door, pair, own):
    back = door()
    relay = start([back.address], **own)
    client, server = pair(relay, back)
    client.send(b"x")
    assert server.receive(1) == b"x"
    assert client.end() == (b"", "close_notify")
    assert relay.record()["reason"] == "idle_timeout"


@pytest.mark.parametrize(
    "own",
    [{"listener": "linger_s = 0.5"}, {"listener": "linger_s = 60", "pool": "linger_s = 0.5"}],
    ids=["listener over general", "pool over listener"],
)
def test_the_nearest_linger_s_counts(start, door, pair, own):
    back = door()
    relay = start([back.address], top="[timeouts]\nlinger_s = 60", **own)
    client, server = pair(relay, back)
    client.close_notify()
    client.fin()
    assert server.end() == (b"", "close_notify")
    assert client.end()[1] == "fin"
    assert relay.record()["reason"] == "linger_timeout"


def test_a_stalled_backend_is_given_up_after_handshake_s(start, door, call):
    back = door()
    relay = start([back.address], top="[timeouts]\nhandshake_s = 0.4")
    client = call(relay)
    connection = back.accept_tcp()
    assert connection.recv(65536), "the relay's hello"
    assert client.end()[1] in {"fin", "reset"}
    assert connection.recv(65536) == b""
    record = relay.record()
    assert (record["reason"], record["side"]) == ("backend_handshake_timeout", "outbound")
    assert 0.4 <= record["duration_s"] < 5


def test_every_backend_that_accepts_nothing_gets_a_deadline(start, call, stack):
    """A deadline that leads back to CONNECT must be followed by another one."""
    full = []
    for _ in range(3):
        # A listener whose queue is full: the kernel drops further SYNs.
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        full.append(f"127.0.0.1:{listener.getsockname()[1]}")
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
    relay = start(full, top="[timeouts]\nconnect_s = 0.3")
    assert call(relay).end()[1] in {"fin", "reset"}
    record = relay.record()
    assert (record["reason"], record["side"]) == ("backend_timeout", "outbound")
    assert record["duration_s"] >= 0.8
    assert relay.value("relay_handshakes_total", "outbound", "backend_timeout") == 3


def test_many_deadlines_at_once_are_all_kept(start, door, pair):
    back = door()
    relay = start([back.address], top="[timeouts]\nidle_s = 2")
    pairs = [pair(relay, back) for _ in range(60)]
    for client, server in pairs:
        assert client.end() == (b"", "close_notify")
        assert server.end() == (b"", "close_notify")
    wait_until(
        lambda: relay.value("relay_sessions_closed_total", "idle_timeout") == 60,
        "60 sessions to end",
    )
    assert relay.value("relay_connections_active") == 0


LATE = 60


def test_a_worker_that_was_stopped_loses_no_client(start, backend, pki, stack):
    """What came in time is read, although the deadline has passed since."""
    relay = start([backend().address], top="[timeouts]\nhello_s = 0.5\nhandshake_s = 20")
    context = client_context(pki, pki.client)
    socks = [
        stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), 10))
        for _ in range(LATE)
    ]
    wait_until(lambda: relay.value("relay_connections_active") == LATE, "all to be accepted")
    relay.suspend()
    clients = []
    for sock in socks:
        sock.setblocking(False)
        client = stack.enter_context(
            context.wrap_socket(
                sock, server_hostname="app.example.com", do_handshake_on_connect=False
            )
        )
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        clients.append(client)
    let_pass(0.6)
    relay.signal(signal.SIGCONT)
    for client in clients:
        client.settimeout(10)
        client.do_handshake()
        client.sendall(b"hello")
        assert client.recv(5) == b"hello"
