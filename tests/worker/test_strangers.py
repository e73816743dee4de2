"""Refused clients: each is closed in time, counted, and logged with a remedy.

A session that runs beside them goes on.
"""

import socket
import ssl

import pytest

from tests.support.peer import PATIENCE_S, dial
from tests.support.worker import client_context

QUICK = "[timeouts]\nhello_s = 0.4\nhandshake_s = 0.4"
NAMED = '["app.example.com", "*.example.com"]'


@pytest.fixture
def busy(start, door, pair):
    """A worker with a session, which must still be served after the test."""
    back = door()
    relay = start([back.address], top=QUICK, sni=NAMED)
    client, server = pair(relay, back)
    yield relay
    client.send(b"still there?")
    assert server.receive(12) == b"still there?"
    server.send(b"yes")
    assert client.receive(3) == b"yes"
    assert relay.value("relay_connections_active") == 1
    client.close()
    server.close()


@pytest.fixture
def visit(busy, stack):
    """Connect and send these bytes. Returns the socket."""

    def visit(data=b""):
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", busy.port), PATIENCE_S))
        if data:
            sock.sendall(data)
        return sock

    return visit


def knock(port, context):
    """Handshake, then read: in TLS 1.3 the refusal arrives with the first read."""
    peer = dial(port, context)
    try:
        peer.receive_some()
    finally:
        peer.sock.close()


def read_to_end(sock):
    data = b""
    try:
        while chunk := sock.recv(4096):
            data += chunk
    except ConnectionResetError:
        pass
    return data


def check_refusal(relay, reason, *, route="none"):
    record = relay.record()
    assert (record["reason"], record["side"]) == (reason, "inbound")
    assert record["remedy"]
    assert record["client"].startswith("127.0.0.1:")
    assert relay.value("relay_sessions_closed_total", reason) == 1
    assert relay.value("relay_handshakes_total", "inbound", reason) == 1
    assert relay.value("relay_connections_total", "https", route) == (1 if route == "none" else 2)
    return record


def client_hello(name="app.example.com"):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(into, out, server_hostname=name or None).do_handshake()
    return out.read()


