"""A full worker: clients wait in the kernel's queue until there is room."""

import socket
import ssl
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.peer import PATIENCE_S, Peer, dial
from tests.support.worker import client_context, wait_until


def wait_in_queue(relay, stack):
    """A TCP connection that the kernel has accepted; the relay may not have."""
    return stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S))


def handshake(sock, pki):
    return Peer(sock, client_context(pki, pki.client), server_side=False, name="app.example.com")


def test_clients_above_limits_connections_wait_for_a_free_place(start, door, pair, pki, stack):
    back = door()
    relay = start([back.address], top="[limits]\nconnections = 2")
    first, second = pair(relay, back), pair(relay, back)
    waiting = [wait_in_queue(relay, stack) for _ in range(3)]
    relay.let_it_turn(2)
    assert relay.value("relay_connections_active") == 2
    cpu = relay.cpu_s()
    relay.let_it_turn(2)
    assert relay.cpu_s() - cpu < 0.1, "waiting must not spin"
    first[0].send(b"still served")
    assert first[1].receive(12) == b"still served"
    leaving = [first, second]
    for sock in waiting:
        client, server = leaving.pop(0)
        client.close()
        server.close()
        served = handshake(sock, pki)
        at_backend = back.accept()
        served.send(b"my turn")
        assert at_backend.receive(7) == b"my turn"
        leaving.append((served, at_backend))
        assert relay.value("relay_connections_active") == 2


def test_an_address_above_per_client_is_refused_until_one_ends(start, door, pair, pki, stack):
    back = door()
    relay = start([back.address], top="[limits]\nper_client = 2")
    first, second = pair(relay, back), pair(relay, back)
    with pytest.raises((OSError, EOFError)):
        dial(relay.port, client_context(pki, pki.client))
    record = relay.record()
    assert (record["reason"], record["client"].partition(":")[0]) == (
        "per_client_limit",
        "127.0.0.1",
    )
    assert relay.value("relay_sessions_closed_total", "per_client_limit") == 1
    other = stack.enter_context(
        socket.create_connection(
            ("127.0.0.1", relay.port), PATIENCE_S, source_address=("127.0.0.2", 0)
        )
    )
    handshake(other, pki)
    back.accept()
    first[0].send(b"x")
    assert first[1].receive(1) == b"x"
    second[0].close()
    second[1].close()
    relay.record(1)
    client, server = pair(relay, back)
    client.send(b"x")
    assert server.receive(1) == b"x"


def test_few_file_descriptors_lose_no_client(start, backend, pki, stack):
    """They mean fewer connections."""
    relay = start([backend().address], files_limit=180)
    context = client_context(pki, pki.client)
    first = [dial(relay.port, context) for _ in range(26)]
    for client in first:
        stack.callback(client.sock.close)
        client.send(b"x")
        assert client.receive(1) == b"x"
    waiting = [wait_in_queue(relay, stack) for _ in range(20)]
    relay.let_it_turn(2)
    assert relay.value("relay_connections_active") == 26, "(180 - 128) / 2"
    cpu = relay.cpu_s()
    relay.let_it_turn(2)
    assert relay.cpu_s() - cpu < 0.1

    def visit(sock):
        client = handshake(sock, pki)
        client.send(b"y")
        assert client.receive(1) == b"y"
        client.close()

    # All at once: a client that is accepted and sends nothing is closed for another.
    with ThreadPoolExecutor(len(waiting)) as pool:
        visits = [pool.submit(visit, sock) for sock in waiting]
        for client in first:
            client.close()
        for each in visits:
            each.result(20)


def test_a_worker_without_descriptors_does_not_spin_or_blame(start, backend, pki, stack):
    """No backend is marked failed."""
    # Others use the descriptors that the relay counts on: epoll, the signals' pipe and
    # the log take four, the rest is enough for five sessions.
    relay = start([backend().address], files_limit=180, files_spare=14)
    context = client_context(pki, pki.client)
    served = []
    for _ in range(3):
        client = dial(relay.port, context)
        stack.callback(client.sock.close)
        client.send(b"x")
        assert client.receive(1) == b"x"
        served.append(client)
    waiting = [wait_in_queue(relay, stack) for _ in range(20)]
    relay.let_it_turn(2)
    cpu = relay.cpu_s()
    relay.let_it_turn(2)
    assert relay.cpu_s() - cpu < 0.1
    assert relay.value("relay_handshakes_total", "outbound", "backend_unreachable") == 0
    served[0].send(b"x")
    assert served[0].receive(1) == b"x"
    for client in served:
        client.close()
    lost = 0
    for sock in waiting:
        try:
            client = handshake(sock, pki)
            client.send(b"y")
            assert client.receive(1) == b"y"
            client.close()
        except (OSError, EOFError, ssl.SSLError):
            lost += 1
    assert relay.value("relay_handshakes_total", "outbound", "no_resources") >= lost
    last = dial(relay.port, context)
    last.send(b"z")
    assert last.receive(1) == b"z"
    last.close()
    assert "LimitNOFILE" in relay.messages()


# How clients are counted, a client, the same one, and another one.
NETWORKS = {
    "IPv6": ("", "2001:db8:1:2::1", "2001:db8:1:2:a:b:c:d", "2001:db8:1:3::1"),
    "IPv6, address": ("per_client_prefix_v6 = 128", "2001:db8::1", "2001:db8::1", "2001:db8::2"),
    "IPv6, site": ("per_client_prefix_v6 = 48", "2001:db8:1::1", "2001:db8:1:9::", "2001:db8:2::1"),
    "IPv4": ("", "192.0.2.1", "192.0.2.1", "192.0.2.2"),
    "IPv4, network": ("per_client_prefix_v4 = 24", "192.0.2.1", "192.0.2.9", "192.0.3.1"),
}


@pytest.mark.parametrize("limit", ["per_client = 1", "per_client = 1\nhalf_open_per_client = 0"])
@pytest.mark.parametrize(("prefix", "first", "same", "other"), NETWORKS.values(), ids=NETWORKS)
def test_per_client_counts_networks(start, door, stack, prefix, first, same, other, limit):
    settings = f'accept_proxy = {{ from = ["127.0.0.1"] }}\n{prefix}'
    relay = start([door().address], listener=settings, top=f"[limits]\n{limit}")

    def come(client):
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), 10))
        family, to = ("TCP6", "2001:db8:f::1") if ":" in client else ("TCP4", "198.51.100.9")
        sock.sendall(f"PROXY {family} {client} {to} 1 2\r\n".encode())
        relay.let_it_turn()
        return sock

    known = come(first)
    come(other)
    assert relay.records() == []
    come(same)
    assert relay.record()["reason"] == "per_client_limit"
    known.close()
    wait_until(lambda: len(relay.records()) == 2, "the first one's end")
    come(same)
    assert len(relay.records()) == 2
