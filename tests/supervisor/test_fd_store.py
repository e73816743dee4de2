"""Sockets that systemd keeps or passes: a restart loses no client."""

from __future__ import annotations

import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.client import context_of, talk
from tests.support.gateway import wait_until
from tests.support.manager import Manager
from tests.support.traffic import Traffic

PATIENCE_S = 120
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def manager(short_path):
    with Manager(short_path) as made:
        yield made


@pytest.fixture
def kept(relay, manager):
    """A relay that was started by a manager with a store."""
    gateway = relay(start=False, env={"NOTIFY_SOCKET": manager.address})
    manager.start(gateway)
    wait_until("its sockets are stored", lambda: len(manager.stored) == 2)
    return gateway


def workers(gateway, count):
    text = gateway.config.read_text()
    gateway.config.write_text(text.replace("workers = 2", f"workers = {count}"))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_clients_wait_in_stored_sockets_while_no_relay_runs(kept, manager, pki, count):
    port = kept.port()
    assert kept.stop() == 0
    answers = []
    waiting = [
        threading.Thread(target=lambda: answers.append(talk(pki, port, patience_s=PATIENCE_S)))
        for _ in range(8)
    ]
    for each in waiting:
        each.start()
    workers(kept, count)
    manager.start(kept)
    assert kept.port() == port
    for each in waiting:
        each.join(PATIENCE_S)
    assert answers == [b"hello"] * 8
    assert all(talk(pki, port) == b"hello" for _ in range(8))
    assert kept.stop() == 0


def test_restarts_under_load_lose_no_client(kept, manager, pki):
    with Traffic(pki, kept.port(), patience_s=PATIENCE_S) as traffic:
        for _ in range(3):
            traffic.wait_for_more(3)
            assert kept.stop() == 0
            manager.start(kept)
        traffic.wait_for_more(3)
    assert traffic.failures == []


def test_a_killed_supervisor_loses_no_client_that_connects_later(kept, manager, pki):
    port = kept.port()
    kept.running.kill()
    kept.running.wait(PATIENCE_S)
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as queued:
        manager.start(kept)
        assert talk(pki, port, raw=queued, patience_s=PATIENCE_S) == b"hello"


def test_relay_stop_takes_the_sockets_out_of_the_store(kept, manager):
    port = kept.port()
    assert kept.command("stop", patience_s=PATIENCE_S).returncode == 0
    wait_until("nothing is stored", lambda: not manager.stored)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), PATIENCE_S)


def test_relay_drain_takes_the_sockets_out_after_a_signal(kept, manager, pki, dial):
    """TERM may begin a restart, so it keeps them; the command says that it does not."""
    port, client = kept.port(), dial(kept, context_of(pki))
    with ThreadPoolExecutor(1) as pool:
        kept.signal(signal.SIGTERM)
        kept.wait_for_log("TERM: draining, then stopping")
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S):
            pass  # it waits in the queue of a stored socket
        drain = pool.submit(kept.command, "drain", patience_s=PATIENCE_S)
        wait_until("nothing is stored", lambda: not manager.stored, PATIENCE_S)
        wait_until("clients are refused", lambda: is_refused(port), PATIENCE_S)
        client.close()
        assert drain.result(PATIENCE_S).returncode == 0


def is_refused(port):
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE_S).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_reload_with_fewer_workers_takes_sockets_out(kept, manager, pki):
    workers(kept, 1)
    assert kept.command("reload", patience_s=PATIENCE_S).returncode == 0
    wait_until("one socket is stored", lambda: len(manager.stored) == 1)
    assert talk(pki, kept.port()) == b"hello"


def listening(*, host="127.0.0.1", shared=False, kind=socket.SOCK_STREAM, listens=True):
    sock = socket.socket(socket.AF_INET, kind)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((host, 0))
    if listens and kind == socket.SOCK_STREAM:
        sock.listen(100)
    return sock


@pytest.mark.parametrize("shared", [False, True], ids=["one socket", "ReusePort=yes"])
def test_a_socket_unit_passes_its_socket(relay, manager, pki, shared):
    """All workers accept on a socket that no other socket may join."""
    with listening(shared=shared) as sock:
        port = sock.getsockname()[1]
        gateway = relay(start=False, env={"NOTIFY_SOCKET": manager.address})
        text = gateway.config.read_text()
        gateway.config.write_text(text.replace('"127.0.0.1:0"]', f'"127.0.0.1:{port}"]'))
        number = os.dup(sock.fileno())
        high = 210
        os.dup2(number, high)
        os.close(number)
        try:
            manager.start(gateway, [("https", high)])
            assert gateway.port() == port
            assert all(talk(pki, port) == b"hello" for _ in range(8))
            gateway.change_a_setting()
            assert gateway.command("reload", patience_s=PATIENCE_S).returncode == 0
            assert all(talk(pki, port) == b"hello" for _ in range(8))
            assert gateway.stop() == 0
            with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as queued:
                manager.start(gateway, [("https", high)])
                assert talk(pki, port, raw=queued, patience_s=PATIENCE_S) == b"hello"
            assert gateway.stop() == 0
        finally:
            os.close(high)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: listening(kind=socket.SOCK_DGRAM), "is not a stream socket"),
        (lambda: listening(listens=False), "does not listen"),
        (lambda: listening(host="127.0.0.2"), "no listener has this address"),
    ],
    ids=["udp", "not listening", "foreign"],
)
def test_a_wrong_socket_is_refused_in_one_line(relay, manager, make, told):
    gateway = relay(start=False, env={"NOTIFY_SOCKET": manager.address})
    with make() as sock:
        manager.launch(gateway, [("https", sock.fileno())])
        assert gateway.wait(PATIENCE_S) == 71
    assert told in gateway.log()
    assert "Traceback" not in gateway.log()
    [line] = [line for line in gateway.log().splitlines() if "LISTEN_FDS" in line]
    assert ";" in line


def test_a_bad_pid_or_variable_is_ignored(relay, pki):
    gateway = relay(env={"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "https"})
    assert talk(pki, gateway.port(), context=context_of(pki)) == b"hello"
