"""The log names the true cause of a backend failure; no good backend is marked."""

import contextlib
import os
import signal
import socket
import ssl
import struct
import threading

import pytest
from OpenSSL import SSL

from relay.demo.ca import LeafSpec
from relay.shared.entities import RETRY_UNTIL_MS, Series
from tests.support.pki import BACKEND_NAME
from tests.support.stubborn import StubbornServer
from tests.support.worker import client_context, wait_until

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


def ask(client, text=b"?"):
    client.send(text)
    assert client.receive(len(text)) == text


def is_marked_failed(relay, name="b1"):
    return relay.snapshot().states[Series(RETRY_UNTIL_MS, ("main", name))] > 0


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def test_a_backend_that_refuses_to_resume_gets_a_full_handshake(start, call, stack, pki, version):
    """A server that verifies clients and has no session id context.

    It answers a resumption with an alert.
    """
    server = StubbornServer(pki, version)
    stack.callback(server.close)
    relay = start([server.address])
    for number in range(4):
        client = call(relay)
        ask(client)
        client.close()
        record = relay.record(number)
        assert (record["reason"], record["backend"]) == ("finished", "b1")
    refused = [each for each in server.handshakes if each != "full"]
    assert server.handshakes.count("full") == 4
    assert len(refused) == 1, "after that no session asks for a resumption"
    assert not is_marked_failed(relay)
    assert relay.value("relay_handshakes_total", "outbound", "backend_tls_error") == 0
    assert relay.value("relay_handshakes_total", "outbound", "backend_alert_other") == 0
    assert relay.messages().count("refuses to resume TLS sessions") == 1


def test_a_backend_that_closes_on_a_resumption_gets_a_full_one(start, call, backend, stack):
    """For example a proxy in front of it that drops hellos it does not understand."""
    good = backend()
    seen = []

    def serve(listener):
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            hello = sock.recv(65536, socket.MSG_PEEK)
            seen.append(len(hello))
            if b"\x00\x29" in hello and len(seen) == 2:  # pre_shared_key, RFC 8446, 4.2
                sock.close()
                continue
            onward = socket.create_connection(("127.0.0.1", good.port))
            stack.callback(sock.close)
            stack.callback(onward.close)
            for one, other in ((sock, onward), (onward, sock)):
                threading.Thread(target=copy, args=(one, other), daemon=True).start()

    def copy(one, other):
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)

    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    stack.callback(lambda: listener.shutdown(socket.SHUT_RDWR))
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    relay = start([f"127.0.0.1:{listener.getsockname()[1]}"])
    for number in range(2):
        client = call(relay)
        ask(client)
        client.close()
        assert relay.record(number)["reason"] == "finished"
    assert len(seen) == 3
    assert not is_marked_failed(relay)


def test_a_broken_backend_is_marked_after_the_full_handshake(start, call, door):
    back = door()
    relay = start([back.address])
    client = call(relay)
    server = back.accept()
    server.send(b"x")
    assert client.receive(1) == b"x"
    server.close()
    client.close()
    relay.record()
    call(relay)
    for _ in range(2):
        back.accept_tcp().close()
    record = relay.record(1)
    assert (record["reason"], record["backend"]) == ("backend_gone", "b1")
    assert is_marked_failed(relay)
    assert relay.value("relay_handshakes_total", "outbound", "backend_gone") == 1


@pytest.mark.parametrize("protocol", ["h2", "postgresql", "x-own"])
def test_a_backend_without_the_clients_protocol_is_not_used(start, call, backend, pki, protocol):
    relay = start([backend().address], route=f'alpn = ["{protocol}", "http/1.1"]')
    client = call(relay, context=client_context(pki, pki.client, alpn=(protocol,)))
    assert client.end()[0] == b""
    record = relay.record()
    assert (record["reason"], record["side"], record["backend"]) == (
        "backend_no_shared_alpn",
        "outbound",
        "b1",
    )
    assert f"although the client speaks {protocol}" in record["detail"]
    assert not is_marked_failed(relay), "clients of other protocols are well served there"
    client = call(relay, context=client_context(pki, pki.client, alpn=("http/1.1",)))
    ask(client)  # what a server that selects nothing speaks


