"""A handshake in tiny records is taken in small portions, so others do not wait."""

import contextlib
import select
import socket
import ssl
import threading

import pytest

from relay.demo.ca import LeafSpec, to_pem
from relay.errors import Reason, Side
from relay.tls import stream
from relay.tls.explain import Failure
from relay.tls.stepwise import MAX_BYTES, STEP_BYTES, Handshaker, unread_bytes
from relay.worker.connection import Connection
from tests.support.crls import make_crl
from tests.support.crls import to_pem as lists_to_pem
from tests.support.fragments import FragmentingClient, cut_plain
from tests.support.handshakes import (
    accept_on,
    route_of,
    server_context,
    target_of,
    tcp_pair,
    wait_readable,
)
from tests.support.peer import PATIENCE_S
from tests.support.strangers import NAME, knock
from tests.support.worker import client_context, wait_until

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def certificate(pki, names):
    """A valid client certificate, of about 20 bytes for each name."""
    dns = tuple(f"n{number:05}.example.com" for number in range(names))
    return pki.write(pki.authority.issue(LeafSpec(cn="alice", purposes=("client",), dns=dns)))


@pytest.fixture
def fragmenting(pki, tmp_path, stack):
    """A client whose last flight is in records of `size` bytes, and not sent yet."""

    def connect(sock, version, size=1, files=None):
        context = client_context(pki, files or pki.client, version=version)
        return FragmentingClient(stack.enter_context(sock), context, NAME, size, tmp_path / "keys")

    return connect


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("revoked", [False, True])
def test_a_chain_of_an_earlier_step_is_looked_up(
    start, backend, fragmenting, pki, tmp_path, version, revoked
):
    # The last step sees the leaf only, and its issuer has a namesake that revoked it.
    issuer, twin = (pki.authority.intermediate("Twin") for _ in range(2))
    files = pki.write(issuer.issue(LeafSpec("alice", purposes=("client",), key_identifiers=False)))
    leaf, cas, crl = files.issued.certificate, tmp_path / "cas.pem", tmp_path / "lists.pem"
    cas.write_bytes(to_pem(each.certificate for each in (pki.authority, issuer, twin)))
    lists = make_crl(issuer, [leaf] if revoked else []), make_crl(twin, [leaf])
    crl.write_bytes(lists_to_pem(make_crl(pki.authority), *lists))
    relay = start([backend().address], route=f'client_crl = ["{crl}"]', client_ca=cas)
    client = fragmenting(knock(relay.port), version, 16, files=files)
    each = len(client.flight) // 6 + 1
    for at in range(0, len(client.flight), each):
        with contextlib.suppress(OSError):  # it may have been refused already
            client.sock.sendall(client.flight[at : at + each])
        relay.let_it_turn()
    if not revoked:
        assert client.exchange(b"hello", 5) == b"hello"
        client.sock.close()
    assert relay.record()["reason"] == ("revoked" if revoked else "truncated")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("cut", [(1, 1), (1, 3), (7, 1)])
