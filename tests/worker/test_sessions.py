"""A session that goes well, whatever is spoken above TLS."""

import hashlib
import random
import ssl

import pytest

from relay.shared.label_values import FROM_BACKEND, TO_BACKEND
from tests.support.backend import echo
from tests.support.peer import dial, exchange
from tests.support.worker import client_context, wait_until

MB = 1024 * 1024


def test_one_connection_carries_request_after_request(start, door, pair):
    back = door()
    relay = start([back.address])
    client, server = pair(relay, back)
    for number in range(50):
        request = b"GET /%d HTTP/1.1\r\nHost: app.example.com\r\n\r\n" % number
        client.send(request)
        assert server.receive(len(request)) == request
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        server.send(answer)
        assert client.receive(len(answer)) == answer


@pytest.mark.parametrize("inbound", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("outbound", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_every_pair_of_tls_versions_relays_and_is_logged(start, door, pair, pki, inbound, outbound):
    back = door(version=outbound)
    relay = start([back.address])
    client, server = pair(relay, back, context=client_context(pki, pki.client, version=inbound))
    client.send(b"question")
    assert server.receive(8) == b"question"
    server.send(b"answer")
    assert client.receive(6) == b"answer"
    client.close()
    assert server.end() == (b"", "close_notify")
    server.close()
    record = relay.record()
    assert (record["tls_version"], record["outbound_tls_version"]) == (
        inbound.name.replace("_", "."),
        outbound.name.replace("_", "."),
    )
    assert record["reason"] == "finished"


def test_a_server_that_speaks_first_is_heard_by_a_silent_client(start, door, pair):
    back = door()
    client, server = pair(start([back.address]), back)
    server.send(b"220 mail.example.com ESMTP\r\n")
    assert client.receive(28) == b"220 mail.example.com ESMTP\r\n"
    client.send(b"EHLO me\r\n")
    assert server.receive(9) == b"EHLO me\r\n"


def test_bytes_sent_before_there_is_a_backend_are_not_lost(start, door, call):
    back = door()
    client = call(start([back.address]))
    client.send(b"early bird")
    server = back.accept()
    assert server.receive(10) == b"early bird"


def test_all_bytes_of_a_client_that_left_early_are_delivered(start, door, call):
    back = door()
    relay = start([back.address])
    client = call(relay)
    client.send(b"fire and forget")
    client.close_notify()
    client.fin()
    server = back.accept()
    assert server.end() == (b"fire and forget", "close_notify")
    server.send(b"got it")
    server.close()
    assert client.end() == (b"got it", "close_notify")
    assert relay.record()["reason"] == "finished"


def test_bulk_runs_both_ways_at_once_and_arrives_whole(start, door, pair):
    back = door()
    relay = start([back.address])
    client, server = pair(relay, back)
    size, blob = 50 * MB, random.Random(1).randbytes(MB)
    wanted = hashlib.sha256(blob * 50).digest()
    assert exchange([client, server], blob, 50) == [wanted, wanted]
    client.close_notify()
    server.close()
    assert client.end() == (b"", "close_notify")
    client.close()
    record = relay.record()
    assert (record["bytes_in"], record["bytes_out"], record["reason"]) == (size, size, "finished")
    assert relay.value("relay_bytes_total", "main", "b1", TO_BACKEND) == size
    assert relay.value("relay_bytes_total", "main", "b1", FROM_BACKEND) == size


def test_a_reader_that_stops_costs_no_memory_and_loses_no_byte(start, backend, call):
    size, blob = 200 * MB, random.Random(2).randbytes(MB)

    def send_all(connection):
        for _ in range(size // MB):
            connection.sendall(blob)
        connection.unwrap()

    relay = start([backend(send_all).address])
    client = call(relay)
    state = hashlib.sha256(client.receive(len(blob)))
    before = relay.memory("Rss")
    moved = []

    def stalled():
        moved.append(relay.value("relay_bytes_total", "main", "b1", FROM_BACKEND))
        return len(moved) > 40 and moved[-1] == moved[-40]

    wait_until(stalled, "the pipe to be full")
    assert moved[-1] < 60 * MB, "what a reader does not take stays in the kernel's buffers"
    cpu = relay.cpu_s()
    relay.let_it_turn(2)
    assert relay.cpu_s() - cpu < 0.1, "a blocked session must not spin"
    assert relay.memory("Rss") - before < 4 * MB
    left = size - len(blob)
    while left:
        chunk = client.receive_some()
        assert chunk, f"the connection ended {left} bytes early"
        state.update(chunk)
        left -= len(chunk)
    assert state.digest() == hashlib.sha256(blob * (size // MB)).digest()
    assert client.end() == (b"", "close_notify")
    client.close()
    assert relay.record()["reason"] == "finished"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_that_resumes_is_logged_and_counted_as_resumed(start, backend, pki, version):
    relay = start([backend().address])
    context = client_context(pki, pki.client, version=version)
    first = dial(relay.port, context)
    first.send(b"x")
    assert first.receive(1) == b"x"
    session = first.tls.session
    first.close()
    second = dial(relay.port, context, session=session)
    assert second.tls.session_reused
    second.send(b"y")
    assert second.receive(1) == b"y"
    second.close()
    assert relay.record(0)["resumed"] is False
    assert relay.record(1)["resumed"] is True
    assert relay.record(1)["subject"] == relay.record(0)["subject"] != ""
    assert (
        relay.value("relay_handshakes_total", "inbound", "ok"),
        relay.value("relay_handshakes_total", "inbound", "resumed"),
    ) == (1, 1)


def test_the_second_connection_to_a_backend_is_a_resumption(start, backend, call):
    back = backend(echo)
    relay = start([back.address])
    for number in range(4):
        client = call(relay)
        client.send(b"x")
        assert client.receive(1) == b"x"
        client.close()
        relay.record(number)
    assert back.resumed == 3
    assert relay.value("relay_handshakes_total", "outbound", "resumed") == 3


def test_the_backend_is_offered_the_clients_protocol(start, door, pair, pki):
    back = door(alpn=("http/1.1", "h2"))
    relay = start([back.address], route='alpn = ["h2", "http/1.1"]')
    client, server = pair(
        relay, back, context=client_context(pki, pki.client, alpn=("http/1.1", "h2"))
    )
    assert (client.tls.selected_alpn_protocol(), server.tls.selected_alpn_protocol()) == (
        "h2",
        "h2",
    )
    client.close()
    server.close()
    assert relay.record()["alpn"] == "h2"
    other, server = pair(relay, back, context=client_context(pki, pki.client, alpn=("http/1.1",)))
    assert (other.tls.selected_alpn_protocol(), server.tls.selected_alpn_protocol()) == (
        "http/1.1",
        "http/1.1",
    )


def test_the_backend_gets_the_machine_certificate(start, door, pair):
    """The log has the client's certificate."""
    back = door()
    relay = start([back.address])
    client, server = pair(relay, back)
    assert (("commonName", "relay machine"),) in server.tls.getpeercert()["subject"]
    client.close()
    server.close()
    record = relay.record()
    assert "alice" in record["subject"]
    assert record["serial"]
    assert (record["route"], record["pool"], record["backend"], record["why"]) == (
        "default",
        "main",
        "b1",
        "balanced",
    )


def test_an_idle_session_costs_at_most_80_kib_of_private_memory(start, door, pair):
    back = door()
    relay = start([back.address])
    kept = [pair(relay, back) for _ in range(20)]
    before, first = relay.memory("Private"), len(kept)
    for _ in range(300):
        client, server = pair(relay, back)
        client.send(b"ping")
        assert server.receive(4) == b"ping"
        server.send(b"pong")
        assert client.receive(4) == b"pong"
        kept.append((client, server))
    each = (relay.memory("Private") - before) / (len(kept) - first)
    assert each <= 80 * 1024, f"{each / 1024:.1f} KiB"


def test_a_thousand_sessions_leave_nothing_to_collect(start, backend, pki):
    relay = start([backend().address])
    context = client_context(pki, pki.client)

    def run(sessions):
        done = relay.value("relay_sessions_closed_total", "finished")
        for _ in range(sessions):
            client = dial(relay.port, context)
            client.send(b"x")
            assert client.receive(1) == b"x"
            client.close()
        wait_until(
            lambda: relay.value("relay_sessions_closed_total", "finished") == done + sessions,
            "all sessions to end",
        )

    # The worker is a fork of the test run: it copies the memory that it changes.
    run(500)
    relay.garbage()  # what was made while starting
    files, before = relay.open_files(), relay.memory("Private")
    run(1000)
    assert relay.garbage() == 0
    assert relay.open_files() == files
    assert relay.memory("Private") - before < 2 * MB
    assert relay.value("relay_connections_active") == 0
    assert relay.value("relay_backend_connections_active", "main", "b1") == 0
