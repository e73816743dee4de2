"""Reloads: everything that can fail does so before the old generation notices."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from relay.supervisor.control_client import ask
from tests.support.client import context_of, talk
from tests.support.configs import write_body
from tests.support.gateway import wait_until
from tests.support.ports import held_port
from tests.support.programs import looks_into_processes
from tests.support.stub_relay import STUB, stub
from tests.support.traffic import Traffic


def test_a_reload_answers_when_the_new_workers_serve(relay, pki):
    gateway = relay(admin={})
    before = gateway.endpoints
    gateway.change_a_setting()
    done = gateway.command("reload")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("generation 2 serves")
    after = gateway.endpoints
    assert after["generation"] == 2
    assert (after["listeners"], after["admin"]) == (before["listeners"], before["admin"])
    assert not set(gateway.workers().values()) & {worker["pid"] for worker in before["workers"]}
    assert talk(pki, gateway.port()) == b"hello"


def test_a_hangup_signal_reloads_too(relay):
    gateway = relay()
    gateway.change_a_setting()
    gateway.signal(signal.SIGHUP)
    wait_until(
        "generation 2 serves", lambda: gateway.endpoints["generation"] == 2, detail=gateway.log
    )


def test_sessions_of_the_old_generation_go_on_until_they_end(relay, pki):
    gateway = relay(relay={"workers": 1})
    old = gateway.workers()[0]
    with context_of(pki).wrap_socket(
        socket.create_connection(("127.0.0.1", gateway.port()), 10),
        server_hostname="app.example.com",
    ) as tls:
        tls.sendall(b"before")
        assert tls.recv(100) == b"before"
        gateway.change_a_setting()
        assert gateway.command("reload").returncode == 0
        tls.sendall(b"after")
        assert tls.recv(100) == b"after"
        assert gateway.workers()[0] != old
        phases = {
            line.split("phase=")[1].split()[0]
            for line in gateway.command("status").stdout.splitlines()
            if line.startswith("worker")
        }
        assert phases == {"serving", "draining"}
    gateway.wait_for_log(f"worker 0 (pid {old}) of generation 1 ended with exit code 0")


def test_a_reload_answers_when_no_old_worker_accepts(relay, pki):
    gateway = relay(module=STUB, env=stub(handover_s=60, hang_s=60), relay={"workers": 2})
    old = gateway.workers()
    os.kill(old[1], signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        gateway.change_a_setting()
        reload = pool.submit(gateway.command, "reload")
        gateway.wait_for_log(
            f"worker 0 (pid {old[0]}) of generation 1 ended"
        )  # it was told to drain, so the new ones serve
        assert not reload.done()
        assert gateway.endpoints["generation"] == 1
        assert "generation 2 serves" not in gateway.log()
        os.kill(old[1], signal.SIGCONT)
        assert reload.result().stdout.startswith("generation 2 serves")
    assert gateway.endpoints["generation"] == 2
    assert "has not stopped accepting" not in gateway.log()


def test_the_end_of_the_relay_answers_a_reload_that_hands_over(
    relay,
):
    """Old workers still accept, so the answer to the reload was still due."""
    gateway = relay(module=STUB, env=stub(handover_s=60, hang_s=60), relay={"workers": 2})
    old = gateway.workers()
    os.kill(old[1], signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        gateway.change_a_setting()
        reload = pool.submit(gateway.command, "reload")
        gateway.wait_for_log(f"worker 0 (pid {old[0]}) of generation 1 ended")
        gateway.signal(signal.SIGTERM)
        assert "before the reload was done" in reload.result().stderr
    os.kill(old[1], signal.SIGCONT)
    assert gateway.wait() == 0


def test_connections_that_are_queued_during_a_reload_are_served(relay, pki):
    gateway = relay(relay={"workers": 2}, timeouts={"hello_s": 60})
    port, context = gateway.port(), context_of(pki)
    for pid in gateway.workers().values():
        os.kill(pid, signal.SIGSTOP)
    queued = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(40)]
    old = gateway.workers()
    gateway.change_a_setting()
    assert gateway.command("reload").returncode == 0
    for slot, pid in old.items():
        gateway.wait_for_log(
            f"worker {slot} (pid {pid}) of generation 1 has not stopped accepting 2 s after it"
            " was told to"
        )
        os.kill(pid, signal.SIGCONT)
    assert [talk(pki, port, b"x", raw, context) for raw in queued] == [b"x"] * 40


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text, pki: text + "\n[surprise]\n", "surprise"),
        (
            lambda text, pki: text.replace(
                str(pki.gateway.certificate), str(pki.directory / "absent.pem")
            ),
            "absent.pem",
        ),
        (lambda text, pki: text.replace(str(pki.gateway.key), str(pki.client.key)), "does not"),
        (
            lambda text, pki: text.replace(
                str(pki.machine.certificate), str(pki.backend.certificate)
            ).replace(str(pki.machine.key), str(pki.backend.key)),
            "cannot serve as a client",
        ),
        (lambda text, pki: "not toml", "line 1"),
    ],
    ids=["unknown key", "missing file", "wrong key", "certificate for servers", "no TOML"],
)
def test_a_bad_configuration_is_refused_with_its_problems(relay, pki, body, change, expected):
    """The old configuration goes on."""
    gateway = relay()
    before = gateway.endpoints
    gateway.write(change(body, pki)) if expected != "line 1" else gateway.config.write_text(
        "not toml [[["
    )
    if expected == "line 1":
        gateway.signal(signal.SIGHUP)  # a client could not even find the control socket
        gateway.wait_for_log("reload refused")
    else:
        refused = gateway.command("reload")
        assert refused.returncode == 78
        assert expected in refused.stderr
        assert "the old one goes on" in refused.stderr
        assert all(line.startswith("relay: ") for line in refused.stderr.splitlines())
    assert expected in gateway.log()
    assert gateway.endpoints == before
    assert talk(pki, gateway.port()) == b"hello"


@looks_into_processes
@pytest.mark.parametrize("spare", [0, 1, 2])
def test_too_few_open_files_refuse_a_reload_and_are_no_bug(relay, pki, spare):
    gateway = relay()
    limits = resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE)
    files = psutil.Process(gateway.pid).num_fds()
    resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (files + spare, limits[1]))
    gateway.change_a_setting()
    gateway.signal(signal.SIGHUP)
    gateway.wait_for_log("reload refused: ")
    resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, limits)
    assert "Too many open files" in gateway.log()
    assert "LimitNOFILE" in gateway.log()
    assert "bug" not in gateway.log()
    assert talk(pki, gateway.port()) == b"hello"
    gateway.change_a_setting()
    assert gateway.command("reload").returncode == 0


def test_a_pipe_instead_of_a_file_is_refused_at_once(relay, pki, body):
    gateway = relay(relay={"workers": 1})
    pipe = gateway.directory / "pipe"
    os.mkfifo(pipe)
    gateway.write(
        body.replace(str(pki.ca), str(pipe)).replace(str(pki.gateway.key), str(pipe)),
        admin={"user": "alice", "password_file": pipe},
    )
    for command in ("check", "reload"):
        done = gateway.command(command)
        assert done.returncode == 78
        said = done.stdout + done.stderr
        assert (
            f"{pipe} cannot be read: it is not a regular file; give the path of a PEM file" in said
        )
        assert f"admin.password_file: {pipe} cannot be read: it is not a regular file" in said
    dead = gateway.workers()[0]
    os.kill(dead, signal.SIGKILL)
    gateway.wait_for_workers(lambda workers: workers[0] != dead)


def test_a_port_in_use_refuses_the_reload(relay, pki, echo):
    """No socket of the refused configuration stays open."""
    gateway = relay()
    with (
        socket.create_server(("127.0.0.1", 0)) as stranger,
        held_port() as port,
    ):
        gateway.write(
            write_body(
                pki,
                echo,
                ("127.0.0.1:0", f"127.0.0.1:{port}", f"127.0.0.1:{stranger.getsockname()[1]}"),
            )
        )
        refused = gateway.command("reload")
        assert refused.returncode == 71
        assert f"pid {os.getpid()}" in refused.stderr
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 5)
    assert gateway.endpoints["generation"] == 1


def test_another_process_on_the_relays_port_is_named(relay, pki, echo):
    """The relay's own processes, which listen there too, are not named."""
    gateway = relay()
    port = gateway.port()
    with socket.create_server(("127.0.0.2", port)):
        gateway.write(write_body(pki, echo, (f"0.0.0.0:{port}",)))
        refused = gateway.command("reload")
    assert refused.returncode == 71
    assert f", pid {os.getpid()}); stop it, or choose another address" in refused.stderr
    assert "relay itself" not in refused.stderr
    assert talk(pki, port) == b"hello"


