"""Workers that die, hang, or cannot start."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
import urllib.request

import psutil
import pytest

from relay.supervisor.control_client import ask
from tests.support.client import context_of, talk
from tests.support.gateway import wait_until
from tests.support.stub_relay import STUB, stub


def test_the_next_worker_serves_the_queue_of_a_killed_one(relay, pki):
    gateway = relay(relay={"workers": 1}, timeouts={"hello_s": 60})
    port, pid, context = gateway.port(), gateway.workers()[0], context_of(pki)
    os.kill(pid, signal.SIGSTOP)
    queued = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(120)]
    os.kill(pid, signal.SIGKILL)
    answers = [talk(pki, port, b"%d" % number, raw, context) for number, raw in enumerate(queued)]
    assert answers == [b"%d" % number for number in range(120)]
    assert gateway.workers()[0] != pid
    assert f"worker 0 (pid {pid}) was ended by SIGKILL" in gateway.log()


def test_a_killed_worker_is_replaced_and_counted(relay, pki):
    """The other worker goes on."""
    gateway = relay(relay={"workers": 2}, admin={})
    before = gateway.workers()
    os.kill(before[1], signal.SIGKILL)
    after = gateway.wait_for_workers(lambda workers: workers[1] != before[1])
    assert after[0] == before[0]
    assert talk(pki, gateway.port()) == b"hello"
    with urllib.request.urlopen(f"{gateway.admin_url}/metrics", timeout=10) as page:
        assert "relay_worker_restarts_total 1.0" in page.read().decode()


def test_a_worker_drained_by_hand_is_replaced_at_once(relay, pki):
    gateway = relay(relay={"workers": 1})
    pid = gateway.workers()[0]
    os.kill(pid, signal.SIGTERM)
    gateway.wait_for_workers(lambda workers: workers[0] != pid)
    assert talk(pki, gateway.port()) == b"hello"


def test_a_worker_that_hangs_prints_where_and_is_replaced(relay):
    gateway = relay(
        start=False, module=STUB, env=stub(hang_s=1, abort_grace_s=20), relay={"workers": 1}
    )
    (gateway.directory / "behave").write_text("mute")
    gateway.start()
    pid = gateway.workers()[0]
    (gateway.directory / "behave").unlink()
    gateway.wait_for_log("hangs: no heartbeat for")
    gateway.wait_for_workers(lambda workers: workers[0] != pid)
    log = gateway.log()
    assert "was ended by SIGABRT" in log
    assert "in misbehave" in log  # faulthandler's traceback


def test_a_worker_that_is_stopped_gets_sigkill_after_sigabrt(relay, pki):
    gateway = relay(module=STUB, env=stub(hang_s=2.5, abort_grace_s=0.2), relay={"workers": 1})
    pid = gateway.workers()[0]
    os.kill(pid, signal.SIGSTOP)
    gateway.wait_for_log("gets SIGKILL: it did not end within 0.2 s of SIGABRT")
    gateway.wait_for_workers(lambda workers: workers[0] != pid)
    assert talk(pki, gateway.port()) == b"hello"


def test_a_stopped_supervisor_excuses_missing_heartbeats(relay):
    gateway = relay(module=STUB, env=stub(hang_s=3), relay={"workers": 2})
    family = [gateway.pid, *gateway.workers().values()]
    before = gateway.workers()
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    wait_until("the supervisor has slept longer than it may", _seconds_pass(6))
    for pid in family:
        os.kill(pid, signal.SIGCONT)
    assert "serving" in gateway.command("status").stdout
    wait_until("its heartbeats come again", lambda: gateway.command("status").returncode == 0)
    assert gateway.workers() == before
    assert "hangs" not in gateway.log()


def _seconds_pass(seconds):
    start = time.monotonic()
    return lambda: time.monotonic() - start > seconds


def test_a_crash_loop_backs_off_then_parks_the_slot(
    relay,
):
    """Clients of a parked slot are refused; they do not hang."""
    gateway = relay(
        module=STUB,
        env=stub(first_delay_s=0.05, longest_delay_s=0.1, lone_delay_s=600, park_after_deaths=4),
        relay={"workers": 1},
    )
    port, pid = gateway.port(), gateway.workers()[0]
    (gateway.directory / "behave").write_text("crash")
    os.kill(pid, signal.SIGKILL)
    gateway.wait_for_log("slot 0 is parked after 4 early deaths")
    log = gateway.log()
    assert "ended with exit code 3" in log
    assert (
        log.index("it is replaced at once")
        < log.index("it is replaced in 0.05 s")
        < log.index("it is replaced in 0.1 s")
    )
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)
    assert "slot 0 is parked after 4 early deaths" in gateway.command("status").stdout


def test_status_shows_a_slot_that_waits_for_its_next_start(relay):
    gateway = relay(
        module=STUB, env=stub(first_delay_s=600, longest_delay_s=600), relay={"workers": 2}
    )
    (gateway.directory / "behave").write_text("crash")
    os.kill(gateway.workers()[1], signal.SIGKILL)
    gateway.wait_for_log("it is replaced in 600 s")
    said = gateway.command("status").stdout.splitlines()
    (line,) = [line for line in said if line.startswith("slot ")]
    assert line.startswith("slot 1 has no worker after 2 early deaths of its workers; next try in ")
    assert [line.split()[1] for line in said if line.startswith("worker ")] == ["slot=0"]


def test_other_slots_take_the_clients_of_a_parked_slot(relay, pki):
    """The parked slot comes back."""
    gateway = relay(
        module=STUB,
        env=stub(first_delay_s=0.01, longest_delay_s=0.01, park_after_deaths=2, park_s=2),
        relay={"workers": 2},
    )
    port, workers = gateway.port(), gateway.workers()
    (gateway.directory / "behave").write_text("crash")
    os.kill(workers[1], signal.SIGKILL)
    gateway.wait_for_log("slot 1 is parked")
    # A connection that is queued when its sockets are closed is reset. The next answer
    # of the supervisor's loop comes after that.
    assert ask(gateway.state_dir, "status", 20)["ok"]
    (gateway.directory / "behave").unlink()
    assert [talk(pki, port) for _ in range(20)] == [b"hello"] * 20
    after = gateway.wait_for_workers(lambda now: len(now) == 2 and now[1] != workers[1])
    assert after[0] == workers[0]
    assert psutil.Process(after[1]).status() != psutil.STATUS_ZOMBIE


def test_a_reload_takes_a_parked_slot_back_at_once(relay, pki):
    gateway = relay(
        module=STUB,
        env=stub(first_delay_s=0.01, longest_delay_s=0.01, park_after_deaths=2),
        relay={"workers": 1},
    )
    port, pid = gateway.port(), gateway.workers()[0]
    (gateway.directory / "behave").write_text("crash")
    os.kill(pid, signal.SIGKILL)
    gateway.wait_for_log("slot 0 is parked")
    (gateway.directory / "behave").unlink()
    reloaded = gateway.command("reload")
    assert reloaded.returncode == 0, reloaded.stderr
    assert gateway.port() == port
    assert talk(pki, port) == b"hello"


def test_a_relay_whose_workers_die_at_once_does_not_start(relay):
    gateway = relay(start=False, module=STUB, env=stub(first_delay_s=0.01))
    (gateway.directory / "behave").write_text("bug")
    gateway.launch()
    assert gateway.wait() == 71
    log = gateway.log()
    assert "died 3 times before the relay served" in log
    assert "a bug\\nof two lines" in log  # the worker's own words, on one line
    assert not (gateway.state_dir / "endpoints.json").exists()


def test_a_relay_whose_workers_never_serve_does_not_start(relay):
    """It leaves no process behind."""
    gateway = relay(start=False, module=STUB, env=stub(start_timeout_s=0.5))
    (gateway.directory / "behave").write_text("late")
    gateway.launch()
    assert gateway.wait() == 71
    assert "did not serve within 0.5 s" in gateway.log()
    assert gateway._pids_left() == []


def admin_pid(gateway):
    """The pid of the admin process, None while there is none."""
    return next((child.pid for child in gateway.children("relay.admin.main")), None)


def test_a_stopped_admin_process_is_killed_and_replaced(relay, pki):
    """It gets SIGABRT first, then SIGKILL."""
    gateway = relay(
        module=STUB, env=stub(hang_s=3, abort_grace_s=0.3), relay={"workers": 1}, admin={}
    )
    with urllib.request.urlopen(f"{gateway.admin_url}/healthz", timeout=10) as page:
        assert page.status == 200
    pid = admin_pid(gateway)
    os.kill(pid, signal.SIGSTOP)
    log = gateway.wait_for_log(f"the admin process (pid {pid}) hangs: no heartbeat for ")
    silent_s = re.search(rf"pid {pid}\) hangs: no heartbeat for (\d+\.\d) s", log)
    assert float(silent_s[1]) >= 3
    gateway.wait_for_log("the admin process was ended by SIG")
    wait_until(
        "there is another", lambda: admin_pid(gateway) not in (None, pid), detail=gateway.log
    )
    with urllib.request.urlopen(f"{gateway.admin_url}/healthz", timeout=20) as page:
        assert page.status == 200
    assert talk(pki, gateway.port()) == b"hello"


def test_an_admin_process_whose_loop_hangs_prints_where(relay, short_path):
    """After its first heartbeat, its loop waits for a pipe that is never written to."""
    (short_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'relay.admin.main' in sys.orig_argv:\n"
        "    import asyncio, os\n"
        "    short = asyncio.sleep\n"
        "    async def hang(delay, *_):\n"
        "        if delay < 1:\n"
        "            return await short(delay)\n"
        "        os.read(os.pipe()[0], 1)\n"
        "    asyncio.sleep = hang\n"
    )
    short_path.chmod(0o755)  # the admin process may have a user of its own
    gateway = relay(
        start=False,
        module=STUB,
        env=stub(hang_s=3, abort_grace_s=20),
        relay={"workers": 1},
        admin={},
    )
    gateway.environment["PYTHONPATH"] += os.pathsep + str(short_path)
    gateway.start()
    gateway.wait_for_log("hangs: no heartbeat for")
    gateway.wait_for_log("the admin process was ended by SIGABRT")
    assert "in hang" in gateway.log()


def test_an_idle_or_busy_admin_process_does_not_count_as_hung(relay):
    gateway = relay(module=STUB, env=stub(hang_s=2.5), relay={"workers": 1}, admin={})
    pid = gateway.child("relay.admin.main").pid
    until = time.monotonic() + 4
    while time.monotonic() < until:
        with urllib.request.urlopen(f"{gateway.admin_url}/balancer-manager", timeout=10) as page:
            assert page.status == 200
    wait_until("it was idle for longer than it may be silent", _seconds_pass(4))
    assert admin_pid(gateway) == pid
    assert "hangs" not in gateway.log()
