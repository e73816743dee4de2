"""The load generator against the backend, and against a server with wrong answers."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading

import pytest

from bench import wire
from bench.children import Backend, Load
from bench.job import Job
from bench.pki import BACKEND_NAME
from tests.support.ports import held_port


@pytest.fixture(scope="module")
def backend(bench_pki):
    with Backend(bench_pki.directory) as running:
        yield running


def run(bench_pki, port, mode, **changes):
    """Run a job; returns the measured part's counts and the warm-up's errors."""
    values = {
        "connections": 4,
        "seconds": 20.0,
        "units": 200,
        "warm_units": 1,
        "server_name": BACKEND_NAME,
    } | changes
    job = Job(mode=mode, address="127.0.0.1", port=port, pki=str(bench_pki.directory), **values)
    with Load() as load:
        load.tell({field: getattr(job, field) for field in Job.__slots__})
        answer = load.hear(20)
        if answer["event"] == "ready":
            load.go()
            answer = load.result(30)
        load.finish(holding=mode == "idle")
    return answer


@pytest.mark.parametrize("size", [64, 4096])
def test_requests_are_counted_exactly_as_the_backend_counts_them(bench_pki, backend, size):
    before = backend.counters()
    result = run(bench_pki, backend.port, "requests", size=size)
    after = backend.counters()
    warm = 4
    assert result["errors"] == {}
    assert result["units"] == 200
    assert result["bytes_in"] == 200 * size
    assert after["requests"] - before["requests"] == 200 + warm
    assert after["bytes_out"] - before["bytes_out"] == (200 + warm) * size
    assert result["negotiated"] == {
        "version": "TLSv1.3",
        "cipher": "TLS_AES_128_GCM_SHA256",
        "group": "x25519",
        "resumed": False,
    }


@pytest.mark.parametrize("record", [16_384, 4096])
@pytest.mark.parametrize(("mode", "counter"), [("bulk-down", "bytes_out"), ("bulk-up", "bytes_in")])
def test_streams_arrive_whole_and_both_ends_agree_on_their_length(
    bench_pki, backend, mode, counter, record
):
    size, units = 1_500_000, 6
    before = backend.counters()[counter]
    result = run(
        bench_pki, backend.port, mode, size=size, units=units, connections=2, record=record
    )
    head = (
        len(wire.render_bulk_head(size))
        if mode == "bulk-down"
        else len(wire.render_upload_head(size))
    )
    assert result["errors"] == {}
    assert result["units"] == units
    assert result["bytes_in" if mode == "bulk-down" else "bytes_out"] == units * (size + head)
    assert backend.counters()[counter] - before == (units + 2) * (size + head)


@pytest.mark.parametrize("resume", [False, True])
def test_every_connection_is_new_and_resumes_only_when_told(bench_pki, backend, resume):
    before = backend.counters()
    result = run(bench_pki, backend.port, "connects", units=40, resume=resume)
    after = backend.counters()
    assert result["errors"] == {}
    assert result["units"] == result["handshakes"] == 40
    assert result["resumed"] == (40 if resume else 0)
    assert after["connections"] - before["connections"] == 40 + 4
    assert after["errors"] == before["errors"]


def test_idle_connections_stay_open_until_the_harness_lets_them_go(bench_pki, backend):
    before = backend.counters()["connections"]
    result = run(bench_pki, backend.port, "idle", connections=50)
    assert result["errors"] == {}
    assert result["units"] == 50
    assert backend.counters()["connections"] - before == 51


def test_paced_requests_keep_their_rate_and_every_one_has_a_latency(bench_pki, backend):
    result = run(bench_pki, backend.port, "paced", rate=1000.0, seconds=0.5)
    assert result["errors"] == {}
    assert result["units"] == len(result["latencies_us"])
    # What comes due in the last turn of the loop may be left out.
    assert 400 <= result["units"] <= 500
    assert all(latency > 0 for latency in result["latencies_us"])


def test_nothing_listening_is_an_error_and_no_unit(bench_pki, stack):
    port = stack.enter_context(held_port())
    result = run(bench_pki, port, "requests")
    assert result["units"] == 0
    assert result["errors"]["connect: Connection refused"] == 4


def test_a_server_with_another_name_is_an_error(bench_pki, backend):
    result = run(bench_pki, backend.port, "requests", server_name="gateway.bench")
    assert result["units"] == 0
    assert result["errors"]["certificate verify failed"] == 4


@contextlib.contextmanager
def answering(bench_pki, answer):
    """A stdlib TLS server for one connection that answers always the same."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(bench_pki.ca))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(bench_pki.pem("backend"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)

        def serve():
            with contextlib.suppress(OSError):
                connection, _ = listening.accept()
                connection.settimeout(10)
                with context.wrap_socket(connection, server_side=True) as wrapped:
                    while wrapped.recv(65_536):
                        wrapped.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(15)
        assert not thread.is_alive()


GOOD = wire.render_response(64)


@pytest.mark.parametrize(
    ("answer", "exact", "error"),
    [
        (GOOD[:-1] + b"!", True, "wrong bytes in the answer"),
        (GOOD + b"!", True, "wrong bytes in the answer"),
        (GOOD.replace(b"200", b"502"), False, "status 502"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", False, "wrong bytes in the answer"),
        (b"hello, this is not HTTP" * 400, False, "head too long"),
    ],
)
def test_a_wrong_answer_is_an_error_and_no_unit(bench_pki, answer, exact, error):
    with answering(bench_pki, answer) as port:
        result = run(bench_pki, port, "requests", connections=1, exact=exact)
    assert result["units"] == 0
    assert result["errors"] == {error: 1}


def test_an_answer_with_the_gateways_own_head_counts(bench_pki):
    body = GOOD[-25:]
    with answering(
        bench_pki, b"HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: 25\r\n\r\n" + body
    ) as port:
        result = run(bench_pki, port, "requests", connections=1, exact=False)
    assert result["errors"] == {}
    assert result["units"] == 200