def test_addresses_and_workers_come_and_go(relay, pki, echo):
    gateway = relay(relay={"workers": 1})
    first = gateway.port()
    gateway.write(write_body(pki, echo, ("127.0.0.1:0", "[::1]:0")), relay={"workers": 3})
    assert gateway.command("reload").returncode == 0
    assert gateway.endpoints["listeners"]["https"][0] == f"127.0.0.1:{first}"
    assert len(gateway.workers()) == 3
    with context_of(pki).wrap_socket(
        socket.create_connection(gateway.address(index=1), 10), server_hostname="app.example.com"
    ) as tls:
        tls.sendall(b"six")
        assert tls.recv(100) == b"six"
    gateway.write(write_body(pki, echo, ("[::1]:0",)), relay={"workers": 1})
    assert gateway.command("reload").returncode == 0
    gateway.wait_for_log("of generation 2 ended", count=3)
    assert len(gateway.workers()) == 1
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", first), 5)


def test_a_new_generation_that_cannot_serve_is_given_up(relay, pki):
    gateway = relay(module=STUB, env=stub(start_timeout_s=5))
    before = gateway.workers()
    (gateway.directory / "behave").write_text("crash 2")
    gateway.change_a_setting()
    failed = gateway.command("reload")
    assert failed.returncode == 71
    assert "generation 1 goes on" in failed.stderr
    assert gateway.workers() == before
    assert talk(pki, gateway.port()) == b"hello"
    (gateway.directory / "behave").unlink()
    again = gateway.command("reload")
    assert again.stdout.startswith("generation 3 serves"), (
        again
    )  # 2 is spent: its workers may still be there


