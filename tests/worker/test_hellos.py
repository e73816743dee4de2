"""Hellos of all forms that OpenSSL accepts, over real sockets.

Large ones, in small pieces, slow ones, and ones for a name that is not a host name.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import time

import pytest
from OpenSSL import SSL

from relay.core.hello import MAX_HELLO_BYTES
from tests.support.hellos import HELLOS, records
from tests.support.peer import PATIENCE_S, Peer
from tests.support.programs import needs, program
from tests.support.worker import (
    RunningWorker,
    client_context,
    pool_toml,
    route_toml,
    wait_until,
)

MUCH_ALPN = ["x" * 255] * 250  # 64,000 bytes of a hello; the route negotiates nothing
NAMED = '["app.example.com", "*.example.com"]'


class Cut(Peer):
    """A client whose first flight is sent in another form; what follows is as usual."""

    def __init__(self, port, context, send_hello, name="app.example.com"):
        self._send_hello = send_hello
        sock = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        try:
            super().__init__(sock, context, server_side=False, name=name)
        except BaseException:
            sock.close()
            raise

    def _flush(self):
        if self._send_hello is None:
            super()._flush()
        elif self._out.pending:
            send, self._send_hello = self._send_hello, None
            send(self.sock, self._out.read())


def message_of(flight):
    """The handshake message of a first flight, without the headers of its records."""
    message, at = b"", 0
    while at < len(flight):
        length = int.from_bytes(flight[at + 3 : at + 5], "big")
        message += flight[at + 5 : at + 5 + length]
        at += 5 + length
    return message


def in_records(*sizes):
    return lambda sock, flight: sock.sendall(records(message_of(flight), sizes))


def in_tiny_records(sock, flight):
    sock.sendall(records(message_of(flight), [1] * 2_000))


def with_empty_records(sock, flight):
    parts = message_of(flight)
    cut = [parts[at : at + 40] for at in range(0, len(parts), 40)]
    sock.sendall(b"".join(b"\x16\x03\x01\0\0" * 32 + records(part) for part in cut))


def in_pieces(size, pause_s):
    def send(sock, flight):
        for at in range(0, len(flight), size):
            sock.sendall(flight[at : at + size])
            time.sleep(pause_s)

    return send


FORMS = {
    "as it is": lambda sock, flight: sock.sendall(flight),
    "in records of one byte": in_tiny_records,
    "with 32 empty records before each other": with_empty_records,
    "in two records": in_records(3),
    "in segments of one byte": in_pieces(1, 0),
    "in slow segments": in_pieces(200, 0.01),
    "in slow tiny records": lambda sock, flight: in_pieces(500, 0.01)(
        sock, records(message_of(flight), [1] * 2_000)
    ),
}


def exchanged(peer):
    peer.send(b"hello")
    try:
        return peer.receive(5)
    finally:
        peer.close()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_hello_of_any_form_is_served(start, backend, pki, form):
    relay = start([backend().address], sni=NAMED)
    assert exchanged(Cut(relay.port, client_context(pki, pki.client), form)) == b"hello"
    assert relay.record()["sni"] == "app.example.com"


LARGE = {
    "at once": lambda sock, flight: sock.sendall(flight),
    "in records of 64 bytes": lambda sock, flight: sock.sendall(
        records(message_of(flight), [64] * 1_100)
    ),
    "in slow pieces": in_pieces(4_096, 0.01),
    "in small pieces": in_pieces(100, 0),
}


@pytest.mark.parametrize("form", LARGE.values(), ids=LARGE)
def test_a_hello_of_64_kilobytes_is_served(start, backend, pki, form):
    context = client_context(pki, pki.client)
    context.set_alpn_protocols(MUCH_ALPN)
    relay = start([backend().address], sni=NAMED)
    assert exchanged(Cut(relay.port, context, form)) == b"hello"
    assert relay.record()["sni"] == "app.example.com"


def test_a_large_hello_leaves_the_socket_as_it_was(start, backend, pki):
    """SO_RCVLOWAT would hold back small messages of the session."""
    context = client_context(pki, pki.client)
    context.set_alpn_protocols(MUCH_ALPN)
    relay = start([backend().address])
    peer = Cut(relay.port, context, in_pieces(8_192, 0.01))
    for number in range(20):
        peer.send(b"%d" % (number % 10))
        assert peer.receive(1) == b"%d" % (number % 10)
    peer.close()


@pytest.fixture
def visit(stack):
    """Connect and send these bytes: the socket."""

    def visit(relay, data=b""):
        sock = socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S)
        stack.enter_context(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(data)
        return sock

    return visit


def test_a_hello_that_drips_costs_little(start, backend, visit):
    """60 KB in 6,000 segments: read again at each of them, that would be 180 MB."""
    relay = start([backend().address])
    big = b"\x01" + MAX_HELLO_BYTES.to_bytes(3, "big") + bytes(60_000)
    before = relay.cpu_s()
    clients = [visit(relay) for _ in range(4)]
    flight = records(big, [16_384] * 4)
    for at in range(0, len(flight), 10):
        for client in clients:
            client.sendall(flight[at : at + 10])
    relay.let_it_turn()
    assert relay.cpu_s() - before < 1.0
    for client in clients:
        client.close()
    wait_until(lambda: len(relay.records()) == 4, "the end of all")
    assert {record["reason"] for record in relay.records()} == {"peer_gone"}


def test_a_client_that_ends_within_a_large_hello_is_noticed(start, backend, visit):
    relay = start([backend().address], top="[timeouts]\nhello_s = 60")
    client = visit(relay, records(b"\x01" + (60_000).to_bytes(3, "big") + bytes(9_000)))
    relay.let_it_turn()
    client.shutdown(socket.SHUT_WR)
    record = relay.record()
    assert record["reason"] == "peer_gone"
    assert record["duration_s"] < PATIENCE_S
    assert "bytes of its hello" in record["detail"]


OTHERS = {
    "application data": (b"\x17\x03\x03\x00\x05hello", 10, "not_tls"),
    "an alert": (b"\x15\x03\x01\x00\x02\x02\x28", 10, "not_tls"),
    "a change_cipher_spec": (b"\x14\x03\x03\x00\x01\x01", 10, "not_tls"),
    "a heartbeat": (b"\x18\x03\x02\x00\x03\x01\x40\x00", 10, "not_tls"),
    "a record of another kind": (b"\x63\x03\x01\x00\x02\x01\x00", 10, "not_tls"),
    "an SSLv2 hello": (b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10", 10, "not_tls"),
    "a server's hello": (b"\x16\x03\x03\x00\x06\x02\x00\x00\x02\x03\x03", 10, "malformed_hello"),
    "a finished": (b"\x16\x03\x03\x00\x10\x14\x00\x00\x0c" + bytes(12), 10, "malformed_hello"),
    "a hello request": (b"\x16\x03\x03\x00\x04\x00\x00\x00\x00", 10, "malformed_hello"),
    "33 empty records": (b"\x16\x03\x01\x00\x00" * 33, 10, "malformed_hello"),
    "record version 0.0": (b"\x16\x00\x00\x00\x05\x01\x00", 70, "not_tls"),
    "record version 2.0": (b"\x16\x02\x00\x00\x05\x01\x00", 70, "not_tls"),
    "record version 255.255": (b"\x16\xff\xff\x00\x05\x01\x00", 70, "not_tls"),
    "a record that is too long": (b"\x16\x03\x01\x40\x01\x01\x00", 22, "malformed_hello"),
    "what is not TLS at all": (b"SSH-2.0-OpenSSH_9.2\r\n", 0, "not_tls"),
}


@pytest.mark.parametrize("case", OTHERS.values(), ids=OTHERS)
def test_another_first_message_is_answered_with_its_alert(start, backend, visit, case):
    sent, alert, reason = case
    relay = start([backend().address])
    sock = visit(relay, sent)
    assert sock.recv(100) == (bytes((21, 3, 3, 0, 2, 2, alert)) if alert else b"")
    record = relay.record()
    assert (record["reason"], record["side"]) == (reason, "inbound")


@pytest.mark.parametrize("version", [0x0000, 0x0200, 0x02FF])
def test_a_hello_of_a_version_before_ssl3_gets_protocol_version(start, backend, visit, version):
    relay = start([backend().address])
    hello = bytearray(HELLOS["openssl4_tls12_only"])
    hello[9:11] = version.to_bytes(2, "big")
    assert visit(relay, hello).recv(100) == bytes((21, 3, 3, 0, 2, 2, 70))
    assert relay.record()["reason"] == "malformed_hello"


@pytest.mark.parametrize("name", ["openssl4_tls12_only", "openssl4_tls13_only"])
def test_a_hello_of_ssl3_is_told_by_its_version(start, backend, visit, name):
    """Alone, and beside supported_versions."""
    relay = start([backend().address])
    hello = bytearray(HELLOS[name])
    hello[9:11] = b"\x03\x00"
    assert visit(relay, hello).recv(100)[5:] == b"\x02\x46"
    assert relay.record()["reason"] == "protocol_version"


@pytest.mark.parametrize("version", [0x0304, 0x0400, 0xFFFF])
def test_a_hello_of_a_newer_version_gets_a_known_one(start, backend, visit, version):
    relay = start([backend().address])
    hello = bytearray(HELLOS["openssl4_tls12_only"])
    hello[9:11] = version.to_bytes(2, "big")
    answer = visit(relay, hello).recv(100)
    assert (answer[:1], answer[5:6], answer[9:11]) == (b"\x16", b"\x02", b"\x03\x03")


ODD = {
    "an IPv6 literal": (b"::1", "::1"),
    "an IPv6 literal in brackets": (b"[::1]", "[::1]"),
    "an IPv4 address": (b"192.0.2.1", "192.0.2.1"),
    "a name with a port": (b"app.example.com:443", "app.example.com:443"),
    "UTF-8": ("bücher.example.com".encode(), "bücher.example.com"),
    "no text": (b"\xff\xfe.example.com", r"\xff\xfe.example.com"),
    "a space below a wildcard": (b"a b.example.com", "a b.example.com"),
    "a star": (b"*.example.com", "*.example.com"),
    "a dot below a wildcard": (b".example.com", ".example.com"),
    "two dots": (b"a..example.com", "a..example.com"),
    "two trailing dots": (b"app.example.com..", "app.example.com.."),
    "a dot": (b".", "."),
    "a line break": (b"app.example.com\nforged", r"app.example.com\nforged"),
    "a terminal's escape": (b"\x1b[2J.example.com", r"\x1b[2J.example.com"),
    "a long label": (b"a" * 64 + b".example.com", "a" * 64 + ".example.com"),
    "a long name": (b"[" + b"a" * 254, "[" + "a" * 126 + "…"),
}


def raw_client(pki, port, name, version=SSL.TLS1_3_VERSION):
    """A client that sends any bytes as server name; the standard library does not."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(version)
    context.set_max_proto_version(version)
    context.use_certificate_chain_file(str(pki.client.certificate))
    context.use_privatekey_file(str(pki.client.key))
    sock = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    client = SSL.Connection(context, sock)
    client.set_tlsext_host_name(name)
    client.set_connect_state()
    sock.setblocking(True)
    return client


