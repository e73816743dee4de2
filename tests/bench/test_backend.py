"""The backend, tested by a client on the standard library's ssl module."""

from __future__ import annotations

import socket
import ssl

import pytest

from bench import wire
from bench.children import Backend
from bench.pki import BACKEND_NAME
from tests.support.gateway import wait_until


@pytest.fixture(scope="module")
def backend(bench_pki):
    with Backend(bench_pki.directory) as running:
        yield running


@pytest.fixture
def connect(backend, bench_pki):
    opened = []

    def open_connection(party="machine"):
        context = ssl.create_default_context(cafile=str(bench_pki.ca))
        if party:
            context.load_cert_chain(bench_pki.pem(party))
        wrapped = context.wrap_socket(
            socket.create_connection(("127.0.0.1", backend.port), timeout=10),
            server_hostname=BACKEND_NAME,
        )
        opened.append(wrapped)
        return wrapped

    yield open_connection
    for each in opened:
        each.close()


def read_exactly(connection, size):
    data = b""
    while len(data) < size:
        piece = connection.recv(65_536)
        assert piece, f"closed after {len(data)} of {size} bytes"
        data += piece
    return data


def test_it_answers_with_exactly_the_bytes_asked_for(backend, connect):
    before = backend.counters()
    connection = connect()
    for size in (64, 4096, 64):
        connection.sendall(wire.render_request(f"/r/{size}"))
        assert read_exactly(connection, size) == wire.render_response(size)
    # The bytes of a write are counted after it, so the client may be faster.
    wait_until(
        "the written bytes are counted",
        lambda: backend.counters()["bytes_out"] - before["bytes_out"] == 64 + 4096 + 64,
    )
    after = backend.counters()
    assert after["requests"] - before["requests"] == 3
    assert after["bytes_in"] - before["bytes_in"] == 3 * 64
    assert after["full_handshakes"] - before["full_handshakes"] == 1
    assert after["errors"] == before["errors"]


def test_it_takes_a_request_that_comes_byte_by_byte(connect):
    connection = connect()
    for byte in wire.render_request("/r/64"):
        connection.sendall(bytes([byte]))
    assert read_exactly(connection, 64) == wire.render_response(64)


def test_it_streams_the_pattern_to_a_slow_reader(connect):
    size = 3_000_000
    connection = connect()
    connection.sendall(wire.render_request(f"/b/{size}"))
    stream = read_exactly(connection, len(wire.render_bulk_head(size)) + size)
    body = stream[len(wire.render_bulk_head(size)) :]
    assert all(
        body[at : at + 10_000] == wire.pattern_at(at, 10_000) for at in range(0, size, 10_000)
    )


def test_an_upload_with_one_wrong_byte_is_not_acknowledged_as_whole(connect):
    size = 200_000
    body = bytearray(b"".join(wire.pattern_at(at, 1000) for at in range(0, size, 1000)))
    connection = connect()
    connection.sendall(wire.render_upload_head(size) + bytes(body))
    assert read_exactly(connection, 64) == wire.render_receipt(size)
    body[123_456] ^= 1
    connection.sendall(wire.render_upload_head(size) + bytes(body))
    receipt = read_exactly(connection, 64)
    assert int(receipt[-25:]) < size


def test_a_client_without_a_certificate_is_refused_and_counted(backend, connect):
    before = backend.counters()["errors"]
    connection = connect(party=None)
    with pytest.raises(ssl.SSLError, match="certificate required"):
        connection.recv(1)
    assert backend.counters()["errors"] == before + 1


def test_a_resumed_handshake_is_counted_as_one(backend, bench_pki):
    context = ssl.create_default_context(cafile=str(bench_pki.ca))
    context.load_cert_chain(bench_pki.pem("machine"))
    before = backend.counters()
    session = None
    for _ in range(2):
        with context.wrap_socket(
            socket.create_connection(("127.0.0.1", backend.port), timeout=10),
            server_hostname=BACKEND_NAME,
            session=session,
        ) as connection:
            connection.sendall(wire.render_request("/r/64"))
            assert read_exactly(connection, 64)
            session = connection.session
            connection.unwrap()
    after = backend.counters()
    assert after["resumed_handshakes"] - before["resumed_handshakes"] == 1
    assert after["full_handshakes"] - before["full_handshakes"] == 1
