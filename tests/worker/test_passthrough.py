"""Passthrough routes: TLS is not terminated, and the bytes go on as they come."""

import hashlib
import random
import socket
import struct
import threading

import pytest

from tests.support import ready
from tests.support.peer import PATIENCE_S
from tests.support.plain import LISTENER, end_of, hello, passthrough_toml, receive
from tests.support.ports import held_port
from tests.support.worker import RunningWorker, client_context, pool_toml, route_toml, wait_until

MB = 1024 * 1024


@pytest.fixture
def run(tmp_path, stack):
    """A worker with this configuration."""

    def run(toml, **how):
        running = RunningWorker(tmp_path, toml, **how)
        stack.callback(running.close)
        return running

    return run


@pytest.fixture
def raw(stack):
    """A client that sends what it likes."""

    def raw(relay, data=b""):
        sock = socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S)
        stack.callback(sock.close)
        sock.sendall(data)
        return sock

    return raw


@pytest.fixture
def closed_port(stack):
    """An address that refuses connections."""
    return f"127.0.0.1:{stack.enter_context(held_port())}"


@pytest.fixture
def passed(run, door, raw):
    """The client's socket, and the backend's, of a session that is passed through."""

    def passed(**how):
        back = door()
        relay = run(passthrough_toml([back.address], **how))
        first = hello()
        client, server = raw(relay, first), back.accept_tcp()
        assert receive(server, len(first)) == first
        return relay, client, server

    return passed


def test_client_and_backend_do_tls_with_each_other(run, backend, call, pki):
    """The backend sees the client's own certificate, which the relay never sees."""
    back = backend(alpn=("http/1.1",))
    relay = run(passthrough_toml([back.address]))
    context = client_context(pki, pki.client)
    context.check_hostname = False
    client = call(relay, context=context)
    client.send(b"hello through the relay")
    assert client.receive(23) == b"hello through the relay"
    assert "backend" in str(client.tls.getpeercert()["subject"])
    assert "alice" in str(back.peers[0]["subject"])
    client.close()
    record = relay.record()
    assert record["sni"] == "app.example.com"
    assert (record["tls_version"], record["subject"], record["alpn"]) == ("", "", "")
    assert (record["pool"], record["backend"], record["why"]) == ("main", "b1", "balanced")
    assert (record["reason"], record["side"]) == ("finished", "")
    assert record["inbound_handshake_s"] is None
    assert record["outbound_handshake_s"] is None
    assert relay.value("relay_handshakes_total", "inbound", "ok") == 0
    assert relay.value("relay_handshakes_total", "outbound", "ok") == 0
    assert relay.value("relay_connections_total", "https", "default") == 1
    assert record["bytes_in"] == relay.value("relay_bytes_total", "main", "b1", "to_backend")


def test_one_listener_terminates_and_passes_through_by_name(run, door, backend, pki, call):
    """Both routes may use the same pool: the files are for the terminating one."""
    back = backend()
    through = '[[listener.route]]\nsni = ["raw.example.com"]\nmode = "passthrough"\npool = "main"\n'
    relay = run(f"{LISTENER}{through}{route_toml(pki)}{pool_toml(pki, [back.address])}")
    for name in ("raw.example.com", "app.example.com"):
        context = client_context(pki, pki.client)
        context.check_hostname = False
        client = call(relay, name, context)
        client.send(b"ping")
        assert client.receive(4) == b"ping"
        client.close()
    by_sni = {record["sni"]: record for record in (relay.record(0), relay.record(1))}
    assert by_sni["raw.example.com"]["tls_version"] == ""
    assert by_sni["app.example.com"]["tls_version"] == "TLSv1.3"
    subjects = [str(peer["subject"]) for peer in back.peers]
    assert "alice" in subjects[0]
    assert "alice" not in subjects[1]


def test_bulk_in_both_directions_arrives_unchanged(passed):
    relay, client, server = passed()
    blob = random.Random(1).randbytes(MB)
    assert pour([client, server], blob, 24) == [hashlib.sha256(blob * 24).digest()] * 2
    client.close()
    server.close()
    record = relay.record()
    assert record["bytes_out"] == 24 * MB
    assert record["bytes_in"] > 24 * MB


