"""A backend that fails before the client's first byte was forwarded.

The session tries the next one, and the failed one is not used for retry_s.
"""

import contextlib
import signal
import socket
import ssl
import threading

import pytest

from relay.shared.entities import RETRY_UNTIL_MS, Series
from tests.support.backend import name_itself
from tests.support.worker import wait_until

QUICK = "[timeouts]\nconnect_s = 0.5\nhandshake_s = 0.5"


class PlainServer:
    """A TCP server without TLS: `answer` is called with every accepted socket."""

    def __init__(self, answer):
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._answer = answer
        self._kept = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._kept.append(sock)
            self._answer(sock)

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._kept:
            sock.close()


@pytest.fixture
def plain(stack):
    def start(answer):
        server = PlainServer(answer)
        stack.callback(server.close)
        return server.address

    return start


def refusing_address():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def ask(client):
    client.send(b"?\n")
    return client.receive(3)[:2]


# Kinds of broken backends, and the reason of each.
BROKEN = {
    "a port without a listener": ("backend_refused", lambda make: refusing_address()),
    "one that accepts and closes": (
        "backend_gone",
        lambda make: make["plain"](socket.socket.close),
    ),
    "one that speaks no TLS": (
        "backend_not_tls",
        lambda make: make["plain"](
            lambda sock: sock.sendall(b"220 smtp.example.com ESMTP at your service\r\n")
        ),
    ),
    "one that never answers": (
        "backend_handshake_timeout",
        lambda make: make["plain"](lambda sock: None),
    ),
    "one with another's name": (
        "backend_wrong_name",
        lambda make: make["tls"]("backend_wrong_name"),
    ),
    "one whose certificate expired": (
        "backend_expired",
        lambda make: make["tls"]("backend_expired"),
    ),
    "one whose certificate is of the future": (
        "backend_not_yet_valid",
        lambda make: make["tls"]("backend_not_yet_valid"),
    ),
    "one of a foreign CA": ("backend_unknown_ca", lambda make: make["tls"]("backend_foreign")),
    "one that vouches for itself": (
        "backend_unknown_ca",
        lambda make: make["tls"]("backend_self_signed"),
    ),
    "one with a client's certificate": (
        "backend_wrong_purpose",
        lambda make: make["tls"]("backend_wrong_purpose"),
    ),
    "one of TLS 1.2 that refuses our certificate": (
        "backend_rejected_our_certificate",
        lambda make: make["refusing"](ssl.TLSVersion.TLSv1_2),
    ),
}


@pytest.fixture
def broken(plain, backend, pki):
    """Start a broken backend of this kind: its address and the reason."""

    def tls(certificate):
        return backend(files=getattr(pki, certificate)).address

    def refusing(version):
        return backend(client_ca=pki.foreign_ca, version=version).address

    def make(what):
        reason, start = BROKEN[what]
        return start({"plain": plain, "tls": tls, "refusing": refusing}), reason

    return make


def patience_for(reason):
    """Short timeouts, but only to provoke a timeout: others would be beaten by it."""
    return QUICK if reason.endswith("timeout") else ""


@pytest.mark.parametrize("what", BROKEN)
def test_the_next_backend_serves_the_client_of_a_broken_one(start, backend, call, broken, what):
    address, reason = broken(what)
    good = backend(name_itself("b2"))
    relay = start([address, good.address], top=patience_for(reason))
    client = call(relay)
    assert ask(client) == b"b2"
    client.close()
    record = relay.record()
    assert (record["backend"], record["why"], record["reason"], record["side"]) == (
        "b2",
        "failover",
        "finished",
        "",
    )
    assert relay.value("relay_handshakes_total", "outbound", reason) == 1
    assert relay.value("relay_backend_selected_total", "main", "b2", "failover") == 1
    assert relay.snapshot().states[Series(RETRY_UNTIL_MS, ("main", "b1"))] > 0
    # It is marked failed, so the next clients do not try it.
    for number in range(1, 4):
        client = call(relay)
        assert ask(client) == b"b2"
        client.close()
        relay.record(number)
    assert relay.value("relay_handshakes_total", "outbound", reason) == 1
    wait_until(
        lambda: relay.value("relay_backend_connections_active", "main", "b2") == 0,
        "the gauge to return to zero",
    )
    assert relay.value("relay_backend_connections_active", "main", "b1") == 0