def test_a_backend_with_the_protocol_is_tried_next(start, call, backend, pki):
    relay = start([backend().address, backend(alpn=("h2",)).address], route='alpn = ["h2"]')
    for _ in range(4):
        ask(call(relay, context=client_context(pki, pki.client, alpn=("h2",))))


def test_a_refused_machine_certificate_is_logged_with_both_cas(start, call, backend, pki, stack):
    """The backend names the CAs it accepts; another CA issued relay's certificate."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_certificate_chain_file(str(pki.backend.certificate))
    context.use_privatekey_file(str(pki.backend.key))
    context.load_verify_locations(os.fsencode(pki.foreign_ca))
    context.load_client_ca(os.fsencode(pki.foreign_ca))
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                connection = SSL.Connection(context, sock)
                connection.set_accept_state()
                with contextlib.suppress(SSL.Error):
                    connection.do_handshake()
                sock.close()

    threading.Thread(target=serve, daemon=True).start()
    stack.callback(lambda: listener.shutdown(socket.SHUT_RDWR))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    relay = start([address])
    call(relay).end()
    record = relay.record()
    assert record["reason"] == "backend_rejected_our_certificate"
    assert address in record["detail"]
    assert '"CN=Foreign CA"' in record["detail"]
    assert (
        'the machine certificate "CN=relay machine" is issued by "CN=Test CA"' in record["detail"]
    )


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_a_refusal_is_never_logged_as_a_reset(start, call, backend, pki, version):
    """A failed write stops OpenSSL's reading, so the alert must be read first."""
    bad = backend(client_ca=pki.foreign_ca, version=version)
    relay = start([bad.address], pool="retry_s = 0.05")
    count = 30
    for _ in range(count):
        client = call(relay)
        with contextlib.suppress(OSError):
            client.send(b"GET / HTTP/1.1\r\n\r\n")
        client.end()
    wait_until(lambda: len(relay.records()) == count, "all log lines")
    reasons = {record["reason"] for record in relay.records()}
    assert reasons == {"backend_rejected_our_certificate"}
    assert all(bad.address in record["detail"] for record in relay.records())


def test_a_refusal_is_read_before_the_write_that_fails(start, call, door, pki):
    """Both events are pending when the worker wakes, and the client's comes first."""
    bad = door(client_ca=pki.foreign_ca, version=TLS13)
    relay = start([bad.address])
    client = call(relay)
    sock = bad.accept_tcp()
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = bad.context.wrap_bio(received, sent, server_side=True)
    received.write(sock.recv(65536))
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    sock.sendall(sent.read())
    wait_until(
        lambda: relay.value("relay_handshakes_total", "outbound", "ok") == 1,
        "the relay's part of the handshake",
    )
    relay.suspend()
    client.send(b"who is there?")
    wait_until(lambda: client.unacknowledged() == 0, "the bytes to be in the worker's kernel")
    flight = sock.recv(65536)
    received.write(flight)
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        tls.do_handshake()
    sock.sendall(sent.read())
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    relay.signal(signal.SIGCONT)
    client.end()
    record = relay.record()
    assert (record["reason"], record["backend"]) == ("backend_rejected_our_certificate", "b1")
    assert bad.address in record["detail"]