def test_no_client_notices_a_failed_reload_to_more_workers(relay, pki, echo, body):
    gateway = relay(module=STUB, env=stub(start_timeout_s=20), relay={"workers": 1})
    with (
        socket.create_server(("127.0.0.1", 0)) as stranger,
        Traffic(pki, gateway.port()) as traffic,
    ):
        gateway.write(
            write_body(pki, echo, ("127.0.0.1:0", f"127.0.0.1:{stranger.getsockname()[1]}")),
            relay={"workers": 4},
        )
        for _ in range(3):
            assert "already in use" in gateway.command("reload").stderr
            traffic.wait_for_more(3)
        gateway.write(body, relay={"workers": 4})
        for generation in (2, 3, 4):
            (gateway.directory / "behave").write_text(f"crash {generation}")
            assert "generation 1 goes on" in gateway.command("reload").stderr
            traffic.wait_for_more(3)
    assert traffic.failures == []


def test_a_hangup_during_a_reload_is_not_lost(relay):
    gateway = relay(module=STUB, env=stub(start_timeout_s=6), relay={"workers": 1})
    (gateway.directory / "behave").write_text("late 2")
    gateway.change_a_setting()
    gateway.signal(signal.SIGHUP)
    gateway.wait_for_log("worker 0 started", count=2)
    gateway.signal(signal.SIGHUP)
    wait_until(
        "generation 3 serves", lambda: gateway.endpoints["generation"] == 3, detail=gateway.log
    )