def big_hello(size):
    """A ClientHello of `size` bytes in full records. Only its length is wrong."""
    suites = b"\x13\x01" * max(1, (size - 60_000) // 2)  # one extension has 65,535 bytes at most
    body = b"\x03\x03" + bytes(32) + b"\0" + len(suites).to_bytes(2, "big") + suites + b"\x01\0"
    padding = size - 4 - len(body) - 2 - 4
    body += (
        (padding + 4).to_bytes(2, "big") + b"\0\x15" + padding.to_bytes(2, "big") + bytes(padding)
    )
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    chunks = [message[at : at + 16_384] for at in range(0, len(message), 16_384)]
    return b"".join(b"\x16\x03\x01" + len(chunk).to_bytes(2, "big") + chunk for chunk in chunks)


def test_random_bytes_are_not_tls(busy, visit):
    assert read_to_end(visit(bytes(range(200, 256)) * 20)) == b""
    check_refusal(busy, "not_tls")


def test_plain_http_is_answered_in_http(busy, visit):
    answer = read_to_end(visit(b"GET / HTTP/1.1\r\nHost: app.example.com\r\n\r\n"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"Content-Length: %d" % len(body) in head
    assert b"use https" in body
    check_refusal(busy, "plain_http")


def test_a_large_upload_in_plain_http_reads_the_answer(busy, visit):
    sock = visit(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000)
    assert read_to_end(sock).startswith(b"HTTP/1.1 400 ")
    check_refusal(busy, "plain_http")


def test_half_a_hello_is_closed_after_hello_s(busy, visit):
    assert read_to_end(visit(client_hello()[:100])) == b""
    record = check_refusal(busy, "hello_timeout")
    assert 0.4 <= record["duration_s"] < 5


def test_a_hello_of_72000_bytes_is_refused(busy, visit):
    assert read_to_end(visit(big_hello(72_000))) == b"\x15\x03\x03\x00\x02\x02\x2f", (
        "illegal_parameter"
    )
    check_refusal(busy, "malformed_hello")


def test_a_silent_client_is_closed_after_hello_s(busy, visit):
    assert read_to_end(visit()) == b""
    check_refusal(busy, "hello_timeout")


def test_a_client_that_connects_and_leaves_is_logged(busy, visit):
    visit().close()
    check_refusal(busy, "peer_gone")


def test_an_unknown_name_is_told_to_the_client(busy, pki):
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        dial(busy.port, client_context(pki, pki.client), "nobody.example.net")
    assert check_refusal(busy, "unknown_sni")["sni"] == "nobody.example.net"


def test_a_missing_name_is_refused_where_one_is_needed(busy, pki):
    context = client_context(pki, pki.client)
    context.check_hostname = False
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        dial(busy.port, context, None)
    check_refusal(busy, "no_sni")


def test_a_client_silent_after_its_hello_is_closed_in_time(busy, visit):
    sock = visit(client_hello())
    assert read_to_end(sock)[:1] == b"\x16", "relay's half of the handshake"
    assert (
        check_refusal(busy, "handshake_timeout", route="app.example.com")["sni"]
        == "app.example.com"
    )


def test_a_client_that_resets_in_its_handshake_is_gone(busy, visit):
    sock = visit(client_hello())
    assert sock.recv(1)
    sock.close()  # with unread bytes: a reset
    check_refusal(busy, "peer_gone", route="app.example.com")


REFUSED = {
    "none": "no_certificate",
    "expired": "expired",
    "not_yet_valid": "not_yet_valid",
    "wrong_ca": "unknown_ca",
    "wrong_purpose": "wrong_purpose",
    "intermediate_missing": "unknown_ca",
    "self_signed": "unknown_ca",
}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("kind", REFUSED)
def test_a_client_with_a_wrong_certificate_is_told_by_an_alert(busy, pki, kind, version):
    files = pki.client_matrix()[kind]
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        knock(busy.port, client_context(pki, files, version=version))
    record = check_refusal(busy, REFUSED[kind], route="app.example.com")
    assert bool(record["subject"] and record["issuer"] and record["serial"]) == (kind != "none")


def test_a_certificate_with_its_intermediate_is_accepted(start, door, pair, pki):
    back = door()
    client, server = pair(
        start([back.address]), back, context=client_context(pki, pki.client_intermediate_sent)
    )
    client.send(b"x")
    assert server.receive(1) == b"x"


def test_a_client_that_no_allow_rule_matches_is_told_by_an_alert(start, backend, call, pki):
    relay = start(
        [backend().address], route='allow = { cn = ["bob"], san_uri = ["spiffe://corp/*"] }'
    )
    with pytest.raises(ssl.SSLError, match=r"(?i)alert.bad.certificate"):
        knock(relay.port, client_context(pki, pki.client))
    record = relay.record()
    assert record["reason"] == "not_allowed"
    assert "alice" in record["detail"]
    assert relay.value("relay_handshakes_total", "inbound", "not_allowed") == 1
    allowed = call(relay, context=client_context(pki, pki.client_spiffe))
    allowed.send(b"x")
    assert allowed.receive(1) == b"x"


def test_a_client_that_does_not_trust_relay_is_logged(busy, pki):
    stranger = ssl.create_default_context(cafile=str(pki.foreign_ca))
    stranger.load_cert_chain(pki.client.certificate, pki.client.key)
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        dial(busy.port, stranger)
    check_refusal(busy, "alert_unknown_ca", route="app.example.com")


def test_a_hello_that_comes_byte_by_byte_is_served(start, door, pki, stack):
    back = door()
    relay = start([back.address], sni=NAMED)
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(pki, pki.client).wrap_bio(into, out, server_hostname="app.example.com")
    sock = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while True:
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            for byte in out.read():
                sock.sendall(bytes((byte,)))
            into.write(sock.recv(65536))
        else:
            break
    client.write(b"done")
    for byte in out.read():
        sock.sendall(bytes((byte,)))
    assert back.accept().receive(4) == b"done"


def test_a_hello_cut_into_tiny_records_is_served(start, door, pki, stack):
    back = door()
    relay = start([back.address], sni=NAMED)
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(pki, pki.client).wrap_bio(into, out, server_hostname="app.example.com")
    sock = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), PATIENCE_S))
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    message = out.read()[5:]
    sock.sendall(
        b"".join(
            b"\x16\x03\x01" + len(message[at : at + 40]).to_bytes(2, "big") + message[at : at + 40]
            for at in range(0, len(message), 40)
        )
    )
    while True:
        into.write(sock.recv(65536))
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            sock.sendall(out.read())
        else:
            break
    client.write(b"done")
    sock.sendall(out.read())
    assert back.accept().receive(4) == b"done"