@pytest.mark.parametrize("what", BROKEN)
def test_the_only_backend_fails_with_reason_and_remedy(start, call, broken, what):
    address, reason = broken(what)
    relay = start([address], top=patience_for(reason))
    client = call(relay)
    assert client.end()[1] in {"fin", "reset"}
    record = relay.record()
    assert (record["reason"], record["side"], record["backend"]) == (reason, "outbound", "b1")
    assert record["remedy"]
    assert address in record["detail"]
    assert relay.value("relay_sessions_closed_total", reason) == 1
    assert (
        relay.value("relay_connections_active")
        == relay.value("relay_backend_connections_active", "main", "b1")
        == 0
    )


def test_when_all_backends_fail_the_last_reason_counts(start, call, broken):
    refused, _ = broken("a port without a listener")
    foreign, _ = broken("one of a foreign CA")
    relay = start([refused, foreign], pool='sticky = "source"')
    reasons = {"b1": "backend_refused", "b2": "backend_unknown_ca"}
    assert call(relay).end()[0] == b""
    record = relay.record()
    assert record["reason"] == reasons[record["backend"]]
    assert relay.value("relay_handshakes_total", "outbound", "backend_refused") == 1
    assert relay.value("relay_handshakes_total", "outbound", "backend_unknown_ca") == 1


def test_when_all_backends_are_marked_failed_they_are_tried(start, backend, call, pki):
    address = refusing_address()
    relay = start([address], pool="retry_s = 3600")
    call(relay).end()
    assert relay.record()["reason"] == "backend_refused"
    backend(name_itself("b1"), port=int(address.rpartition(":")[2]))
    assert ask(call(relay)) == b"b1"


def test_a_failed_backend_is_used_again_when_retry_s_is_over(start, backend, call):
    address = refusing_address()
    relay = start([address, backend(name_itself("b2")).address], pool="retry_s = 1")
    assert [ask(call(relay)) for _ in range(4)] == [b"b2"] * 4
    assert relay.value("relay_handshakes_total", "outbound", "backend_refused") == 1
    backend(name_itself("b1"), port=int(address.rpartition(":")[2]))
    wait_until(lambda: ask(call(relay)) == b"b1", "b1 to be used again")


def test_what_one_worker_learns_of_a_backend_the_others_know(start, backend, call):
    addresses = [refusing_address(), backend(name_itself("b2")).address]
    first = start(addresses, pool="retry_s = 3600")
    second = start(addresses, pool="retry_s = 3600", worker=first)
    for _ in range(2):
        assert ask(call(first)) == b"b2"
    assert first.value("relay_handshakes_total", "outbound", "backend_refused") == 1
    for _ in range(4):
        assert ask(call(second)) == b"b2"
    assert first.value("relay_handshakes_total", "outbound", "backend_refused") == 1, (
        "both workers' counters are summed"
    )


def test_a_backend_that_does_not_accept_fails_after_connect_s(start, backend, call, stack):
    # A listener whose queue is full: the kernel drops further SYNs.
    full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    for _ in range(4):
        filler = stack.enter_context(socket.socket())
        filler.setblocking(False)
        filler.connect_ex(full.getsockname())
    relay = start(
        [f"127.0.0.1:{full.getsockname()[1]}", backend(name_itself("b2")).address], top=QUICK
    )
    assert ask(call(relay)) == b"b2"
    assert relay.value("relay_handshakes_total", "outbound", "backend_timeout") == 1