def test_a_late_handshake_failure_alert_is_no_failed_handshake(start, door, pair):
    """A TLS 1.2 server sends handshake_failure when it cannot renegotiate."""
    back = door(version=TLS12)
    relay = start([back.address])
    client, server = pair(relay, back)
    client.send(b"x")
    assert server.receive(1) == b"x"
    server.send(b"y")
    assert client.receive(1) == b"y"
    # A record that cannot be decrypted: the server answers with an alert.
    server._in.write(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(ssl.SSLError):
        server.receive_some()
    client.end()
    record = relay.record()
    assert record["reason"] == "backend_alert_other"
    assert back.address in record["detail"]


@pytest.mark.parametrize("how", ["fin", "close"])
def test_a_bare_fin_after_the_clients_clean_end_is_finished(start, door, pair, how):
    back = door()
    relay = start([back.address])
    client, server = pair(relay, back)
    client.send(b"the question")
    assert server.receive(12) == b"the question"
    server.send(b"the answer")
    assert client.receive(10) == b"the answer"
    client.close_notify()
    assert server.end() == (b"", "close_notify")
    server.fin() if how == "fin" else server.sock.close()
    client.end()
    record = relay.record()
    assert (record["reason"], record["side"]) == ("finished", "")


# Faults of a backend's certificate: how it is issued, the reason, part of the detail.
WRONG = {
    "a CN only": (
        {"dns": (), "ip": (), "cn": BACKEND_NAME},
        "backend_wrong_name",
        (
            "has no subjectAltName, and a CN does not count (RFC 9525); "
            f"reissue it with DNS:{BACKEND_NAME}"
        ),
    ),
    "another name": (
        {"dns": ("other.example.net",), "ip": ()},
        "backend_wrong_name",
        f'is for other.example.net, not for {BACKEND_NAME}; set name = "other.example.net"',
    ),
    "an address only": (
        {"dns": (), "ip": ("127.0.0.1",)},
        "backend_wrong_name",
        f"is for 127.0.0.1, not for {BACKEND_NAME}",
    ),
    "clientAuth only": (
        {"purposes": ("client",)},
        "backend_wrong_purpose",
        "its extendedKeyUsage (clientAuth) lacks serverAuth",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_the_fault_of_a_backends_certificate_is_logged(start, call, backend, pki, what):
    changes, reason, words = WRONG[what]
    wanted = LeafSpec(
        **{"cn": "b", "dns": (BACKEND_NAME,), "ip": (), "purposes": ("server",), **changes}
    )
    files = pki.write(pki.authority.issue(wanted))
    relay = start([backend(files=files).address])
    call(relay).end()
    record = relay.record()
    assert record["reason"] == reason
    assert words in record["detail"]


def test_a_foreign_ca_and_a_missing_intermediate_are_told_apart(start, call, backend, pki):
    below = pki.intermediate.issue(LeafSpec("b", dns=(BACKEND_NAME,), purposes=("server",)))
    incomplete = backend(files=pki.write(below, with_intermediates=False))
    relay = start([incomplete.address])
    call(relay).end()
    detail = relay.record()["detail"]
    assert (
        'sent 1 certificate, and the issuer "CN=Test Intermediate CA" is neither among them '
        "nor in backend_ca" in detail
    )


def test_a_backend_that_speaks_plain_http_is_recognized(start, call, stack):
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                sock.recv(1, socket.MSG_PEEK)
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
                stack.callback(sock.close)

    threading.Thread(target=serve, daemon=True).start()
    stack.callback(lambda: listener.shutdown(socket.SHUT_RDWR))
    relay = start([f"127.0.0.1:{listener.getsockname()[1]}"])
    call(relay).end()
    record = relay.record()
    assert record["reason"] == "backend_not_tls"
    assert (
        'answered "HTTP/1.1 400 Bad Request": it speaks plain HTTP on this port' in record["detail"]
    )


def test_the_machine_certificate_is_sent_after_the_handshake_too(start, call, pki, stack):
    """RFC 8446, 4.6.2. httpd does this where a location sets SSLVerifyClient."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.backend.certificate, pki.backend.key)
    context.load_verify_locations(pki.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    context.post_handshake_auth = True
    context.minimum_version = TLS13
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    peers = []

    def serve():
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                with context.wrap_socket(sock, server_side=True) as connection:
                    asked = connection.recv(100)
                    peers.append(connection.getpeercert())
                    connection.verify_client_post_handshake()
                    connection.sendall(b"wait")
                    asked = connection.recv(100)  # the certificate comes before it
                    peers.append(connection.getpeercert())
                    connection.sendall(asked)

    threading.Thread(target=serve, daemon=True).start()
    stack.callback(lambda: listener.shutdown(socket.SHUT_RDWR))
    relay = start([f"127.0.0.1:{listener.getsockname()[1]}"])
    client = call(relay)
    client.send(b"secret?")
    assert client.receive(4) == b"wait"
    client.send(b"please")
    assert client.receive(6) == b"please"
    assert peers[-1]["subject"] == ((("commonName", "relay machine"),),)
