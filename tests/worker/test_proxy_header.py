"""Clients behind a balancer that sends PROXY headers, in one worker."""

import contextlib
import socket
import ssl
import struct
import time

import pytest

from relay.core.kicks import Kick, parse_target
from relay.worker.kicked import KickUpdate
from tests.support.peer import PATIENCE_S, Peer
from tests.support.proxy_vectors import IPV4, LOCAL, REFUSED, RELAYED, VECTORS, WAITS, tlv, v2
from tests.support.worker import client_context, client_hello, wait_until

BALANCER = 'accept_proxy = { from = ["127.0.0.0/8"] }'
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.9 56324 443\r\n"


@pytest.fixture
def behind(pki, stack):
    """Connect through the header: the client, after its handshake."""
    context = client_context(pki, pki.client)

    def behind(relay, header=V1):
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S))
        sock.sendall(header)
        return Peer(sock, context, server_side=False, name="app.example.com")

    return behind


def echoes(client):
    client.send(b"hello")
    return client.receive(5) == b"hello"


def ended(sock):
    """Whether the relay ends the connection, in an orderly way."""
    with contextlib.suppress(ConnectionResetError):
        return sock.recv(100) == b""
    return True


@pytest.mark.parametrize("header", [V1, v2(IPV4)], ids=["v1", "v2"])
def test_the_headers_address_is_the_clients(start, backend, behind, header):
    relay = start([backend().address], listener=BALANCER)
    client = behind(relay, header)
    assert echoes(client)
    client.close()
    record = relay.record()
    assert record["client"] == "192.0.2.7:56324"
    assert record["peer"].startswith("127.0.0.1:")
    assert record["proxy"] == {"destination": "198.51.100.9:443"}
    assert record["reason"] == "finished"


def test_without_accept_proxy_there_is_no_peer(start, backend, call):
    relay = start([backend().address])
    client = call(relay)
    assert echoes(client)
    client.close()
    assert (relay.record()["peer"], relay.record()["proxy"]) == ("", {})


def test_every_vector_is_judged_and_harms_nobody(start, backend, behind, pki, stack):
    relay = start([backend().address], listener=BALANCER, top="[timeouts]\nhello_s = 2")
    bystander = behind(relay)
    relayed = 0
    for vector in VECTORS:
        if vector.expected == WAITS:
            continue
        if vector.expected == REFUSED:
            sock = stack.enter_context(
                socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S)
            )
            sock.sendall(vector.data)
            assert ended(sock), vector.name
        else:
            client = behind(relay, vector.data)
            assert echoes(client), vector.name
            client.close()
        record = relay.record(relayed)
        relayed += 1
        if vector.expected == REFUSED:
            assert record["reason"] in {"proxy_header_invalid", "proxy_header_missing"}, vector
            assert record["detail"], vector.name
        else:
            assert record["reason"] == "finished", vector.name
            from_header = record["client"] != record["peer"]
            assert from_header == (vector.expected == RELAYED), vector.name
            assert (record["proxy"].get("command") == "local") == (vector.expected == LOCAL)
    assert relayed > 90
    assert echoes(bystander)


def test_a_header_and_a_hello_may_come_byte_by_byte(start, backend, pki, stack):
    relay = start([backend().address], listener=BALANCER)
    context = client_context(pki, pki.client)
    sock = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in v2(IPV4 + tlv(4, bytes(30))):
        sock.send(bytes((byte,)))
    client = Peer(sock, context, server_side=False, name="app.example.com", hello_only=True)
    client.handshake()
    assert echoes(client)


def test_header_and_hello_in_one_segment(start, backend, pki, stack):
    relay = start([backend().address], listener=BALANCER)
    context = client_context(pki, pki.client)
    sock = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S))
    client = Peer(sock, context, server_side=False, name="app.example.com", before=V1)
    assert echoes(client)


def test_a_peer_that_is_not_listed_is_refused_unread(start, backend, behind, stack):
    relay = start([backend().address], listener='accept_proxy = { from = ["127.0.0.1"] }')
    sock = stack.enter_context(
        socket.create_connection(
            ("127.0.0.1", relay.port), PATIENCE_S, source_address=("127.0.0.9", 0)
        )
    )
    sock.sendall(V1)
    assert ended(sock)
    record = relay.record()
    assert (record["reason"], record["side"]) == ("proxy_peer_refused", "inbound")
    assert record["client"].startswith("127.0.0.9:")
    assert "127.0.0.9 is not in accept_proxy.from of listener https (127.0.0.1)" in record["detail"]
    assert "accept_proxy.from" in record["remedy"]
    assert echoes(behind(relay))


def test_a_hello_without_a_header_is_refused(start, backend, pki, stack):
    relay = start([backend().address], listener=BALANCER)
    sock = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S))
    sock.sendall(client_hello(client_context(pki, pki.client)))
    assert ended(sock)
    record = relay.record()
    assert record["reason"] == "proxy_header_missing"
    assert "starts with a TLS hello" in record["detail"]


@pytest.mark.parametrize("header", [V1, v2(IPV4)], ids=["v1", "v2"])
def test_a_header_that_is_not_expected_is_named(start, backend, stack, header):
    relay = start([backend().address])
    sock = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S))
    sock.sendall(header)
    assert ended(sock)
    record = relay.record()
    assert record["reason"] == "not_tls"
    assert "starts with a PROXY header" in record["detail"]
    assert "set accept_proxy" in record["detail"]
    assert "stop the sender" in record["detail"]


