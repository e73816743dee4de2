"""The cost of a message and of a connection, in calls of OpenSSL and of the system.

Calls are counted and not timed, so the bounds hold on every machine.
"""

import collections
import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import tests.support.worker as support
from relay.worker.main import run_worker
from tests.support.programs import program

MESSAGES = 200
CONNECTIONS = 50


@pytest.fixture
def counted(monkeypatch, tmp_path):
    """Read how often a worker that has ended called each function of OpenSSL."""
    file = tmp_path / "calls.json"

    def counting(spec):
        calls = collections.Counter()

        def on_call(_frame, event, function):
            if event == "c_call" and function.__name__.startswith(
                ("SSL_", "ERR_", "X509_", "BIO_", "EVP_")
            ):
                calls[function.__name__] += 1

        sys.setprofile(on_call)
        code = run_worker(spec)
        sys.setprofile(None)
        file.write_text(json.dumps(calls))
        return code

    monkeypatch.setattr(support, "run_worker", counting)

    def read(relay):
        relay.signal(signal.SIGQUIT)
        assert relay.wait() == 0
        return collections.Counter(json.loads(file.read_text()))

    return read


def exchange(client, server, count):
    for _ in range(count):
        client.send(b"x" * 64)
        assert server.receive(64) == b"x" * 64
        server.send(b"y" * 64)
        assert client.receive(64) == b"y" * 64


def test_a_message_costs_one_read_and_one_write_of_openssl(start, door, pair, counted):
    back = door()
    relay = start([back.address])
    client, server = pair(relay, back)
    exchange(client, server, MESSAGES)
    calls = counted(relay)
    messages = 2 * MESSAGES
    # A ticket causes a wake-up without a message, and one more SSL_get_error.
    assert messages <= calls["SSL_read"] <= messages + 6
    assert messages <= calls["SSL_write"] <= messages + 2
    assert calls["SSL_get_error"] <= 20
    handshakes = {"SSL_read", "SSL_write", "SSL_get_error"}
    assert sum(count for name, count in calls.items() if name not in handshakes) < 120, calls


def test_a_connection_costs_a_known_number_of_openssl_calls(start, backend, call, counted):
    relay = start([backend().address])
    for _ in range(CONNECTIONS):
        client = call(relay)
        client.send(b"x" * 64)
        assert client.receive(64) == b"x" * 64
        client.close()
    for number in range(CONNECTIONS):
        relay.record(number)
    calls = counted(relay)
    assert calls["SSL_new"] == calls["SSL_free"] == 2 * CONNECTIONS
    assert calls["SSL_do_handshake"] <= 6 * CONNECTIONS
    # On a busy machine a flight comes in pieces: each is one more step of three calls.
    pieces = max(0, calls["SSL_do_handshake"] - 3 * CONNECTIONS)
    assert sum(calls.values()) - 3 * pieces <= 56 * CONNECTIONS, calls


@pytest.fixture
def traced(tmp_path):
    """Counts a worker's system calls by name while inside."""
    strace = program("strace")

    @contextlib.contextmanager
    def counting(relay):
        summary, calls = tmp_path / "strace", {}
        tracer = subprocess.Popen(
            [strace, "-f", "-c", "-o", str(summary), "-p", str(relay.pid)],
            stderr=subprocess.PIPE,
            text=True,
        )
        if "attached" not in (said := tracer.stderr.readline()):
            tracer.wait(support.PATIENCE_S)
            pytest.skip(f"strace may not attach here: {said.strip()}")
        yield calls
        tracer.terminate()
        tracer.communicate(timeout=support.PATIENCE_S)
        calls.update(system_calls(summary))

    return counting


def test_a_message_costs_two_reads_one_write_and_one_wait(start, door, pair, traced):
    # OpenSSL reads a record's five bytes of header and then its body.
    back = door()
    relay = start([back.address])
    client, server = pair(relay, back)
    exchange(client, server, 5)
    with traced(relay) as calls:
        exchange(client, server, MESSAGES)
    messages = 2 * MESSAGES
    assert calls.pop("read") <= 2 * messages + 10
    assert calls.pop("write") <= messages + 5
    assert calls.pop("epoll_wait") <= messages + 30  # its tick too
    assert sum(calls.values()) <= 20, calls


def test_a_connection_costs_a_known_number_of_system_calls(start, backend, call, traced):
    relay = start([backend().address])
    with traced(relay) as calls:
        for number in range(CONNECTIONS):
            client = call(relay)
            client.send(b"x" * 64)
            assert client.receive(64) == b"x" * 64
            client.close()
            relay.record(number)
    # Per connection. OpenSSL calls getpid before it takes random bytes, to see whether
    # it was forked. ioctl asks before a handshake step how much there is to read,
    # getsockopt after a slow step. Under strace many steps are slow. Four calls of
    # setsockopt are keepalive and user_timeout_s of the connection to the backend. One
    # recvfrom looks at what comes after our close_notify.
    most = {
        "read": 31,
        "write": 10,
        "epoll_wait": 12,
        "epoll_ctl": 5,
        "getpid": 14,
        "setsockopt": 8,
        "close": 2,
        "recvfrom": 3,
        "accept4": 1,
        "getsockname": 1,
        "getsockopt": 2,
        "ioctl": 3,
        "socket": 1,
        "connect": 1,
        "shutdown": 1,
    }
    grown = {
        name: count for name, count in calls.items() if count > most.get(name, 0) * CONNECTIONS + 10
    }
    assert not grown, calls


def system_calls(summary: Path) -> dict[str, int]:
    """The table of strace -c: calls by name."""
    rows = [line.split() for line in summary.read_text().splitlines()[2:-2]]
    return {row[-1]: int(row[3]) for row in rows}
