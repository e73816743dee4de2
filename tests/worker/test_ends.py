"""How a session ends: close_notify, bare FIN, reset, and what the other side sees."""

import random
import socket
import ssl
import subprocess

import pytest

from tests.support.peer import Peer
from tests.support.programs import program
from tests.support.worker import client_context, wait_until

pytestmark = pytest.mark.usefixtures("streams")
MB = 1024 * 1024


def test_a_client_that_says_close_notify_still_gets_its_answer(start, door, pair):
    back = door()
    relay = start([back.address])
    client, server = pair(relay, back)
    client.send(b"the last question")
    client.close_notify()
    client.fin()
    assert server.end() == (b"the last question", "close_notify")
    server.send(b"the answer")
    assert client.receive(10) == b"the answer"
    server.send(b" and more")
    server.close()
    assert client.end() == (b" and more", "close_notify")
    record = relay.record()
    assert (record["reason"], record["side"]) == ("finished", "")
    assert (record["bytes_in"], record["bytes_out"]) == (17, 19)


def test_a_bare_fin_of_the_client_gets_the_answer_and_is_logged(start, door, pair):
    back = door()
    relay = start([back.address])
    client, server = pair(relay, back)
    client.send(b"cut")
    client.fin()
    assert server.end() == (b"cut", "close_notify"), (
        "else a backend on OpenSSL 3 would answer with an alert"
    )
    server.send(b"the answer")
    server.close()
    assert client.end() == (b"the answer", "close_notify")
    record = relay.record()
    assert (record["reason"], record["side"]) == ("truncated", "inbound")
    assert "close_notify" in record["remedy"]


def test_a_backend_that_ends_first_still_gets_the_clients_bytes(start, door, pair):
    back = door()
    relay = start([back.address])
    client, server = pair(relay, back)
    server.send(b"that is all")
    server.close_notify()
    server.fin()
    assert client.end() == (b"that is all", "close_notify")
    client.send(b"still talking")
    client.close_notify()
    client.fin()
    assert server.end() == (b"still talking", "close_notify")
    assert relay.record()["reason"] == "finished"


