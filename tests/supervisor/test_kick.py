"""`relay kick` against a whole relay: every worker, draining ones and later ones."""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import time

import pytest

from relay.supervisor import kicks as module
from relay.supervisor.control_client import ask
from relay.supervisor.kicks import Kicks
from relay.supervisor.updates import Updates
from relay.supervisor.workers import Workers
from tests.support.client import PATIENCE_S, context_of, echoes, talk

REFUSED = (ssl.SSLError, ConnectionError)


def is_ended(client):
    client.settimeout(PATIENCE_S)
    with contextlib.suppress(OSError):
        return client.recv(1) == b""
    return True


def connections(gateway):
    return [worker["connections"] for worker in ask(gateway.state_dir, "status", 5)["workers"]]


def on_every_worker(gateway, dial, context, workers):
    """Sessions of which each worker has some."""
    found = [dial(gateway, context)]
    while sum(1 for count in connections(gateway) if count) < workers:
        found.append(dial(gateway, context))
    return found


def test_a_kick_ends_sessions_in_all_workers_of_all_generations(relay, body, pki, bob, dial):
    gateway = relay()
    mine = on_every_worker(gateway, dial, context_of(pki), 2)
    other = [dial(gateway, bob)]
    gateway.write(body, timeouts={"idle_s": 299})
    assert gateway.command("reload").returncode == 0
    mine += on_every_worker(gateway, dial, context_of(pki), 4)
    other.append(dial(gateway, bob))
    began_at = time.monotonic()
    said = gateway.command("kick", "CN=alice", "--for", "1h", "--why", "stolen laptop")
    assert all(map(is_ended, mine))
    assert time.monotonic() - began_at < 3  # with the start of the command
    assert said.stdout.startswith(f"ended {len(mine)} sessions of CN=alice; kept out until 2")
    assert (said.returncode, said.stderr) == (0, "")
    assert all(map(echoes, other))
    [line, *_] = gateway.wait_for_access(len(mine), reason="kicked")
    assert line["detail"].startswith("by ")
    assert f"(uid {os.getuid()}): stolen laptop; kept out for another" in line["detail"]
    log = gateway.wait_for_log("kick of CN=alice by ")
    assert f"(uid {os.getuid()}) (stolen laptop): sessions ended: {len(mine)}; the" in log
    assert "the client is kept out for 3" in log


def test_a_kick_holds_for_later_workers_and_generations(relay, body, pki, bob, dial):
    gateway = relay()
    other = dial(gateway, bob)
    said = gateway.command("kick", "CN=alice", "--for", "1h")
    assert said.stdout.startswith("no session matches CN=alice; kept out until 2")
    pids = set(gateway.workers().values())
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    gateway.wait_for_workers(lambda workers: len(workers) == 2 and not pids & {*workers.values()})
    for _ in range(4):
        with pytest.raises(REFUSED):
            talk(pki, gateway.port())
        assert talk(pki, gateway.port(), context=bob) == b"hello"
    gateway.write(body, timeouts={"idle_s": 299})
    assert gateway.command("reload").returncode == 0
    with pytest.raises(REFUSED):
        talk(pki, gateway.port())
    [line] = gateway.command("kick", "--list").stdout.splitlines()
    assert line.startswith("kick client=CN=alice kind=name until=2")
    undone = gateway.command("kick", "--undo", "CN=alice")
    assert undone.stdout == "CN=alice may connect again\n"
    assert talk(pki, gateway.port()) == b"hello"
    assert gateway.command("kick", "--list").stdout == ""
    again = gateway.command("kick", "--undo", "CN=alice")
    assert again.stdout == "CN=alice was not kept out; see: relay kick --list\n"
    del other


