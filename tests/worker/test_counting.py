"""The metrics agree with the traffic."""

import socket

from relay.shared.label_values import (
    FROM_BACKEND,
    HANDSHAKE_BUCKETS_S,
    SESSION_BUCKETS_S,
    TO_BACKEND,
)
from tests.support.peer import PATIENCE_S, dial
from tests.support.worker import client_context, wait_until


def test_sessions_of_known_size_are_counted_exactly(start, backend, call):
    relay = start([backend().address, backend().address])
    sizes = [1, 100, 16_383, 16_384, 16_385, 100_000, 7, 300_000, 64, 65_536]
    for number, size in enumerate(sizes):
        client = call(relay)
        client.send(bytes(size))
        assert client.receive(size) == bytes(size)
        client.close()
        record = relay.record(number)
        assert (record["bytes_in"], record["bytes_out"], record["reason"]) == (
            size,
            size,
            "finished",
        )
    for backend_name, share in (("b1", sizes[0::2]), ("b2", sizes[1::2])):
        assert relay.value("relay_bytes_total", "main", backend_name, TO_BACKEND) == sum(share)
        assert relay.value("relay_bytes_total", "main", backend_name, FROM_BACKEND) == sum(share)
        assert relay.value("relay_backend_selected_total", "main", backend_name, "balanced") == len(
            share
        )
        assert relay.value("relay_backend_connections_active", "main", backend_name) == 0
    assert relay.value("relay_connections_total", "https", "default") == len(sizes)
    assert relay.value("relay_connections_total", "https", "none") == 0
    assert relay.value("relay_sessions_closed_total", "finished") == len(sizes)
    assert relay.value("relay_connections_active") == 0
    for side in ("inbound", "outbound"):
        done = relay.value("relay_handshakes_total", side, "ok") + relay.value(
            "relay_handshakes_total", side, "resumed"
        )
        buckets = [
            relay.value("relay_handshake_seconds", side, bound)
            for bound in (*map(str, HANDSHAKE_BUCKETS_S), "+Inf")
        ]
        assert done == sum(buckets) == len(sizes)
        assert relay.value("relay_handshake_seconds", side, "sum") > 0
        lasted = [
            relay.value("relay_session_seconds", side, bound)
            for bound in (*map(str, SESSION_BUCKETS_S), "+Inf")
        ]
        assert sum(lasted) == len(sizes)
        assert relay.value("relay_session_seconds", side, "sum") > 0


def test_the_gauges_follow_the_open_sessions(start, door, pair):
    back = door()
    relay = start([back.address])
    pairs = []
    for number in range(1, 6):
        pairs.append(pair(relay, back))
        wait_until(
            lambda number=number: (
                relay.value("relay_backend_connections_active", "main", "b1") == number
            ),
            "the backend's gauge",
        )
        assert relay.value("relay_connections_active") == number
    for client, server in pairs:
        client.close()
        server.close()
    wait_until(lambda: relay.value("relay_connections_active") == 0, "the gauge to return to zero")
    assert relay.value("relay_backend_connections_active", "main", "b1") == 0


def test_each_connection_is_counted_and_logged_once(start, backend, pki, stack):
    """Each has exactly one reason."""
    relay = start([backend().address], top="[timeouts]\nhello_s = 0.3", sni='["app.example.com"]')
    good, foreign = client_context(pki, pki.client), client_context(pki, pki.client_foreign)
    for _ in range(5):
        client = dial(relay.port, good)
        client.send(b"x")
        assert client.receive(1) == b"x"
        client.close()
        stranger = dial(relay.port, foreign)
        assert stranger.end()[0] == b""
        stranger.sock.close()
        for data in (b"GET / HTTP/1.0\r\n\r\n", b"\x80" * 50, b"\x16\x03\x01"):
            sock = stack.enter_context(
                socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S)
            )
            sock.sendall(data)
    wait_until(lambda: len(relay.records()) == 25, "25 lines in the log")
    reasons = [record["reason"] for record in relay.records()]
    counts = {reason: reasons.count(reason) for reason in set(reasons)}
    assert counts == {
        "finished": 5,
        "unknown_ca": 5,
        "plain_http": 5,
        "not_tls": 5,
        "hello_timeout": 5,
    }
    for reason, count in counts.items():
        assert relay.value("relay_sessions_closed_total", reason) == count
        if reason != "finished":
            assert relay.value("relay_handshakes_total", "inbound", reason) == count
    assert relay.value("relay_handshakes_total", "inbound", "ok") == 5
    assert relay.value("relay_connections_total", "https", "none") == 15
    assert relay.value("relay_connections_total", "https", "app.example.com") == 10
    assert len({record["session"] for record in relay.records()}) == 25
