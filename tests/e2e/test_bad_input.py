"""Clients that send nonsense, too much or nothing are closed, and disturb no other."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import time

import pytest

from tests.support.backend import TlsBackend
from tests.support.client import context_of
from tests.support.gateway import Gateway, wait_until
from tests.support.peer import dial
from tests.support.programs import needs, run
from tests.support.tables import listener_table, pool_table, route_table

HELLO_S = 0.5
PATIENCE_S = 20


@pytest.fixture(scope="module")
def gateway(pki):
    backend = TlsBackend(pki.backend.certificate, pki.backend.key, pki.ca)
    body = listener_table(route_table(pki, sni=["app.example.com"])) + pool_table(
        pki, [backend.address]
    )
    with Gateway(
        body, relay={"workers": 1}, timeouts={"hello_s": HELLO_S, "handshake_s": 1}
    ) as running:
        yield running
    backend.close()


@pytest.fixture
def bystander(gateway, pki):
    """A good session of the same worker, which must work before and after."""
    worker = gateway.workers()[0]
    peer = dial(gateway.port(), context_of(pki))

    def still_well():
        peer.send(b"are you there?")
        assert peer.receive(14) == b"are you there?"
        assert gateway.workers()[0] == worker, gateway.log()
        assert "Traceback" not in gateway.log()

    still_well()
    yield still_well
    still_well()
    client = f"127.0.0.1:{peer.sock.getsockname()[1]}"
    peer.close()
    gateway.wait_for_access(client=client)  # so that no later test takes this line for its own


def hello(name="app.example.com"):
    """A whole ClientHello of the standard library."""
    out = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


def send(gateway, data, *, more=True):
    """Send, and read to the end; returns the data and how long it took."""
    started = time.monotonic()
    with socket.create_connection(gateway.address(), PATIENCE_S) as raw:
        answer = b""
        with contextlib.suppress(ConnectionError):
            raw.sendall(data)
            if not more:
                raw.shutdown(socket.SHUT_WR)
            while chunk := raw.recv(65536):
                answer += chunk
    return answer, time.monotonic() - started


def oversized():
    """The first records of a ClientHello of 200,000 bytes."""
    message = (
        b"\1"
        + (200_000).to_bytes(3, "big")
        + b"\x03\x03"
        + bytes(32)
        + b"\0"
        + b"\0\2\x13\x01"
        + b"\1\0"
    )
    record = b"\x16\x03\x01" + (10_000).to_bytes(2, "big")
    return record + message + bytes(10_000 - len(message)) + 8 * (record + bytes(10_000))


CASES = {
    "random bytes": (random.Random(7).randbytes(3000), "not_tls"),
    "one zero": (b"\0", "not_tls"),
    "ssh": (b"SSH-2.0-OpenSSH_9.2\r\n", "not_tls"),
    "an SSL 2 hello": (b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + bytes(37), "not_tls"),
    "application data first": (b"\x17\x03\x03\x00\x05hello", "not_tls"),
    "plain HTTP": (b"GET / HTTP/1.1\r\nHost: app.example.com\r\n\r\n", "plain_http"),
    "200,000 bytes of hello": (oversized(), "malformed_hello"),
    "nothing but empty records": (3000 * b"\x16\x03\x01\x00\x00", "malformed_hello"),
    "a hello whose lengths lie": (hello()[:9] + b"\xff" * (len(hello()) - 9), "malformed_hello"),
    "a stranger's name": (hello("stranger.example.net"), "unknown_sni"),
}


@pytest.mark.parametrize("case", CASES)
def test_nonsense_is_refused_at_once_and_logged_with_a_remedy(gateway, bystander, case):
    data, reason = CASES[case]
    logged = len(gateway.access())
    answer, took_s = send(gateway, data)
    line = gateway.wait_for_access(logged + 1)[-1]
    assert (line["reason"], line["side"], line["bytes_in"]) == (reason, "inbound", 0)
    assert line["remedy"]
    assert took_s < HELLO_S + 5
    if reason == "plain_http":
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"https" in answer
    elif reason != "not_tls":
        assert answer[:1] == b"\x15", "an alert says why"
    bystander()


@pytest.mark.parametrize(
    "data",
    [b"", hello()[:1], hello()[:5], hello()[:-1]],
    ids=["nothing", "a byte", "a header", "all but one byte"],
)
def test_half_a_hello_is_closed_after_hello_s(gateway, bystander, data):
    logged = len(gateway.access())
    _, took_s = send(gateway, data)
    line = gateway.wait_for_access(logged + 1)[-1]
    assert line["reason"] == "hello_timeout"
    assert HELLO_S * 0.9 < line["duration_s"] < took_s + 1
    assert line["duration_s"] < HELLO_S + 5


def test_a_client_that_leaves_during_its_hello_is_peer_gone(gateway, bystander):
    logged = len(gateway.access())
    send(gateway, hello()[:100], more=False)
    assert gateway.wait_for_access(logged + 1)[-1]["reason"] in {"peer_gone", "hello_timeout"}


def test_a_client_that_stops_after_its_hello_is_closed_in_time(gateway, bystander):
    logged = len(gateway.access())
    answer, _ = send(gateway, hello())
    assert answer[:1] == b"\x16"
    line = gateway.wait_for_access(logged + 1)[-1]
    assert line["reason"] == "handshake_timeout"


def test_garbage_after_a_good_hello_is_a_tls_error(gateway, bystander):
    logged = len(gateway.access())
    send(gateway, hello() + b"\x17\x03\x03\x00\x20" + bytes(32))
    line = gateway.wait_for_access(logged + 1)[-1]
    assert line["reason"] == "tls_error"
    assert line["detail"]


def test_hundreds_of_bit_flips_in_a_hello_never_hurt_anybody(gateway, bystander):
    chance = random.Random(20)
    good = hello()
    logged, count = len(gateway.access()), 150
    for number in range(count):
        data = bytearray(good)
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        with socket.create_connection(gateway.address(), PATIENCE_S) as raw:
            raw.sendall(data)
            raw.shutdown(socket.SHUT_WR)
            raw.settimeout(PATIENCE_S)
            with contextlib.suppress(ConnectionError):
                while raw.recv(65536):
                    pass
        if number % 50 == 0:
            bystander()
    gateway.wait_for_access(logged + count)


@needs("curl")
def test_curl_that_speaks_plain_http_is_told_what_to_do(gateway, bystander):
    done = run(
        "curl",
        "-sS",
        "--noproxy",
        "*",
        "--write-out",
        "%{http_code}",
        f"http://127.0.0.1:{gateway.port()}/",
    )
    assert done.stdout.endswith("400"), done
    assert "https" in done.stdout


def test_many_silent_clients_do_not_delay_a_good_one(gateway, bystander, pki):
    logged = len(gateway.access())
    with contextlib.ExitStack() as stack:
        crowd = [
            stack.enter_context(socket.create_connection(gateway.address(), PATIENCE_S))
            for _ in range(300)
        ]
        bystander()
        peer = dial(gateway.port(), context_of(pki))
        peer.send(b"good")
        assert peer.receive(4) == b"good"
        peer.close()
        gateway.wait_for_access(logged + 1)
        assert all(client.recv(1) == b"" for client in crowd)
    lines = gateway.wait_for_access(logged + 301)[logged:]
    assert sum(line["reason"] == "hello_timeout" for line in lines) == 300
    wait_until(
        "nothing of it is left", lambda: "connections=1 " in gateway.command("status").stdout
    )