def test_reloads_requested_during_a_reload_wait_for_the_next(relay, body):
    """If they were refused, `systemctl reload` after a SIGHUP would fail."""
    gateway = relay(module=STUB, env=stub(start_timeout_s=60), relay={"workers": 1})
    (gateway.directory / "behave").write_text("late 2")
    gateway.change_a_setting()
    gateway.signal(signal.SIGHUP)
    gateway.wait_for_log("worker 0 started", count=2)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(ask, gateway.state_dir, "reload", 60) for _ in range(3)]
        wait_until("they have asked", lambda: control_clients(gateway) == 3)
        log = [json.loads(line) for line in gateway.log().splitlines() if "worker_pid" in line]
        (late,) = [line["worker_pid"] for line in log if line["generation"] == 2]
        os.kill(late, signal.SIGKILL)
        assert [one.result() for one in waiting] == [{"ok": True, "generation": 3}] * 3
    assert gateway.log().count("reload given up") == 1
    gateway.change_a_setting()
    assert ask(gateway.state_dir, "reload", 60) == {"ok": True, "generation": 4}


def test_a_reload_requested_during_the_start_waits(relay):
    gateway = relay(start=False, module=STUB, env=stub(), relay={"workers": 1})
    (gateway.directory / "behave").write_text("slow")
    gateway.launch()
    gateway.wait_for_log("worker 0 started")
    gateway.change_a_setting()
    gateway.signal(signal.SIGHUP)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, gateway.state_dir, "reload", 60)
        assert waiting.result() == {"ok": True, "generation": 2}


def test_the_end_of_the_relay_answers_reloads_that_wait(relay):
    gateway = relay(module=STUB, env=stub(start_timeout_s=60), relay={"workers": 1})
    (gateway.directory / "behave").write_text("late 2")
    gateway.change_a_setting()
    gateway.signal(signal.SIGHUP)
    gateway.wait_for_log("worker 0 started", count=2)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(ask, gateway.state_dir, "reload", 60) for _ in range(2)]
        wait_until("they have asked", lambda: control_clients(gateway) == 2)
        gateway.signal(signal.SIGTERM)
        said = {one.result()["error"] for one in waiting}
    # One whose request is read after the signal is refused for that.
    assert all(
        each.startswith(("the relay was told to end (SIGTERM)", "the relay is draining"))
        for each in said
    )
    assert gateway.wait() == 0


def control_clients(gateway):
    """How many clients the supervisor has on its control socket."""
    # Listening and connected; an ordinary user may not ask which process has them.
    ours = f" {gateway.state_dir / 'control.sock'}"
    return sum(line.endswith(ours) for line in Path("/proc/net/unix").read_text().splitlines()) - 1


def test_what_cannot_change_is_refused(relay, body):
    gateway = relay()
    gateway.write(body, relay={"state_dir": gateway.directory / "elsewhere"})
    gateway.signal(signal.SIGHUP)
    gateway.wait_for_log("relay.state_dir: cannot change from")


def test_the_admin_address_moves_with_the_configuration(relay, body, stack):
    gateway = relay(admin={})
    before = gateway.admin_url
    port = stack.enter_context(held_port())
    gateway.write(body, admin={"listen": f"127.0.0.1:{port}"})
    assert gateway.command("reload").returncode == 0
    assert gateway.admin_url == f"http://127.0.0.1:{port}" != before
    with urllib.request.urlopen(f"{gateway.admin_url}/metrics", timeout=20) as page:
        assert "relay_config_generation 2.0" in page.read().decode()


def test_counters_never_go_back_over_a_reload(relay, pki):
    gateway = relay(relay={"workers": 1}, admin={})

    def connections():
        with urllib.request.urlopen(f"{gateway.admin_url}/metrics", timeout=20) as page:
            lines = [
                line
                for line in page.read().decode().splitlines()
                if line.startswith("relay_connections_total{")
            ]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    for _ in range(5):
        talk(pki, gateway.port())
    before = connections()
    old = gateway.workers()[0]
    gateway.change_a_setting()
    gateway.command("reload")
    gateway.wait_for_log(f"worker 0 (pid {old}) of generation 1 ended")
    assert before == 5
    assert connections() == 5
    assert json.loads((gateway.state_dir / "endpoints.json").read_text())["generation"] == 2
