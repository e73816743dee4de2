"""Old generations beside the serving one: how many may drain, and what they share."""

from __future__ import annotations

import contextlib
import os
import signal
import socket

import psutil
import pytest

from relay.supervisor.control_client import ask
from tests.support.backend import TlsBackend
from tests.support.client import context_of, talk
from tests.support.configs import write_body
from tests.support.gateway import wait_until
from tests.support.operator import Operator
from tests.support.stub_relay import STUB, stub

PATIENCE_S = 20.0


@pytest.fixture
def call(pki, stack):
    """A client with a session: connected, or `None` when the relay ended it at once."""
    context = context_of(pki)

    def call(gateway):
        raw = socket.create_connection(gateway.address(), PATIENCE_S)
        client = stack.enter_context(context.wrap_socket(raw, server_hostname="app.example.com"))
        client.sendall(b"hello")
        with contextlib.suppress(OSError):
            if client.recv(5) == b"hello":
                return client
        return None

    return call


def reload(gateway):
    gateway.change_a_setting()
    reply = ask(gateway.state_dir, "reload", PATIENCE_S)
    assert reply["ok"], reply


def goes_on(client):
    client.sendall(b"still")
    return client.recv(5) == b"still"


def generations(gateway):
    return sorted(
        {worker["generation"] for worker in ask(gateway.state_dir, "status", PATIENCE_S)["workers"]}
    )


def test_the_oldest_of_too_many_old_generations_are_ended(relay, call):
    gateway = relay(relay={"workers": 1, "old_generations": 2})
    clients = []
    for _ in range(3):
        clients.append(call(gateway))
        reload(gateway)
    assert clients[0].recv(5) == b"", "its generation is the third old one"
    (record,) = gateway.wait_for_access(1, reason="generation_ended")
    assert "relay.old_generations" in record["remedy"]
    assert goes_on(clients[1])
    assert goes_on(clients[2])
    wait_until(
        "its workers are gone", lambda: generations(gateway) == [2, 3, 4], PATIENCE_S, gateway.log
    )
    log = gateway.wait_for_log("generation 1 is ended with 1 sessions")
    assert "relay.old_generations" in log
    assert "SIGKILL" not in log


def test_a_reload_may_change_old_generations(relay, call, body):
    gateway = relay(relay={"workers": 1})
    clients = []
    for _ in range(3):
        clients.append(call(gateway))
        reload(gateway)
    assert all(map(goes_on, clients))
    gateway.write(body, relay={"old_generations": 1})
    clients.append(call(gateway))
    reload(gateway)
    assert [client.recv(5) for client in clients[:3]] == [b"", b"", b""]
    assert goes_on(clients[3])
    wait_until(
        "one old generation is left",
        lambda: generations(gateway) == [4, 5],
        PATIENCE_S,
        gateway.log,
    )


def old_worker(gateway):
    """The only worker that drains, as soon as the others have ended."""

    def draining():
        workers = ask(gateway.state_dir, "status", PATIENCE_S)["workers"]
        found = [each for each in workers if each["phase"] == "draining"]
        return found if len(found) == 1 else None

    [found] = wait_until("one worker drains", draining, detail=gateway.log)
    return found


def test_sessions_of_a_replaced_worker_go_on(relay, call):
    """`drain_timeout_s` is not for them: a worker checks its time once a second."""
    gateway = relay(relay={"workers": 1, "drain_timeout_s": 0.2})
    client = call(gateway)
    reload(gateway)
    assert "drain_left_s=no-limit" in gateway.command("status").stdout
    reloaded_at = old_worker(gateway)["age_s"]
    wait_until(
        "its time would be over",
        lambda: old_worker(gateway)["age_s"] > reloaded_at + 2.5,
        PATIENCE_S,
        gateway.log,
    )
    assert goes_on(client)
    assert old_worker(gateway)["drain_left_s"] is None
    assert gateway.stop() == 0
    assert client.recv(5) == b""
    gateway.wait_for_access(1, reason="drain_timeout")
    assert "SIGKILL" not in gateway.log()


@pytest.mark.parametrize("how", ["TERM", "supervisor"])
def test_a_replaced_worker_can_be_given_a_time(relay, call, how):
    """By a SIGTERM of somebody else, and by the end of its supervisor."""
    gateway = relay(relay={"workers": 1, "drain_timeout_s": 0.5})
    client = call(gateway)
    reload(gateway)
    pid = old_worker(gateway)["pid"] if how == "TERM" else gateway.pid
    psutil.Process(pid).send_signal(signal.SIGTERM if how == "TERM" else signal.SIGKILL)
    assert client.recv(5) == b""
    gateway.wait_for_access(1, reason="drain_timeout")
    gateway.wait_for_log("drain_timeout_s is over")


def test_reload_drain_s_ends_sessions_of_replaced_workers(relay, call):
    gateway = relay(relay={"workers": 1, "drain_timeout_s": 600, "reload_drain_s": 0.5})
    client = call(gateway)
    reload(gateway)
    assert client.recv(5) == b""
    (record,) = gateway.wait_for_access(1, reason="drain_timeout")
    assert "reload_drain_s" in record["remedy"]
    log = gateway.wait_for_log("reload_drain_s is over")
    assert "SIGKILL" not in log


