"""Protocols above TLS pass unchanged, although relay knows none of them."""

from __future__ import annotations

import contextlib
import signal
import ssl
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.gateway import wait_until
from tests.support.peer import dial
from tests.support.programs import NAME, Nginx, curl, needs
from tests.support.protocols import (
    accept_key,
    frame,
    greeting,
    postgresql,
    read_exactly,
    read_frame,
    read_head,
    redis,
    websocket,
)
from tests.support.tables import listener_table, pool_table, route_table
from tests.support.worker import client_context, connect

TEXT, CLOSE = 1, 8


def test_websocket_frames_pass_after_the_upgrade(start, pki, make_backend):
    backend = make_backend(websocket)
    gateway = start(listener_table(route_table(pki)) + pool_table(pki, [backend.address]))
    key = b"dGhlIHNhbXBsZSBub25jZQ=="
    with connect(gateway.port(), client_context(pki, pki.client)) as client:
        client.sendall(
            b"GET /chat HTTP/1.1\r\nHost: app.example.com\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
            + key
            + b"\r\n\r\n"
        )
        head = read_head(client)
        assert head.startswith(b"HTTP/1.1 101 ")
        assert accept_key(key) in head
        for payload in (b"hello", b"", bytes(range(256)) * 200):
            client.sendall(frame(TEXT, payload, mask=b"\x01\x02\x03\x04"))
            assert read_frame(client) == (TEXT, payload)
        client.sendall(frame(CLOSE, struct.pack("!H", 1000), mask=b"abcd"))
        assert read_frame(client) == (CLOSE, struct.pack("!H", 1000))


def test_a_redis_client_pipelines_its_commands(start, pki, make_backend):
    gateway = start(
        listener_table(route_table(pki)) + pool_table(pki, [make_backend(redis).address])
    )
    with connect(gateway.port(), client_context(pki, pki.client)) as client:
        client.sendall(b"PING\r\n")
        assert read_exactly(client, 7) == b"+PONG\r\n"
        count = 500
        client.sendall(b"".join(b"SET k%d v%d\r\nGET k%d\r\n" % (i, i, i) for i in range(count)))
        expected = b"".join(b"+OK\r\n$%d\r\nv%d\r\n" % (len(f"v{i}"), i) for i in range(count))
        assert read_exactly(client, len(expected)) == expected


def test_a_postgresql_server_is_reached_with_its_alpn(start, pki, make_backend):
    backend = make_backend(postgresql, alpn=("postgresql",))
    gateway = start(
        listener_table(route_table(pki, alpn=["postgresql"])) + pool_table(pki, [backend.address])
    )
    with connect(gateway.port(), client_context(pki, pki.client, alpn=("postgresql",))) as client:
        assert client.selected_alpn_protocol() == "postgresql"
        startup = struct.pack("!I", 0x00030000) + b"user\0alice\0\0"
        client.sendall(struct.pack("!I", len(startup) + 4) + startup)
        assert (
            read_exactly(client, 15)
            == b"R" + struct.pack("!II", 8, 0) + b"Z" + struct.pack("!I", 5) + b"I"
        )
        query = b"Q" + struct.pack("!I", 13) + b"select 1\0"
        client.sendall(query)
        assert read_exactly(client, len(query)) == query
        client.sendall(b"X" + struct.pack("!I", 4))
        client.unwrap()
    wait_until("the backend saw the protocol", lambda: backend.alpn == ["postgresql"])
    (line,) = gateway.wait_for_access(reason="finished")
    assert line["alpn"] == "postgresql"


def test_a_client_is_refused_when_the_route_lacks_its_alpn(start, pki, echo):
    gateway = start(
        listener_table(route_table(pki, alpn=["postgresql"])) + pool_table(pki, [echo.address])
    )
    with (
        pytest.raises(OSError, match=r"(?i)no application protocol|alert"),
        connect(gateway.port(), client_context(pki, pki.client, alpn=("h2",))) as client,
    ):
        client.recv(1)
    (line,) = gateway.wait_for_access(reason="no_shared_alpn")
    assert line["remedy"]


def test_a_server_may_speak_first(start, pki, make_backend):
    gateway = start(
        listener_table(route_table(pki)) + pool_table(pki, [make_backend(greeting).address])
    )
    with connect(gateway.port(), client_context(pki, pki.client)) as client:
        assert read_exactly(client, 11) == b"220 ready\r\n"
        client.sendall(b"EHLO me\r\n")
        assert read_exactly(client, 13) == b"250 EHLO me\r\n"


