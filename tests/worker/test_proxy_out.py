"""The PROXY header that backends get, read by a receiver of the tests' own."""

import contextlib
import ssl

import pytest

from tests.support.peer import Peer
from tests.support.proxy_header import read_header, receive_header
from tests.support.worker import client_context

V2 = 'send_proxy = "v2"'
INSIDE = 'send_proxy = "v2-inside-tls"'


@pytest.fixture
def receive(door):
    """A backend's door, and what reads a header and then does the handshake."""

    def receive(back):
        sock = back.accept_tcp()
        header = receive_header(sock)
        return header, Peer(sock, back.context, server_side=True)

    return receive


def read_inside(server):
    """The header that is the first data inside TLS, and what came after it."""
    data = b""

    def read(size):
        nonlocal data
        while len(data) < size:
            data += server.receive_some()
        taken, data = data[:size], data[size:]
        return taken

    return read_header(read), data


def relayed(client, server):
    """Whether bytes pass in both directions."""
    client.send(b"request")
    assert server.receive(7) == b"request"
    server.send(b"response")
    assert client.receive(8) == b"response"


def test_v1_has_the_addresses(start, door, call, receive):
    back = door()
    relay = start([back.address], pool='send_proxy = "v1"')
    client = call(relay)
    header, server = receive(back)
    assert header.family == "TCP4"
    assert header.source == client.sock.getsockname()
    assert header.destination == client.sock.getpeername()
    relayed(client, server)
    client.close()
    record = relay.record(0)
    assert (record["bytes_in"], record["bytes_out"]) == (7, 8)


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_v2_has_every_part(start, door, call, receive, pki, version):
    back = door(alpn=("http/1.1",))
    relay = start([back.address], pool=V2, route='alpn = ["http/1.1"]')
    context = client_context(pki, pki.client, alpn=("http/1.1",))
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    client = call(relay, context=context)
    header, server = receive(back)
    relayed(client, server)
    assert (header.command, header.family) == ("PROXY", "TCP4")
    assert header.source == client.sock.getsockname()
    assert header.destination == client.sock.getpeername()
    client.close()
    record = relay.record(0)
    assert header.tlvs["alpn"] == b"http/1.1"
    assert header.tlvs["authority"] == b"app.example.com"
    assert header.tlvs["unique_id"].decode() == record["session"]
    assert (header.client, header.verify) == (0x07, 0)
    assert {name: value.decode() for name, value in header.ssl.items()} == {
        "version": record["tls_version"],
        "cipher": record["cipher"],
        "group": record["group"],
        "cn": "alice",
        "key_alg": "EC256",
        "sig_alg": "ecdsa-with-SHA256",
    }


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_resumed_session_shows_its_certificate(start, door, call, receive, pki, version):
    back = door()
    relay = start([back.address], pool=V2 + "\nsend_proxy_certificate = true")
    context = client_context(pki, pki.client)
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    headers = []
    session = None
    for number in range(2):
        client = call(relay, context=context, session=session)
        header, server = receive(back)
        headers.append(header)
        relayed(client, server)
        session = client.tls.session
        client.close()
        server.close()
        assert relay.record(number)["resumed"] is bool(number)
    full, resumed = headers
    assert (full.client, resumed.client) == (0x07, 0x05)
    assert full.verify == resumed.verify == 0
    assert full.ssl["cn"] == resumed.ssl["cn"] == b"alice"
    der = ssl.PEM_cert_to_DER_cert(pki.client.certificate.read_text().partition("\n\n")[0])
    assert full.ssl["certificate"] == resumed.ssl["certificate"] == der


def test_only_chosen_parts_are_sent(start, door, call, receive):
    back = door()
    relay = start([back.address], pool=V2 + '\nsend_proxy_tlvs = ["authority", "ssl_cn"]')
    call(relay)
    header, _ = receive(back)
    assert set(header.tlvs) == {"authority", "ssl"}
    assert set(header.ssl) == {"cn"}


def test_an_empty_list_leaves_the_addresses(start, door, call, receive):
    back = door()
    relay = start([back.address], pool=V2 + "\nsend_proxy_tlvs = []")
    call(relay)
    header, _ = receive(back)
    assert len(header.raw) == 28


def test_the_header_inside_tls_comes_first(start, door, pair):
    back = door()
    relay = start([back.address], pool=INSIDE)
    client, server = pair(relay, back)
    header, rest = read_inside(server)
    assert rest == b""
    assert header.source == client.sock.getsockname()
    assert header.ssl["cn"] == b"alice"
    server.send(b"hello")  # a server that speaks first
    assert client.receive(5) == b"hello"
    relayed(client, server)
    client.close()
    assert relay.record(0)["bytes_in"] == 7, "without the header"


@pytest.mark.parametrize("pool", [V2, INSIDE])
def test_each_backend_that_is_tried_gets_it(start, door, call, pki, pool, receive):
    """A TLS 1.3 backend refuses late, after it got a header inside TLS."""
    refuses, back = door(client_ca=pki.foreign_ca), door()
    relay = start([refuses.address, back.address], pool=pool)
    client = call(relay)
    sock = refuses.accept_tcp()
    if pool == V2:
        receive_header(sock)
    with contextlib.suppress(ssl.SSLError, EOFError, OSError):
        Peer(sock, refuses.context, server_side=True)
    sock.close()
    if pool == V2:
        header, server = receive(back)
    else:
        server = back.accept()
        header, _ = read_inside(server)
    assert header.source == client.sock.getsockname()
    relayed(client, server)