def test_the_newest_reload_drain_s_holds_for_all(relay, call, body):
    gateway = relay(relay={"workers": 1, "reload_drain_s": 600})
    client = call(gateway)
    reload(gateway)
    assert 590 < old_worker(gateway)["drain_left_s"] <= 600
    gateway.write(body, relay={"reload_drain_s": 0})
    reload(gateway)
    assert old_worker(gateway)["drain_left_s"] is None
    assert goes_on(client)
    gateway.write(body, relay={"reload_drain_s": 0.3})
    reload(gateway)
    assert client.recv(5) == b""
    assert "SIGKILL" not in gateway.wait_for_log("reload_drain_s is over")


def test_a_backends_limit_counts_old_generations_too(relay, pki, echo, call):
    text = write_body(pki, echo) + "max_connections = 2\n"
    gateway = relay(text, relay={"workers": 1})
    first = call(gateway)
    reload(gateway)
    second = call(gateway)
    reload(gateway)
    assert call(gateway) is None, "two generations have a connection each"
    gateway.wait_for_access(1, reason="no_backend")
    first.close()
    gateway.wait_for_access(2)
    third = wait_until("there is room again", lambda: call(gateway), PATIENCE_S, gateway.log)
    assert goes_on(second)
    assert goes_on(third)


def test_an_operators_word_reaches_the_next_generation(relay, pki, echo, call):
    backends = [TlsBackend(pki.backend.certificate, pki.backend.key, pki.ca) for _ in range(2)]
    try:
        text = (
            write_body(pki, backends[0])
            + f'[[pool.echo.backend]]\nroute = "w2"\naddress = "{backends[1].address}"\n'
            + 'name = "backend.example.com"\n'
        )
        gateway = relay(text, relay={"workers": 1}, admin={})
        assert ask(
            gateway.state_dir, "override", PATIENCE_S, pool="echo", backend="w1", mode="disabled"
        )["ok"]
        for _ in range(2):
            reload(gateway)
            for _ in range(4):
                assert call(gateway) is not None
        shown = {
            one["backend"]: one
            for one in Operator(gateway.endpoints["admin"]).pools()["pools"][0]["backends"]
        }
        assert (shown["w1"]["elected"], shown["w2"]["elected"]) == (0, 8)
        assert shown["w1"]["mode"] == "disabled"
    finally:
        for backend in backends:
            backend.close()


def test_a_backend_that_comes_back_goes_on_counting_where_it_was(relay, body, call):
    gateway = relay(relay={"workers": 1}, admin={})
    call(gateway).close()
    gateway.write(body.replace('"w1"', '"w9"'))
    reload(gateway)
    call(gateway).close()
    gateway.write(body)
    reload(gateway)
    call(gateway).close()
    gateway.wait_for_access(3)
    shown = Operator(gateway.endpoints["admin"]).pools()["pools"][0]["backends"]
    assert [(one["backend"], one["elected"]) for one in shown] == [("w1", 2)]


def test_workers_drained_again_and_again_always_find_a_row(relay, call):
    """The supervisor did not tell them, so it replaces them.

    Each of them keeps a session and its row.
    """
    gateway = relay(relay={"workers": 1, "drain_timeout_s": 600}, admin={})
    clients = []
    for _ in range(12):
        clients.append(call(gateway))
        pid = gateway.workers()[0]
        psutil.Process(pid).terminate()
        gateway.wait_for_workers(lambda workers, pid=pid: len(workers) == 1 and workers[0] != pid)
    assert all(map(goes_on, clients))
    shown = Operator(gateway.endpoints["admin"]).pools()["pools"][0]["backends"][0]
    assert (shown["busy"], shown["elected"]) == (12, 12)
    for client in clients:
        client.close()
    wait_until(
        "they have ended",
        lambda: len(ask(gateway.state_dir, "status", PATIENCE_S)["workers"]) == 1,
        PATIENCE_S,
        gateway.log,
    )
    shown = Operator(gateway.endpoints["admin"]).pools()["pools"][0]["backends"][0]
    assert (shown["busy"], shown["elected"]) == (0, 12)


def maps_of_generations(process):
    return sum("relay-generation" in one.path for one in process.memory_maps(grouped=False))


@pytest.mark.skipif(os.geteuid() != 0, reason="looks into processes that only root may see")
def test_a_reload_that_is_given_up_leaves_no_memory_behind(relay, pki, body):
    gateway = relay(module=STUB, env=stub(), relay={"workers": 2}, admin={})
    (gateway.directory / "behave").write_text("crash")
    process = psutil.Process(gateway.pid)
    files, seen = [], []
    for number in range(6):
        gateway.write(body.replace('"w1"', f'"w1-{number}"'))
        reply = ask(gateway.state_dir, "reload", PATIENCE_S)
        assert not reply["ok"], reply
        wait_until(
            "no process of it is left", lambda: generations(gateway) == [1], PATIENCE_S, gateway.log
        )
        wait_until(
            "its memory is given back",
            lambda: maps_of_generations(process) == 1,
            PATIENCE_S,
            gateway.log,
        )
        files.append(process.num_fds())
        seen.append(
            Operator(gateway.endpoints["admin"]).pools()["pools"][0]["backends"][0]["backend"]
        )
    assert max(files) <= files[0] + 1
    assert set(seen) == {"w1"}
    assert talk(pki, gateway.port()) == b"hello"
