"""Hostile clients, before and after their handshake, disturb no other session."""

import select
import socket

import pytest
from OpenSSL import SSL

from relay.tls.raw import lib
from tests.support.records import DATA, HANDSHAKE, KEY_UPDATE, KEY_UPDATE_PLEASE
from tests.support.worker import RunningWorker, pool_toml, route_toml

pytestmark = pytest.mark.usefixtures("streams")
LISTENER = '[[listener]]\nname = "https"\nlisten = ["127.0.0.1:0"]\n'
HALF_A_HELLO = bytes.fromhex("160301013c010001380303")


def test_a_flood_of_key_updates_does_not_delay_other_sessions(start, door, pair, writer):
    back = door()
    relay = start([back.address])
    client, server = pair(relay, back)
    attacker = writer(relay)
    other_end = back.accept()
    flood = [attacker.record(HANDSHAKE, KEY_UPDATE) for _ in range(40_000)]
    attacker.send(*flood, attacker.record(DATA, b"the end"))
    rounds = 0
    while not select.select([other_end.sock], [], [], 0)[0]:
        client.send(b"x")
        assert server.receive(1) == b"x"
        rounds += 1
    assert other_end.receive(7) == b"the end"
    assert rounds > 20, (
        f"{rounds} messages of another client were relayed during 40,000 key updates"
    )


def test_unread_key_updates_cost_no_cpu(tmp_path, pki, door, stack, writer):
    back = door()
    toml = f"{LISTENER}{route_toml(pki)}\n{pool_toml(pki, [back.address])}"
    relay = RunningWorker(tmp_path, toml, send_buffer=4096)
    stack.callback(relay.close)
    attacker = writer(relay)
    other_end = back.accept()
    for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        attacker.sock.setsockopt(socket.SOL_SOCKET, buffer, 4096)
    records = b"".join(
        attacker.record(HANDSHAKE, KEY_UPDATE_PLEASE) for _ in range(40_000)
    ) + attacker.record(DATA, b"the end")
    sent = attacker.send_until_stuck(records)
    assert sent < len(records), "the relay's answers had room after all"
    relay.let_it_turn()
    before_s = relay.cpu_s()
    relay.let_it_turn(2)
    assert relay.cpu_s() - before_s < 0.5, "the worker spins"
    # Once the client reads, everything continues where it stopped.
    for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        attacker.sock.setsockopt(socket.SOL_SOCKET, buffer, 1 << 20)
    attacker.sock.setblocking(False)
    while not select.select([other_end.sock], [], [], 0)[0]:
        readable, writable, _ = select.select(
            [attacker.sock, other_end.sock], [attacker.sock] if sent < len(records) else [], [], 10
        )
        assert readable or writable, "nothing moves any more"
        if attacker.sock in readable:
            assert attacker.sock.recv(65536)
        if writable:
            sent += attacker.sock.send(memoryview(records)[sent:])
    assert other_end.receive(7) == b"the end"


def test_a_client_that_leaves_in_mid_hello_is_closed_at_once(start, door):
    relay = start([door().address], top="[timeouts]\nhello_s = 600")
    with socket.create_connection(("127.0.0.1", relay.port)) as client:
        client.sendall(HALF_A_HELLO)
    record = relay.record()
    assert (record["reason"], record["detail"]) == (
        "peer_gone",
        f"closed after {len(HALF_A_HELLO)} bytes of its hello",
    )
    assert relay.value("relay_connections_active") == 0


def silent(relay, stack):
    return stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), 15))


def hello_twice(sock, files, first, second):
    """A client whose second hello has another server name.

    Its key share is of a group that relay does not have, so relay asks for that hello.
    """
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.use_certificate_file(str(files.certificate))
    context.use_privatekey_file(str(files.key))
    assert lib.SSL_CTX_set1_curves_list(context._context, b"X448:X25519") == 1
    client = SSL.Connection(context, None)
    client.set_connect_state()
    client.set_tlsext_host_name(first)
    while True:
        try:
            client.do_handshake()
        except SSL.WantReadError:
            sock.sendall(client.bio_read(65536))
            client.set_tlsext_host_name(second)
            client.bio_write(sock.recv(65536))
        else:
            sock.sendall(client.bio_read(65536))
            return


@pytest.mark.parametrize("second", ["app.example.com", "tenant.example.com", "other.example.com"])
def test_a_second_hello_cannot_name_another_route_than_the_first(
    tmp_path, pki, door, stack, second
):
    back = door()
    ours = route_toml(pki, sni='["app.example.com"]', extra='groups = "X25519"')
    others = route_toml(pki, sni='["tenant.example.com"]').replace(str(pki.ca), str(pki.foreign_ca))
    toml = LISTENER + ours + others + pool_toml(pki, [back.address])
    relay = RunningWorker(tmp_path, toml)
    stack.callback(relay.close)
    sock = silent(relay, stack)
    hello_twice(sock, pki.client, b"app.example.com", second.encode())
    if second == "app.example.com":
        back.accept()
        return
    while sock.recv(65536):
        pass
    record = relay.record()
    assert (record["reason"], record["detail"]) == (
        "sni_mismatch",
        f"the peeked hello has 'app.example.com', the handshake '{second}'",
    )
    assert not select.select([back.listener], [], [], 0)[0], "the backend was called"