def close(client):
    client.sock_shutdown(socket.SHUT_RDWR)
    client.close()


@pytest.fixture
def with_default(tmp_path, pki, stack, backend):
    """A worker with routes for names, for wildcards, and one for everything else."""
    routes = route_toml(pki, sni=NAMED) + route_toml(pki, sni='["*.com"]') + route_toml(pki)
    toml = f'[[listener]]\nname = "https"\nlisten = ["127.0.0.1:0"]\n{routes}'
    relay = RunningWorker(tmp_path, toml + pool_toml(pki, [backend().address]))
    stack.callback(relay.close)
    return relay


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
@pytest.mark.parametrize(("sent", "shown"), ODD.values(), ids=ODD)
def test_a_name_that_is_no_host_name_reaches_the_default_route(
    with_default, pki, sent, shown, version
):
    relay = with_default
    client = raw_client(pki, relay.port, sent, version)
    client.do_handshake()
    client.sendall(b"hello")
    assert client.recv(5) == b"hello"
    close(client)
    record = relay.record()
    assert (record["route"], record["sni"]) == ("default", shown)


@pytest.mark.parametrize(("sent", "shown"), ODD.values(), ids=ODD)
def test_a_name_that_is_no_host_name_needs_a_default_route(start, backend, pki, sent, shown):
    relay = start([backend().address], sni=NAMED)
    client = raw_client(pki, relay.port, sent)
    with pytest.raises(SSL.Error, match="unrecognized name"):
        client.do_handshake()
    client.close()
    record = relay.record()
    assert (record["reason"], record["sni"], record["route"]) == ("unknown_sni", shown, "")
    assert record["sni"].isprintable()