def test_a_kick_of_an_address_ends_and_refuses_everybody_there(relay, pki, bob, dial):
    gateway = relay()
    mine = [dial(gateway, context_of(pki)), dial(gateway, bob)]
    said = gateway.command("kick", "127.0.0.1", "--for", "1m")
    assert said.stdout.startswith("ended 2 sessions of 127.0.0.1; kept out until")
    assert all(map(is_ended, mine))
    with pytest.raises(REFUSED):
        talk(pki, gateway.port(), context=bob)
    assert gateway.command("kick", "127.0.0.0/8", "--for", "1m").returncode == 0
    undone = gateway.command("kick", "--undo", "127.0.0.1").stdout
    assert undone == "the kick of 127.0.0.1 is undone; that of 127.0.0.0/8 still holds\n"
    with pytest.raises(REFUSED):
        talk(pki, gateway.port(), context=bob)
    undone = gateway.command("kick", "--undo", "127.0.0.0/8").stdout
    assert undone == "127.0.0.0/8 may connect again\n"
    assert talk(pki, gateway.port(), context=bob) == b"hello"


def test_a_kick_without_time_keeps_nobody_out(relay, pki, dial):
    gateway = relay()
    mine = dial(gateway, context_of(pki))
    said = gateway.command("kick", "CN=alice", "--for", "0")
    assert said.stdout == "ended 1 session of CN=alice; new ones are accepted\n"
    assert is_ended(mine)
    assert talk(pki, gateway.port()) == b"hello"
    gateway.wait_for_log("sessions ended: 1; the client may connect again")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "name the client to kick"),
        (["alice"], "names no client"),
        (["0.0.0.0/0"], "every client"),
        (["CN=a", "--for", "soon"], "is not a duration"),
        (["--list", "CN=a"], "--list takes no client"),
    ],
)
def test_a_wrong_kick_is_one_line_and_64(relay, arguments, why):
    gateway = relay(relay={"workers": 1})
    said = gateway.command("kick", *arguments)
    assert (said.returncode, said.stdout) == (64, "")
    assert said.stderr.startswith("relay: ")
    assert why in said.stderr
    assert said.stderr.count("\n") == 1


def test_a_worker_that_does_not_answer_is_named(relay, pki, dial):
    gateway = relay(relay={"workers": 1})
    [pid] = gateway.workers().values()
    mine = dial(gateway, context_of(pki))
    os.kill(pid, signal.SIGSTOP)
    try:
        said = gateway.command("kick", "CN=alice", "--for", "0")
        assert said.stdout == "no session matches CN=alice; new ones are accepted\n"
        assert f"no answer yet from the workers with pid {pid}" in said.stderr
    finally:
        os.kill(pid, signal.SIGCONT)
    assert is_ended(mine)


class Asker:
    """A client of the control socket that keeps its reply."""

    uid = 0

    def reply(self, reply):
        self.said = reply


def test_the_number_of_kicks_is_bounded(stack, monkeypatch):
    """Without workers, each order is carried out at once."""
    most = 40
    monkeypatch.setattr(module, "MOST_KICKS", most)
    updates = Updates()
    stack.callback(updates.close_files)
    workers = Workers(None, 0, None, None, updates)
    kicks = Kicks(workers, updates)

    def ask_for(target, duration_s=600, **more):
        asker = Asker()
        request = {"command": "kick", "target": target, "duration_s": duration_s, **more}
        kicks.answer(request, asker)
        kicks.step(time.monotonic())
        return asker.said

    for number in range(most):
        assert ask_for(f"10.0.{number}.0/24")["ok"]
    full = ask_for("CN=alice")
    assert (full["ok"], full["code"]) == (False, 64)
    assert "40 clients are kept out already" in full["error"]
    assert ask_for("10.0.0.0/24")["ok"], "one that is kept out already"
    assert ask_for("CN=alice", 0)["ok"], "ending sessions needs no place"
    assert len(workers.kicks) == most
    assert ask_for("10.0.0.0/24", undo=True)["lifted"]
    assert ask_for("CN=alice")["ok"]
