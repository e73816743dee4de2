"""TCP probes: connections that come and leave without a byte."""

import socket
import struct

import pytest

from tests.support.peer import PATIENCE_S, Peer
from tests.support.proxy_vectors import v2
from tests.support.worker import client_context, client_hello, wait_until

LOCAL = v2(b"", version_command=0x20, family_protocol=0)
UNLOGGED = "log_probes = false"


def probe(relay, how="fin", host="127.0.0.1", data=b""):
    """Connect, send, and leave in this way."""
    sock = socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S, source_address=(host, 0))
    with sock:
        sock.sendall(data)
        if how == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def wait_for_probes(relay, count):
    wait_until(lambda: relay.value("relay_probes_total", "https") == count, f"{count} probes")


@pytest.mark.parametrize("how", ["fin", "reset"])
@pytest.mark.parametrize("logged", [True, False])
def test_a_probe_is_counted_and_logged_as_asked(start, backend, call, how, logged):
    relay = start([backend().address], listener="" if logged else UNLOGGED)
    for _ in range(3):
        probe(relay, how)
    wait_for_probes(relay, 3)
    client = call(relay)
    client.send(b"hello")
    assert client.receive(5) == b"hello"
    client.close()
    records = wait_until(
        lambda: (
            len(relay.records()) == (4 if logged else 1)
            and [one["reason"] for one in relay.records()]
        ),
        "the lines",
    )
    assert records.count("peer_gone") == (3 if logged else 0)
    assert relay.value("relay_sessions_closed_total", "peer_gone") == 3
    assert relay.value("relay_connections_total", "https", "none") == 3


def test_only_probes_of_the_listed_addresses_are_not_logged(start, backend):
    relay = start([backend().address], listener=f'{UNLOGGED}\nprobes_from = ["127.0.1.0/24"]')
    probe(relay, host="127.0.1.7")
    probe(relay, host="127.0.2.7")
    wait_for_probes(relay, 2)
    assert relay.record()["client"].startswith("127.0.2.7:")
    assert len(relay.records()) == 1


def test_a_client_that_leaves_in_its_hello_is_logged(start, backend, pki):
    relay = start([backend().address], listener=UNLOGGED)
    probe(relay, data=client_hello(client_context(pki, None))[:50])
    assert relay.record()["reason"] == "peer_gone"
    assert relay.value("relay_probes_total", "https") == 0


@pytest.mark.parametrize("data", [b"", LOCAL, b"PROXY UNKNOWN\r\n"])
def test_a_balancers_health_check_is_a_probe(start, backend, data):
    relay = start(
        [backend().address], listener=f'{UNLOGGED}\naccept_proxy = {{ from = ["127.0.0.1"] }}'
    )
    probe(relay, data=data)
    wait_for_probes(relay, 1)
    relay.let_it_turn()
    assert relay.records() == []


@pytest.mark.parametrize("talks", [False, True])
def test_a_local_handshake_is_logged_if_it_relays_a_byte(start, backend, pki, stack, talks):
    relay = start(
        [backend().address], listener=f'{UNLOGGED}\naccept_proxy = {{ from = ["127.0.0.1"] }}'
    )
    sock = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S))
    context = client_context(pki, pki.client)
    peer = Peer(sock, context, server_side=False, name="app.example.com", before=LOCAL)
    if talks:
        peer.send(b"hello")
        assert peer.receive(5) == b"hello"
    peer.close()
    if talks:
        assert relay.record()["proxy"] == {"command": "local"}
        assert relay.value("relay_probes_total", "https") == 0
    else:
        wait_for_probes(relay, 1)
        relay.let_it_turn()
        assert relay.records() == []