def test_a_name_with_trailing_dot_and_capitals_is_the_same(start, backend, pki):
    relay = start([backend().address], sni=NAMED)
    client = raw_client(pki, relay.port, b"APP_1.Example.COM.")
    client.do_handshake()
    close(client)
    assert relay.record()["sni"] == "app_1.example.com"


def test_an_underscore_is_part_of_names_in_use(start, backend, pki):
    relay = start([backend().address], sni='["my_app.example.com", "*._tcp.example.com"]')
    for name in ("my_app.example.com", "_sip._tcp.example.com"):
        context = client_context(pki, pki.client)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        sock = socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S)
        assert exchanged(Peer(sock, context, server_side=False, name=name)) == b"hello"


# s_client's options, the route's setting, and what the log line says of the client.
OFFERS = {
    "TLS 1.1": (("-tls1_1", "-cipher", "ALL:@SECLEVEL=0"), "", "offers at most TLS 1.1"),
    "TLS 1.2": (("-tls1_2",), 'min_version = "TLSv1.3"', "offers at most TLS 1.2"),
    "TLS 1.3": (("-tls1_3",), 'max_version = "TLSv1.2"', "offers TLS 1.3"),
    "cipher": (("-tls1_2", "-cipher", "AES128-SHA"), "", "offers the ciphers AES128-SHA"),
    "suite": (
        ("-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_SHA256"),
        "",
        "offers the ciphers TLS_AES_128_CCM_SHA256 and the groups ",
    ),
    "group": (("-tls1_3", "-groups", "X448"), "", "offers the groups X448"),
    "ALPN": (("-alpn", "foo,http/1.1"), 'alpn = ["h2"]', "offers the protocols foo, http/1.1"),
}


@needs("openssl")
@pytest.mark.parametrize(("options", "route", "said"), OFFERS.values(), ids=OFFERS)
def test_a_refusal_names_what_the_client_offers(start, backend, options, route, said):
    relay = start([backend().address], route=route)
    command = [program("openssl"), "s_client", "-connect", f"127.0.0.1:{relay.port}"]
    command += ["-servername", "app.example.com", *options]
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False)
    assert f"the client {said}" in relay.record()["detail"]
