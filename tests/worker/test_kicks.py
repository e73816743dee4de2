"""Clients that an operator ends and keeps out, in one worker."""

import socket
import ssl
import time

import pytest
from cryptography.hazmat.primitives import hashes

from relay.core.kicks import Kick, parse_target
from relay.demo.ca import LeafSpec
from relay.worker.kicked import KickUpdate
from tests.support.peer import dial
from tests.support.pki import write
from tests.support.worker import client_context, connect, receive

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
LONG_S = 3600


def kick(text, seconds=LONG_S, why="stolen laptop"):
    now = time.monotonic()
    return Kick(parse_target(text), "root (uid 0)", why, now, now + seconds)


def echoes(client):
    client.send(b"hello")
    return client.receive(5) == b"hello"


@pytest.fixture
def bob(pki, tmp_path):
    """A context of another client."""
    leaf = pki.authority.issue(LeafSpec("bob", purposes=("client",)))
    return client_context(pki, write(tmp_path, "bob", leaf))


def ways(pki):
    """Texts that name the client `pki.client`, whose address is shared with others."""
    leaf = pki.client.issued.certificate
    return ["CN=alice", leaf.subject.rfc4514_string(), leaf.fingerprint(hashes.SHA256()).hex(":")]


@pytest.mark.parametrize("way", range(3))
def test_a_kick_ends_the_clients_sessions_and_no_others(start, backend, pki, call, bob, way):
    relay = start([backend().address])
    mine, other = [call(relay) for _ in range(3)], call(relay, context=bob)
    assert all(map(echoes, [*mine, other]))
    asked = kick(ways(pki)[way])
    before = time.monotonic()
    relay.update(KickUpdate((asked,), asked))
    assert [client.end()[0] for client in mine] == [b""] * 3
    assert time.monotonic() - before < 1
    assert echoes(other)
    records = [relay.record(i) for i in range(3)]
    assert [one["reason"] for one in records] == ["kicked"] * 3
    assert records[0]["side"] == "inbound"
    assert records[0]["detail"].startswith("by root (uid 0): stolen laptop; kept out for another")
    assert "relay kick --undo" in records[0]["remedy"]
    assert relay.value("kicked_sessions") == 3
    assert relay.value("relay_sessions_closed_total", "kicked") == 3


@pytest.mark.parametrize("version", VERSIONS)
def test_a_kicked_certificate_is_refused_full_and_resumed(start, backend, pki, bob, version):
    relay = start([backend().address])
    context = client_context(pki, pki.client, version=version)
    with connect(relay.port, context) as client:
        client.sendall(b"hello")
        receive(client, 5)
        session = client.session
        client.unwrap()
    relay.update(KickUpdate((kick("CN=alice"),)))
    for offered in (session, None):
        with (
            pytest.raises(ssl.SSLError, match="bad certificate"),
            connect(relay.port, context, session=offered) as client,
        ):
            client.recv(1)
    with connect(relay.port, bob) as client:
        client.sendall(b"hello")
        assert receive(client, 5) == b"hello"
    assert [relay.record(i)["reason"] for i in (1, 2)] == ["kicked"] * 2
    assert relay.record(1)["resumed"] != relay.record(2)["resumed"]
    relay.update(KickUpdate(()))
    with connect(relay.port, context, session=session) as client:
        client.sendall(b"hello")
        assert receive(client, 5) == b"hello"


@pytest.mark.parametrize("text", ["127.0.0.1", "127.0.0.0/8"])
def test_a_kicked_address_is_closed_before_its_first_byte(start, backend, call, text):
    relay = start([backend().address])
    open_one, half_open = call(relay), socket.create_connection(("127.0.0.1", relay.port))
    assert echoes(open_one)
    asked = kick(text)
    relay.update(KickUpdate((asked,), asked))
    assert open_one.end()[0] == b""
    half_open.settimeout(5)
    assert half_open.recv(1) == b""
    half_open.close()
    with socket.create_connection(("127.0.0.1", relay.port)) as refused:
        refused.settimeout(5)
        assert refused.recv(1) == b""
    records = [relay.record(i) for i in range(3)]
    assert [one["reason"] for one in records] == ["kicked"] * 3
    assert records[2]["subject"] == ""


def test_an_address_of_others_is_not_kept_out(start, backend, call):
    relay = start([backend().address])
    asked = kick("192.0.2.0/24")
    relay.update(KickUpdate((asked,), asked))
    assert echoes(call(relay))
    assert relay.value("kicked_sessions") == 0


def test_a_kick_without_a_time_ends_sessions_only(start, backend, call):
    relay = start([backend().address])
    client = call(relay)
    assert echoes(client)
    relay.update(KickUpdate((), kick("CN=alice", 0)))
    assert client.end()[0] == b""
    assert relay.record()["detail"] == "by root (uid 0): stolen laptop"
    assert echoes(call(relay))


def test_a_kick_ends_by_itself(start, backend, call):
    relay = start([backend().address])
    relay.update(KickUpdate((kick("CN=alice", 0.01), kick("127.0.0.1", 0.01))))
    relay.let_it_turn()  # longer than that
    assert echoes(call(relay))


def test_a_session_that_still_connects_is_ended_too(start, door, pki, call):
    """Its client is admitted, and the backend has not answered yet."""
    silent = door()
    relay = start([silent.address])
    client = call(relay)
    silent.accept_tcp()
    asked = kick("CN=alice")
    relay.update(KickUpdate((asked,), asked))
    assert client.end()[0] == b""
    assert relay.record()["reason"] == "kicked"


def test_a_client_in_its_handshake_is_judged_at_its_end(start, backend, pki):
    relay = start([backend().address])
    client = dial(relay.port, client_context(pki, pki.client), hello_only=True)
    asked = kick("CN=alice")
    relay.update(KickUpdate((asked,), asked))
    assert relay.value("kicked_sessions") == 0
    client.handshake()  # in TLS 1.3 its end comes before the relay's answer
    assert client.end() == (b"", "SSLV3_ALERT_BAD_CERTIFICATE")
    client.sock.close()
    assert relay.record()["reason"] == "kicked"


def test_many_sessions_are_closed_a_part_in_each_turn(start, backend, call, bob):
    relay = start([backend().address], top="[limits]\nconnections = 2000\nhandshakes = 2000")
    clients = [call(relay) for _ in range(450)]
    other = call(relay, context=bob)
    asked = kick("CN=alice")
    relay.update(KickUpdate((asked,), asked))
    for client in clients:
        assert client.end()[0] == b""
    assert echoes(other)
    assert relay.value("relay_sessions_closed_total", "kicked") == 450