def test_a_client_with_tiny_records_comes_in(start, backend, fragmenting, version, cut):
    size, pieces = cut
    relay = start([backend().address])
    client = fragmenting(knock(relay.port), version, size)
    each = len(client.flight) // pieces + 1
    for at in range(0, len(client.flight), each):
        client.sock.sendall(client.flight[at : at + each])
        relay.let_it_turn()
    assert client.exchange(b"hello", 5) == b"hello"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_handshake_with_too_many_records_is_refused(start, backend, fragmenting, pki, version):
    relay = start([backend().address])
    tiny = 6 if version is ssl.TLSVersion.TLSv1_2 else 23
    client = fragmenting(knock(relay.port), version, 1, certificate(pki, MAX_BYTES // tiny // 18))
    assert len(client.flight) > MAX_BYTES
    with contextlib.suppress(OSError):
        client.sock.sendall(client.flight)
        while client.sock.recv(65536):
            pass
    record = relay.record()
    # TLS 1.2 has little overhead: the certificates are too long before there are too
    # many records.
    assert (record["reason"] in {"tls_error", "chain_too_long"}, record["side"]) == (
        True,
        "inbound",
    )
    assert "tiny records" in record["detail"] or "bytes of certificates" in record["detail"]


class Ours:
    """The relay's end of a handshake."""

    def __init__(self, sock, handshaker=None):
        self.end = Connection(sock)
        self.handshaker = handshaker or Handshaker()
        self.portions = []

    def step(self, side):
        before = unread_bytes(self.end.fd)
        hello = before if side is Side.INBOUND and not self.portions else None
        progress = self.handshaker.step(self.end, side, unread=hello)
        self.portions.append(before - unread_bytes(self.end.fd))
        return progress

    def run(self, side):
        """To the end, or until there is nothing to read."""
        while (progress := self.step(side)) is stream.STEP_MORE:
            pass
        return progress


@pytest.mark.parametrize("version", VERSIONS)
def test_no_step_takes_more_than_a_portion(pki, stack, fragmenting, version):
    ours, theirs = (stack.enter_context(sock) for sock in tcp_pair())
    theirs.settimeout(PATIENCE_S)
    relay = Ours(ours)
    relay.end.ssl = accept_on(route_of(pki), ours)
    stack.callback(stream.free, relay.end.ssl, established=False)
    made = []
    files = certificate(pki, 100)
    thread = threading.Thread(
        target=lambda: made.append(fragmenting(theirs, version, 1, files)), daemon=True
    )
    thread.start()
    wait_readable(ours)
    assert relay.run(Side.INBOUND) is stream.STEP_WANT_READ
    thread.join(PATIENCE_S)
    made[0].sock.sendall(made[0].flight)
    wait_until(lambda: unread_bytes(ours.fileno()) > STEP_BYTES, "the flight to arrive")
    while (progress := relay.run(Side.INBOUND)) is stream.STEP_WANT_READ:
        wait_readable(ours)
    assert progress is stream.DONE
    assert max(relay.portions) == STEP_BYTES
    assert len(relay.portions) >= len(made[0].flight) // STEP_BYTES


@pytest.mark.parametrize("size", [100, 3 * STEP_BYTES])
def test_after_a_step_that_was_slow_for_many_bytes_all_are_fed(pki, stack, monkeypatch, size):
    """Only the time that the step took shows that bytes came while OpenSSL read."""
    ours, theirs = (stack.enter_context(sock) for sock in tcp_pair())
    relay = Ours(ours)
    relay.end.ssl = accept_on(route_of(pki), ours)
    stack.callback(stream.free, relay.end.ssl, established=False)
    monkeypatch.setattr("relay.tls.stepwise.SLOW_S", -1.0)
    hello = b"\x01" + (2 * size).to_bytes(3, "big") + bytes(size)
    theirs.sendall(cut_plain(b"\x16\x03\x01" + len(hello).to_bytes(2, "big") + hello, 100))
    wait_until(lambda: unread_bytes(ours.fileno()) > size, "all of it")
    assert relay.handshaker.step(relay.end, Side.INBOUND, unread=0) is stream.STEP_WANT_READ
    assert relay.end.stepwise is None
    relay.step(Side.INBOUND)
    assert (relay.end.stepwise is not None) == (size > STEP_BYTES)


def careful():
    handshaker = Handshaker()
    handshaker.careful_until_at = float("inf")
    return handshaker


@pytest.mark.parametrize("gone", ["after", "before"])
def test_an_end_is_seen_although_no_event_tells(pki, stack, gone):
    """A FIN that came together with the last bytes."""
    ours, theirs = tcp_pair()
    stack.enter_context(ours)
    relay = Ours(ours, careful())
    relay.end.ssl = accept_on(route_of(pki), ours)
    stack.callback(stream.free, relay.end.ssl, established=False)
    theirs.sendall(b"\x16\x03\x01\x01\x00\x01")
    if gone == "before":
        theirs.close()
        wait_until(lambda: ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 8, "FIN")
    else:
        wait_readable(ours)
        assert relay.run(Side.INBOUND) is stream.STEP_WANT_READ
        theirs.close()
        wait_readable(ours)
    failure = relay.run(Side.INBOUND)
    assert isinstance(failure, Failure)
    assert (failure.reason, failure.detail) == (Reason.PEER_GONE, "the connection was closed")


def test_what_a_peer_does_not_take_is_sent_later(pki, stack):
    """A fed handshake whose answer is longer than the socket's buffer."""
    ours, theirs = (stack.enter_context(sock) for sock in tcp_pair())
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    # Several times: the kernel takes a while to move bytes into the peer's buffer.
    for _ in range(5):
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(bytes(65536))
        select.select([], [ours], [], 0.05)
    relay = Ours(ours, careful())
    target = target_of(pki)
    relay.end.ssl = stream.connect(target.context, ours.fileno(), target.server_name, b"", None)
    stack.callback(stream.free, relay.end.ssl, established=False)
    assert relay.step(Side.OUTBOUND) is stream.STEP_WANT_WRITE
    received = b""
    while b"\x16\x03\x01" not in received:
        select.select([theirs], [], [], PATIENCE_S)
        received += theirs.recv(1 << 20)
        relay.step(Side.OUTBOUND)
    hello = received[received.index(b"\x16\x03\x01") :]
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = server_context(pki, pki.backend).wrap_bio(received, sent, server_side=True)
    received.write(hello)
    theirs.settimeout(PATIENCE_S)
    while (progress := relay.run(Side.OUTBOUND)) is not stream.DONE:
        assert not isinstance(progress, Failure), progress
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        if sent.pending:
            theirs.sendall(sent.read())
            wait_readable(ours)
        else:
            received.write(theirs.recv(65536))
    with contextlib.suppress(ssl.SSLWantReadError):
        received.write(theirs.recv(65536))
        tls.do_handshake()
    assert tls.version() == "TLSv1.3"


def test_a_backend_with_tiny_records_serves(start, door, call, pki):
    back = door()
    relay = start([back.address])
    client = call(relay)
    sock = back.accept_tcp()
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = server_context(pki, pki.backend, ssl.TLSVersion.TLSv1_2)
    tls = context.wrap_bio(received, sent, server_side=True)
    while True:
        received.write(sock.recv(65536))
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            sock.sendall(cut_plain(sent.read(), 1))
        else:
            break
    sock.sendall(sent.read())
    client.send(b"hello")
    while True:
        try:
            assert tls.read(5) == b"hello"
            break
        except ssl.SSLWantReadError:
            received.write(sock.recv(65536))
    sock.close()