def test_a_tls13_rejection_loses_at_most_one_client(start, door, backend, call, pki):
    # Its refusal comes after the relay's side of the handshake is done. By then the
    # client's request may be on its way.
    bad = door(client_ca=pki.foreign_ca, version=ssl.TLSVersion.TLSv1_3)
    relay = start([bad.address, backend(name_itself("b2")).address], pool="retry_s = 3600")
    first = call(relay)
    first.send(b"?\n")
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        bad.accept()
    # And none if the refusal arrives before the client's bytes are written.
    with contextlib.suppress(EOFError, ConnectionResetError):
        if first.receive_some() == b"b2\n":
            first.close()
    record = relay.record()
    expected = {("backend_rejected_our_certificate", "outbound", "b1"), ("finished", "", "b2")}
    assert (record["reason"], record["side"], record["backend"]) in expected
    assert (
        relay.value("relay_handshakes_total", "outbound", "backend_rejected_our_certificate") == 1
    )
    for _ in range(4):
        assert ask(call(relay)) == b"b2"
    assert (
        relay.value("relay_handshakes_total", "outbound", "backend_rejected_our_certificate") == 1
    )


def test_a_silent_client_survives_a_tls13_rejection(start, backend, call, pki):
    """It has sent nothing yet, so the session goes on with the next backend."""

    def greet(connection):
        connection.sendall(b"hello")
        connection.recv(1)
        connection.unwrap()

    bad = backend(client_ca=pki.foreign_ca, version=ssl.TLSVersion.TLSv1_3)
    relay = start([bad.address, backend(greet).address], pool="retry_s = 3600")
    client = call(relay)
    assert client.receive(5) == b"hello"
    client.close()
    record = relay.record()
    assert (record["backend"], record["why"], record["reason"], record["side"]) == (
        "b2",
        "failover",
        "finished",
        "",
    )
    assert (
        relay.value("relay_handshakes_total", "outbound", "backend_rejected_our_certificate") == 1
    )


def test_a_silent_client_is_closed_when_no_backend_is_left(start, backend, call, pki):
    """Its only backend speaks TLS 1.3 and rejects the machine certificate."""
    bad = backend(client_ca=pki.foreign_ca, version=ssl.TLSVersion.TLSv1_3)
    relay = start([bad.address])
    client = call(relay)
    assert client.end()[1] in {"fin", "reset"}
    assert relay.record()["reason"] == "backend_rejected_our_certificate"
    assert (
        relay.value("relay_connections_active")
        == relay.value("relay_backend_connections_active", "main", "b1")
        == 0
    )


def test_a_sticky_client_stays_on_its_backend(start, backend, call):
    relay = start(
        [backend(name_itself(f"b{i}")).address for i in (1, 2, 3)], pool='sticky = "source"'
    )
    assert len({ask(call(relay)) for _ in range(9)}) == 1


def test_round_robin_serves_all_backends_alike(start, backend, call):
    relay = start([backend(name_itself(f"b{i}")).address for i in (1, 2, 3)])
    assert sorted(ask(call(relay)) for _ in range(9)) == [b"b1"] * 3 + [b"b2"] * 3 + [b"b3"] * 3


def test_a_session_that_has_begun_does_not_change_its_backend(start, door, backend, call):
    back = door()
    relay = start([back.address, backend(name_itself("b2")).address])
    client = call(relay)
    client.send(b"mine")
    server = back.accept()
    assert server.receive(4) == b"mine"
    server.reset()
    assert client.end()[1] in {"fin", "reset"}
    record = relay.record()
    assert (record["reason"], record["backend"]) == ("outbound_reset", "b1")


def test_a_backend_lost_at_the_first_bytes_loses_no_client(start, door, backend, pair):
    lost, other = door(), backend(name_itself("other"))
    relay = start([lost.address, other.address])
    client, server = pair(relay, lost)
    wait_until(
        lambda: relay.value("relay_handshakes_total", "outbound", "ok") == 1, "both handshakes"
    )
    # The worker is stopped, so that it sees both at once, the client's bytes first.
    relay.signal(signal.SIGSTOP)
    client.send(b"who is there?")
    wait_until(lambda: client.unacknowledged() == 0, "the bytes to be in the worker's kernel")
    server.reset()
    relay.signal(signal.SIGCONT)
    assert client.receive(6) == b"other\n"
    client.close()
    record = relay.record()
    assert (record["backend"], record["why"], record["bytes_in"], record["bytes_out"]) == (
        "b2",
        "failover",
        13,
        6,
    )