@pytest.mark.parametrize("second", [V1, v2(IPV4)], ids=["v1", "v2"])
def test_a_second_header_is_refused(start, backend, stack, second):
    relay = start([backend().address], listener=BALANCER)
    sock = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S))
    sock.sendall(v2(IPV4) + second)
    assert ended(sock)
    record = relay.record()
    assert record["reason"] == "proxy_header_invalid"
    assert "a second PROXY header" in record["detail"]
    assert record["client"] == "192.0.2.7:56324"


def test_an_unfinished_header_ends_at_hello_s(start, backend, behind, stack):
    relay = start([backend().address], listener=BALANCER, top="[timeouts]\nhello_s = 0.3")
    sock = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S))
    sock.sendall(V1[:20])
    assert ended(sock)
    record = relay.record()
    assert record["reason"] == "hello_timeout"
    assert "PROXY header" in record["detail"]
    assert echoes(behind(relay))


def test_a_peer_that_leaves_in_its_header_is_gone(start, backend, stack):
    relay = start([backend().address], listener=BALANCER)
    with socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S) as sock:
        sock.sendall(V1[:20])
    record = relay.record()
    assert record["reason"] == "peer_gone"
    assert "closed after 20 bytes of its PROXY header" in record["detail"]


def test_a_reset_instead_of_a_header_harms_nobody(start, backend, behind):
    relay = start([backend().address], listener=BALANCER)
    sock = socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    assert relay.record()["reason"] == "peer_gone"
    assert echoes(behind(relay))


def test_the_balancer_is_at_no_limit_of_a_client(start, backend, behind, stack):
    """Connections wait for their header, and clients have other addresses."""
    limits = "[limits]\nper_client = 2\nhalf_open_per_client = 2"
    relay = start([backend().address], listener=BALANCER, top=limits)
    for _ in range(6):
        stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S))
    wait_until(lambda: relay.value("relay_connections_active") == 6, "all to be accepted")
    others = [
        behind(relay, b"PROXY TCP4 192.0.2.%d 198.51.100.9 1 2\r\n" % number)
        for number in range(1, 5)
    ]
    assert all(map(echoes, others))
    assert relay.records() == []


def test_per_client_counts_the_headers_address(start, backend, behind, stack):
    relay = start([backend().address], listener=BALANCER, top="[limits]\nper_client = 2")
    assert all(echoes(behind(relay)) for _ in range(2))
    sock = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S))
    sock.sendall(V1)
    assert ended(sock)
    assert relay.record()["reason"] == "per_client_limit"
    assert relay.record()["client"] == "192.0.2.7:56324"
    other = behind(relay, b"PROXY TCP4 192.0.2.8 198.51.100.9 1 2\r\n")
    assert echoes(other)
    other.close()
    relay.record(1)
    again = [behind(relay, b"PROXY TCP4 192.0.2.8 198.51.100.9 1 2\r\n") for _ in range(2)]
    assert all(map(echoes, again)), "a closed connection gives its place back"


def test_half_open_clients_are_counted_by_the_header(start, backend, stack):
    relay = start([backend().address], listener=BALANCER, top="[limits]\nhalf_open_per_client = 2")
    socks = []
    for _ in range(3):
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S))
        sock.sendall(V1)
        socks.append(sock)
    assert relay.record()["reason"] == "half_open_per_client"
    assert relay.record()["client"] == "192.0.2.7:56324"
    assert len(relay.records()) == 1


def test_a_kick_means_the_headers_address(start, backend, behind, stack):
    relay = start([backend().address], listener=BALANCER)
    mine, other = behind(relay), behind(relay, b"PROXY TCP4 192.0.2.8 198.51.100.9 1 2\r\n")
    assert echoes(mine)
    assert echoes(other)
    now = time.monotonic()
    kick = Kick(parse_target("192.0.2.7"), "root (uid 0)", "", now, now + 3600)
    relay.update(KickUpdate((kick,), kick))
    assert mine.end()[0] == b""
    sock = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S))
    sock.sendall(V1)
    assert ended(sock)
    assert [relay.record(n)["reason"] for n in range(2)] == ["kicked", "kicked"]
    assert echoes(other)


def test_stickiness_sees_the_headers_address(start, backend, behind):
    backends = [backend().address for _ in range(4)]
    relay = start(backends, listener=BALANCER, pool='sticky = "source"')
    chosen = {}
    for number in range(8):
        for _ in range(2):
            client = behind(relay, b"PROXY TCP4 192.0.2.%d 198.51.100.9 1 2\r\n" % number)
            assert echoes(client)
            client.close()
    wait_until(lambda: len(relay.records()) == 16, "all sessions to end")
    for record in relay.records():
        host = record["client"].partition(":")[0]
        assert chosen.setdefault(host, record["backend"]) == record["backend"]
    assert len(set(chosen.values())) > 1


def test_a_local_connection_may_make_a_handshake(start, backend, behind):
    relay = start([backend().address], listener=BALANCER)
    client = behind(relay, v2(b"", version_command=0x20, family_protocol=0))
    assert echoes(client)
    client.close()
    assert relay.record()["client"] == relay.record()["peer"]


def test_a_refused_client_gets_its_alert_behind_a_header(start, backend, pki, stack):
    relay = start([backend().address], listener=BALANCER)
    sock = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S))
    sock.sendall(V1)
    context = client_context(pki, None, version=ssl.TLSVersion.TLSv1_2)
    with pytest.raises(ssl.SSLError):
        Peer(sock, context, server_side=False, name="app.example.com")
    assert relay.record()["reason"] == "no_certificate"