@needs("nginx")
@needs("curl")
def test_curl_speaks_http2_to_nginx_that_requires_a_certificate(start, pki, short_path):
    with Nginx(short_path, pki) as nginx:
        gateway = start(
            listener_table(route_table(pki, alpn=["h2", "http/1.1"]))
            + pool_table(pki, [nginx.address])
        )
        done = curl(
            pki,
            gateway.port(),
            "/a",
            "/b",
            options=("--http2", "--write-out", "%{http_version} %{num_connects}\n"),
        )
        assert (
            done.stdout
            == "nginx /a HTTP/2.0 CN=relay machine\n2 1\nnginx /b HTTP/2.0 CN=relay machine\n2 0\n"
        ), done
        (line,) = gateway.wait_for_access(alpn="h2")
        assert (line["tls_version"], line["backend"], line["bytes_in"] > 0) == (
            "TLSv1.3",
            "w1",
            True,
        )
        older = curl(
            pki, gateway.port(), "/c", options=("--http1.1", "--write-out", "%{http_version}")
        )
        assert older.stdout == "nginx /c HTTP/1.1 CN=relay machine\n1.1", older


@needs("nginx")
@needs("curl")
def test_the_client_reads_the_400_of_nginx_for_a_foreign_certificate(start, pki, short_path):
    # nginx finishes the handshake and refuses in HTTP: at layer 4 the session succeeds.
    with Nginx(short_path, pki, client_ca=pki.foreign_ca) as nginx:
        gateway = start(listener_table(route_table(pki)) + pool_table(pki, [nginx.address]))
        done = curl(pki, gateway.port(), "/", options=("--write-out", "%{http_code}"))
        assert done.stdout.endswith("400"), done
        assert "SSL certificate" in done.stdout
        (line,) = gateway.wait_for_access(1)
        assert line["backend"] == "w1"
        assert line["bytes_out"] > 0


def test_a_backend_that_rejects_the_machine_certificate_is_logged(start, pki, make_backend):
    backend = make_backend(client_ca=pki.foreign_ca)
    gateway = start(listener_table(route_table(pki)) + pool_table(pki, [backend.address]))
    # The client sends nothing. A backend that closes with unread bytes sends a reset,
    # which may overtake its alert.
    with (
        connect(gateway.port(), client_context(pki, pki.client)) as client,
        contextlib.suppress(ssl.SSLEOFError),
    ):
        assert client.recv(1) == b""
    (line,) = gateway.wait_for_access(reason="backend_rejected_our_certificate")
    assert line["side"] == "outbound"
    assert "machine certificate" in line["remedy"]


def test_2_mib_arrive_whole_and_a_half_close_keeps_the_answer(start, pki, echo):
    gateway = start(listener_table(route_table(pki)) + pool_table(pki, [echo.address]))
    peer = dial(gateway.port(), client_context(pki, pki.client), NAME)
    blob = bytes(range(256)) * 256
    for _ in range(32):
        peer.send(blob)
        assert peer.receive(len(blob)) == blob
    peer.send(b"last words")
    peer.close_notify()
    peer.fin()
    data, how = peer.end()
    peer.sock.close()
    assert (data, how) == (b"last words", "close_notify")
    (line,) = gateway.wait_for_access(reason="finished")
    assert (line["bytes_in"], line["bytes_out"]) == (32 * len(blob) + 10,) * 2


@needs("nginx")
@needs("curl")
def test_a_drain_cuts_no_stream_of_http2(start, pki, short_path, tmp_path):
    """Two streams of one connection go on to their ends, and the drain ends with it."""
    (short_path / "file").write_bytes(data := bytes(range(256)) * 2_400)
    outputs = [tmp_path / "first", tmp_path / "second"]
    options = ["--http2", "--parallel"]
    for output in outputs:
        options += ["--output", str(output)]
    with Nginx(short_path, pki) as nginx, ThreadPoolExecutor() as pool:
        gateway = start(
            listener_table(route_table(pki, alpn=["h2"])) + pool_table(pki, [nginx.address]),
            relay={"drain_timeout_s": 60},
        )
        paths = ("/slow/file?1", "/slow/file?2")
        done = pool.submit(curl, pki, gateway.port(), *paths, options=tuple(options))
        wait_until("both streams", lambda: all(each.exists() for each in outputs))
        assert max(each.stat().st_size for each in outputs) < len(data)
        gateway.signal(signal.SIGTERM)
        gateway.wait_for_log("draining")
        assert done.result().returncode == 0
        assert [each.read_bytes() for each in outputs] == [data, data]
        assert gateway.wait() == 0
        assert {line["reason"] for line in gateway.access()} <= {"finished", "truncated"}