def test_a_slow_reader_holds_the_sender_and_loses_nothing(passed):
    """What a full sink does not take stays in a pipe, and its source is not read."""
    _, client, server = passed()
    blob = random.Random(2).randbytes(MB)
    sent = fill(server, blob)
    assert receive(client, sent) == (blob * (sent // MB + 1))[:sent]
    server.settimeout(PATIENCE_S)
    server.sendall(b"and on")
    assert receive(client, 6) == b"and on"


def test_pipes_of_sessions_that_end_are_closed(passed):
    relay, client, server = passed()
    before = relay.open_files()
    fill(server, bytes(MB))
    assert relay.open_files() > before
    client.close()
    relay.record()
    wait_until(lambda: relay.open_files() < before, "the pipe and the sockets to be closed")


def test_each_direction_ends_by_itself(passed):
    relay, client, server = passed()
    client.shutdown(socket.SHUT_WR)
    assert server.recv(10) == b""
    server.sendall(b"the answer")
    assert receive(client, 10) == b"the answer"
    server.close()
    assert end_of(client) == (b"", "fin")
    assert relay.record()["reason"] == "finished"


def test_a_backend_that_ends_first_still_gets_the_clients_bytes(passed):
    relay, client, server = passed()
    server.sendall(b"that is all")
    server.shutdown(socket.SHUT_WR)
    assert end_of(client) == (b"that is all", "fin")
    client.sendall(b"still talking")
    assert receive(server, 13) == b"still talking"
    client.close()
    assert end_of(server) == (b"", "fin")
    assert relay.record()["reason"] == "finished"


def test_a_reset_of_the_client_resets_the_backend(passed):
    relay, client, server = passed()
    reset(client)
    assert end_of(server) == (b"", "reset")
    record = relay.record()
    assert (record["reason"], record["side"]) == ("inbound_reset", "inbound")


def test_a_reset_of_the_backend_resets_the_client(passed):
    relay, client, server = passed()
    reset(server)
    assert end_of(client) == (b"", "reset")
    record = relay.record()
    assert (record["reason"], record["side"]) == ("outbound_reset", "outbound")


def test_an_answer_before_a_reset_is_delivered(passed):
    """The client gets a FIN: a reset could destroy the answer on its way."""
    relay, client, server = passed()
    server.sendall(b"the answer")
    reset(server)
    assert end_of(client) == (b"the answer", "fin")
    assert relay.record()["reason"] == "outbound_reset"


def test_a_backend_that_refuses_is_replaced(run, door, raw, closed_port):
    """The hello is still in the client's socket, so the next backend gets it."""
    back = door()
    relay = run(passthrough_toml([closed_port, back.address]))
    first = hello()
    for _ in range(2):
        raw(relay, first)
        assert receive(back.accept_tcp(), len(first)) == first
    assert "backend b1 failed" in relay.messages()


def test_a_client_without_a_backend_gets_an_alert(run, raw, closed_port):
    """Its own error message says internal_error, instead of a reset."""
    relay = run(passthrough_toml([closed_port]))
    client = raw(relay, hello())
    assert end_of(client) == (bytes((21, 3, 3, 0, 2, 2, 80)), "fin")
    record = relay.record()
    assert (record["reason"], record["side"]) == ("backend_refused", "outbound")
    assert record["detail"].startswith("b1 at 127.0.0.1:")


def test_a_hello_in_pieces_goes_on_when_it_is_complete(run, door, raw):
    back = door()
    relay = run(passthrough_toml([back.address], sni='["app.example.com"]'))
    first = hello()
    client = raw(relay)
    for at in range(0, len(first), 100):
        client.sendall(first[at : at + 100])
    assert receive(back.accept_tcp(), len(first)) == first


def test_a_name_without_a_route_reaches_no_backend(run, door, raw):
    back = door()
    relay = run(passthrough_toml([back.address], sni='["other.example.com"]'))
    client = raw(relay, hello())
    assert end_of(client)[0] == bytes((21, 3, 3, 0, 2, 2, 112))
    assert relay.record()["reason"] == "unknown_sni"


def test_an_idle_session_ends_at_idle_s(run, door, raw):
    back = door()
    relay = run(passthrough_toml([back.address], top="[timeouts]\nidle_s = 0.2"))
    client = raw(relay, hello())
    back.accept_tcp()
    assert end_of(client)[0] == b""
    assert relay.record()["reason"] == "idle_timeout"


def test_a_client_that_leaves_while_connecting_is_noted(run, door, raw):
    """Its hello is delivered before its end."""
    back = door()
    relay = run(passthrough_toml([back.address]))
    first = hello()
    raw(relay, first).close()
    server = back.accept_tcp()
    assert receive(server, len(first)) == first
    assert server.recv(10) == b""
    server.close()
    assert relay.record()["reason"] == "finished"


def reset(sock):
    """Close with an RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def fill(sock, blob):
    """Send until nothing is taken for half a second; returns how many bytes went."""
    sent = 0
    sock.settimeout(0.5)
    while True:
        try:
            sent += sock.send(memoryview(blob)[sent % len(blob) :])
        except TimeoutError:
            return sent


def pour(ends, blob, times):
    """Each end sends the blob `times` times, and receives it; the digests."""
    states = [hashlib.sha256() for _ in ends]
    unsent, unread = [len(blob) * times] * 2, [len(blob) * times] * 2
    for end in ends:
        end.setblocking(False)
    while any(unsent) or any(unread):
        writers = [end for end, left in zip(ends, unsent, strict=True) if left]
        readable, writable = ready.select(ends, writers, PATIENCE_S)
        assert readable or writable, f"nothing moves any more: {unsent} {unread}"
        for i, end in enumerate(ends):
            if end in writable:
                at = (len(blob) * times - unsent[i]) % len(blob)
                unsent[i] -= end.send(memoryview(blob)[at:])
            if end in readable:
                data = end.recv(MB)
                assert data, f"the connection ended {unread[i]} bytes early"
                states[i].update(data)
                unread[i] -= len(data)
    return [state.digest() for state in states]


@pytest.mark.parametrize(
    ("version", "start"), [("v1", b"PROXY TCP4 127.0.0.1 "), ("v2", b"\r\n\r\n\0\r\nQUIT\n")]
)
def test_a_proxy_header_stands_before_the_hello(run, door, raw, version, start):
    back = door()
    relay = run(passthrough_toml([back.address], pool=f'send_proxy = "{version}"'))
    first = hello()
    raw(relay, first)
    server, data = back.accept_tcp(), b""
    while not data.endswith(first):
        data += server.recv(65536)
    assert data.startswith(start)
    assert data.count(first) == 1


def test_a_stream_that_was_fast_may_become_slow_again(passed):
    """While it is fast, a timer looks at its socket; then epoll watches it again."""
    relay, client, server = passed()
    for _ in range(3):
        blob = random.Random(4).randbytes(8 * MB)
        assert pour([client, server], blob, 1) == [hashlib.sha256(blob).digest()] * 2
        server.settimeout(PATIENCE_S)
        client.settimeout(PATIENCE_S)
        server.sendall(b"a short message")
        assert receive(client, 15) == b"a short message"
        client.sendall(b"and its answer")
        assert receive(server, 14) == b"and its answer"
    reset(client)
    assert end_of(server) == (b"", "reset")
    assert relay.record()["bytes_out"] == 3 * (8 * MB + 15)


def test_a_fast_stream_that_ends_is_delivered_whole(passed):
    relay, client, server = passed()
    blob = random.Random(5).randbytes(16 * MB)
    sender = threading.Thread(target=lambda: (server.sendall(blob), server.close()), daemon=True)
    sender.start()
    data, how = end_of(client)
    sender.join(PATIENCE_S)
    assert (hashlib.sha256(data).digest(), how) == (hashlib.sha256(blob).digest(), "fin")
    client.close()
    assert relay.record()["reason"] == "finished"


OFFERS = {
    "none": ((), ""),
    "one": (("postgresql",), "postgresql"),
    "two": (("h2", "http/1.1"), "h2,http/1.1"),
    "no text": (("\n\n", "h2"), "??,h2"),
}


@pytest.mark.parametrize(("offer", "logged"), OFFERS.values(), ids=OFFERS)
def test_the_log_names_the_protocols_offered(run, door, raw, offer, logged):
    back = door()
    relay = run(passthrough_toml([back.address]))
    client = raw(relay, hello(alpn=offer))
    back.accept_tcp().close()
    client.close()
    assert relay.record()["alpn"] == logged