def complain(client):
    """Close with a fatal alert, as OpenSSL 3 does after an end without close_notify."""
    client._in.write(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(ssl.SSLError):
        client.receive_some()
    client.sock.close()


@pytest.mark.parametrize(
    "leave",
    [Peer.close, lambda client: client.sock.close(), complain],
    ids=["close_notify", "fin", "alert"],
)
def test_a_bare_fin_of_the_backend_is_passed_on_and_logged(start, door, pair, leave):
    back = door()
    relay = start([back.address])
    client, server = pair(relay, back)
    server.send(b"half an ans")
    server.fin()
    assert client.end() == (b"half an ans", "fin")
    leave(client)
    server.end()
    record = relay.record()
    assert (record["reason"], record["side"]) == ("truncated", "outbound")


def test_a_client_that_renegotiates_is_logged_as_alert_other(start, door, pki, stack):
    back = door()
    relay = start([back.address])
    command = [
        program("openssl"),
        "s_client",
        "-connect",
        f"127.0.0.1:{relay.port}",
        "-servername",
        "app.example.com",
        "-tls1_2",
        "-cert",
        pki.client.certificate,
        "-key",
        pki.client.key,
        "-CAfile",
        pki.ca,
    ]
    asker = stack.enter_context(
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    )
    asker.stdin.write(b"x\n")
    asker.stdin.flush()
    server = back.accept()
    assert server.receive(2) == b"x\n"
    asker.stdin.write(b"R\n")
    asker.stdin.flush()
    server.end()
    record = relay.record()
    assert (record["reason"], record["detail"]) == (
        "alert_other",
        "the client sent the alert handshake_failure after the handshake",
    )
    server.sock.close()


def test_a_session_idle_past_linger_s_may_end_in_two_steps(start, door, pair):
    back = door()
    relay = start([back.address], top="[timeouts]\nlinger_s = 1")
    client, server = pair(relay, back)
    client.send(b"x")
    assert server.receive(1) == b"x"
    relay.let_it_turn(3)
    client.close_notify()
    client.fin()
    assert server.end() == (b"", "close_notify")
    server.send(b"late answer")
    server.close()
    assert client.end() == (b"late answer", "close_notify")
    assert relay.record()["reason"] == "finished"


def test_a_clients_reset_ends_the_backends_side(start, door, pair):
    back = door()
    relay = start([back.address])
    client, server = pair(relay, back)
    client.send(b"and then")
    assert server.receive(8) == b"and then"
    client.reset()
    assert server.end()[1] in {"fin", "reset"}
    record = relay.record()
    assert (record["reason"], record["side"]) == ("inbound_reset", "inbound")


def test_a_backends_reset_ends_the_clients_side(start, door, pair):
    back = door()
    relay = start([back.address])
    client, server = pair(relay, back)
    server.send(b"and then")
    assert client.receive(8) == b"and then"
    server.reset()
    assert client.end()[1] in {"fin", "reset"}
    record = relay.record()
    assert (record["reason"], record["side"]) == ("outbound_reset", "outbound")


def test_an_answer_before_a_reset_reaches_a_sending_client(start, door, pki, stack):
    # An HTTP server refuses a large upload: it answers and closes without reading it
    # all, so its kernel resets the connection.
    back = door()
    relay = start([back.address])
    sock = stack.enter_context(socket.socket())
    sock.setsockopt(
        socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384
    )  # so that most of the answer has to wait in the relay's kernel
    sock.connect(("127.0.0.1", relay.port))
    client = Peer(sock, client_context(pki, pki.client), server_side=False, name="app.example.com")
    server = back.accept()
    client.send_until_full()
    answer = random.Random(3).randbytes(MB)
    server.send(answer)
    wait_until(
        lambda: server.unacknowledged() == 0,
        "the backend's kernel to be rid of the answer: its reset throws away the rest",
    )
    server.sock.close()
    data, end = client.end()
    assert (len(data), end) == (MB, "fin")
    assert data == answer
    assert relay.record()["reason"] == "outbound_reset"


def test_bytes_before_a_reset_reach_a_slow_client(start, door, pair):
    back = door()
    relay = start([back.address])
    client, server = pair(relay, back)
    blob = random.Random(4).randbytes(MB)
    server.send(blob)
    server.close_notify()
    server.fin()
    client.send(b"never mind")
    assert server.receive(10) == b"never mind"
    server.sock.close()
    data, end = client.end()
    assert (data, end) == (blob, "close_notify")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_sides_may_end_at_the_same_moment(start, door, pair, version):
    back = door(version=version)
    relay = start([back.address])
    for number in range(20):
        client, server = pair(relay, back)
        client.send(b"bye")
        server.send(b"bye")
        client.close_notify()
        server.close_notify()
        client.fin()
        server.fin()
        assert client.end() == (b"bye", "close_notify")
        assert server.end() == (b"bye", "close_notify")
        assert relay.record(number)["reason"] == "finished"
    assert relay.value("relay_connections_active") == 0
    assert relay.value("relay_backend_connections_active", "main", "b1") == 0


def test_a_backends_end_waits_until_a_slow_client_has_all_bytes(start, backend, call):
    blob = random.Random(5).randbytes(20 * MB)

    def send_and_leave(connection):
        connection.sendall(blob)
        connection.unwrap()

    relay = start([backend(send_and_leave).address], top="[timeouts]\nlinger_s = 20")
    client = call(relay)
    relay.let_it_turn(2)
    assert client.end() == (blob, "close_notify")
    client.close()
    assert relay.record()["bytes_out"] == len(blob)


def test_a_client_that_resets_with_bytes_held_for_it_is_closed(start, backend, call):
    def send_for_ever(connection):
        while True:
            connection.sendall(b"x" * 65536)

    relay = start([backend(send_for_ever).address])
    client = call(relay)
    client.receive(100_000 // 65536 * 65536)
    relay.let_it_turn(2)
    client.reset()
    assert relay.record()["reason"] == "inbound_reset"
    assert relay.value("relay_connections_active") == 0


def test_a_client_that_leaves_during_the_connect_is_noticed(start, door, call):
    back = door()
    relay = start([back.address])
    client = call(relay)
    connection = back.accept_tcp()
    assert connection.recv(65536), "the relay's hello"
    client.reset()
    assert relay.record()["reason"] == "peer_gone"
    assert connection.recv(65536) == b""
