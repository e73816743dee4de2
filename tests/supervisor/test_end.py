"""How the relay ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests.support.client import context_of, talk
from tests.support.gateway import wait_until
from tests.support.programs import looks_into_processes
from tests.support.stub_relay import STUB, stub


def open_session(gateway, pki):
    tls = context_of(pki).wrap_socket(
        socket.create_connection(("127.0.0.1", gateway.port()), 10),
        server_hostname="app.example.com",
    )
    tls.sendall(b"x")
    assert tls.recv(10) == b"x"
    return tls


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, "drain"])
def test_a_drain_refuses_clients_finishes_sessions_exits_0(relay, pki, how):
    gateway = relay()
    port = gateway.port()
    with open_session(gateway, pki) as tls:
        if how == "drain":
            assert gateway.command("drain").returncode == 0
        else:
            gateway.signal(how)
        wait_until("new clients are refused", lambda: refused(port))
        assert not (gateway.state_dir / "endpoints.json").exists()
        tls.sendall(b"still here")
        assert tls.recv(100) == b"still here"
        assert gateway.running.poll() is None
        tls.unwrap()
    assert gateway.wait() == 0
    assert gateway._pids_left() == []
    assert not (gateway.state_dir / "control.sock").exists()


def readyz(gateway):
    """The status of /readyz and its text."""
    try:
        with urllib.request.urlopen(f"{gateway.admin_url}/readyz", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def quiet_status(gateway):
    """What `relay status --quiet` says: exit code, stdout, stderr."""
    said = gateway.command("status", "--quiet")
    return said.returncode, said.stdout, said.stderr


def test_quiet_status_says_the_same_in_any_form(relay):
    """The usual form does not load the command line."""
    gateway = relay(start=False)
    said = quiet_status(gateway)
    assert (said[0], said[1], said[2].count("\n")) == (69, "", 1)
    again = gateway.command("status", "--quiet", "--quiet")
    assert (again.returncode, again.stdout, again.stderr) == said
    gateway.config.unlink()
    code, out, why = quiet_status(gateway)
    assert (code, out) == (78, "")
    assert "does not exist" in why


def test_quiet_status_without_a_worker_or_an_answer_is_69(relay):
    """A worker that cannot serve, and a supervisor that is stopped."""
    gateway = relay(relay={"workers": 1})
    (pid,) = gateway.workers().values()
    os.kill(gateway.pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    code, out, said = quiet_status(gateway)
    assert (code, out) == (69, "")
    assert "did not answer status within 2 s" in said
    os.kill(gateway.pid, signal.SIGCONT)
    wait_until("the next worker serves", lambda: quiet_status(gateway) == (0, "", ""))
    assert gateway.command("drain").returncode == 0
    gateway.wait()
    code, out, said = quiet_status(gateway)
    assert (code, out, said.count("\n")) == (69, "", 1)


def test_during_drain_delay_readyz_says_no_and_clients_get_in(relay, pki):
    gateway = relay(relay={"drain_delay_s": 60}, admin={})
    port = gateway.port()
    wait_until("it is ready", lambda: readyz(gateway)[0] == 200)
    assert quiet_status(gateway) == (0, "", "")
    assert gateway.command("drain").returncode == 0
    wait_until("it says no", lambda: readyz(gateway)[0] == 503)
    assert readyz(gateway)[1] == "the relay will drain soon; send it no new connections\n"
    assert quiet_status(gateway) == (
        75,
        "",
        "relay: the relay will drain soon; send it no new connections\n",
    )
    for _ in range(4):
        open_session(gateway, pki).close()
    assert ": draining in " in gateway.command("status").stdout
    refusal = gateway.command("reload")
    assert refusal.returncode == 71
    assert "the relay drains after relay.drain_delay_s, and then stops; start it" in refusal.stderr
    gateway.signal(signal.SIGTERM)
    wait_until("new clients are refused", lambda: refused(port))
    assert gateway.wait() == 0


def test_a_drain_begins_when_its_delay_is_over(relay, pki):
    gateway = relay(relay={"drain_delay_s": 1})
    gateway.signal(signal.SIGTERM)
    open_session(gateway, pki).close()
    assert gateway.wait() == 0
    assert "relay.drain_delay_s is over: draining, then stopping" in gateway.log()


@pytest.mark.parametrize("how", [signal.SIGQUIT, "stop"])
def test_a_stop_does_not_wait_for_the_drain_delay(relay, how):
    gateway = relay(relay={"drain_delay_s": 600})
    gateway.signal(signal.SIGTERM)
    if how == "stop":
        assert gateway.command("stop").returncode == 0
    else:
        gateway.signal(how)
    assert gateway.wait() == 0


def refused(port):
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_the_drain_timeout_ends_a_session_that_goes_on(relay, pki):
    gateway = relay(relay={"drain_timeout_s": 0.5})
    with open_session(gateway, pki) as tls:
        assert gateway.stop() == 0
        assert tls.recv(10) == b""
    gateway.wait_for_access(reason="drain_timeout")


def test_a_worker_that_ignores_sigterm_is_killed_in_the_end(relay):
    gateway = relay(
        start=False,
        module=STUB,
        env=stub(drain_timeout_s=0.3, drain_grace_s=0.2),
        relay={"workers": 1},
    )
    (gateway.directory / "behave").write_text("deaf")
    gateway.start()
    assert gateway.stop() == 0
    assert "gets SIGKILL: it did not end within 0.5 s of being told to" in gateway.log()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, "stop"])
def test_a_second_signal_or_stop_ends_a_drain_now(relay, pki, how):
    """The access log has every session."""
    gateway = relay()
    with open_session(gateway, pki):
        assert gateway.command("drain").returncode == 0
        gateway.wait_for_log("draining (SIGTERM)", count=2)
        if how == "stop":
            assert gateway.command("stop").returncode == 0
        else:
            gateway.signal(how)
        assert gateway.wait(5) == 0
    gateway.wait_for_access(1, reason="drain_timeout")
    assert "SIGKILL" not in gateway.log()


def test_stop_ends_draining_workers_of_an_old_generation_now(relay, pki):
    gateway = relay()
    with open_session(gateway, pki):
        gateway.change_a_setting()
        assert gateway.command("reload").returncode == 0
        assert gateway.command("stop").returncode == 0
    gateway.wait_for_access(1, reason="drain_timeout")
    assert "SIGKILL" not in gateway.log()


def test_status_shows_sessions_while_the_relay_drains(relay, pki):
    gateway = relay(relay={"workers": 1})
    port = gateway.port()
    with open_session(gateway, pki) as tls:
        assert gateway.command("drain").returncode == 0
        gateway.wait_for_log("draining (SIGTERM)")
        status = gateway.command("status")
        assert (status.returncode, status.stderr) == (0, "")
        assert ": draining, generation 1" in status.stdout
        assert f"listener https: 127.0.0.1:{port}" in status.stdout
        assert "phase=draining connections=1" in status.stdout
        tls.unwrap()
    assert gateway.wait() == 0


def test_quit_and_stop_end_it_now(relay, pki):
    for how in ("signal", "command"):
        gateway = relay()
        with open_session(gateway, pki):
            if how == "signal":
                gateway.signal(signal.SIGQUIT)
            else:
                stopped = gateway.command("stop")
                assert (stopped.returncode, stopped.stderr) == (0, "")
            assert gateway.wait(5) == 0


def test_the_next_relay_can_start_when_stop_has_returned(relay, pki):
    """On the same ports."""
    gateway = relay()
    port = gateway.port()
    gateway.write(
        gateway.config.read_text()
        .partition("\n[[listener]]")[2]
        .join(["\n[[listener]]", ""])
        .replace("127.0.0.1:0", f"127.0.0.1:{port}", 1)
    )
    for _ in range(3):
        talk(pki, port)
        assert gateway.command("stop").returncode == 0
        gateway.wait()
        gateway.start()


def test_children_of_a_killed_supervisor_drain(relay, pki):
    """A successor can start meanwhile."""
    gateway = relay(relay={"workers": 1, "drain_timeout_s": 60}, admin={})
    worker = gateway.workers()[0]
    children = [child.pid for child in psutil.Process(gateway.pid).children()]
    with open_session(gateway, pki) as tls:
        gateway.signal(signal.SIGKILL)
        gateway.wait()
        gateway.wait_for_log("the supervisor is gone")
        gateway.start()
        assert gateway.workers()[0] != worker
        assert talk(pki, gateway.port()) == b"hello"
        tls.sendall(b"old one")
        assert tls.recv(100) == b"old one"
    wait_until(
        "the children of the dead supervisor have ended",
        lambda: not any(alive(pid) for pid in children),
    )


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


FATAL = """
import sys
import urllib.error
import urllib.request
from pathlib import Path
from relay.cli.main import main
from relay.errors import ConfigError, Problem, StartupError
from relay.supervisor.fleet import Fleet
errors = [
    StartupError("a", "b"),
    ConfigError([Problem("a", "b")]),
    OSError(12, "no memory"),
    MemoryError(),
]
step = Fleet.step
def failing(self, now):
    if Path("fail").exists():
        raise errors[int(Path("fail").read_text())]
    return step(self, now)
Fleet.step = failing
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("error", range(4))
def test_a_relay_that_served_never_exits_as_a_failed_start(relay, error):
    """A unit does not restart what ended with 78, and 71 is for what never served."""
    gateway = relay(start=False)
    with gateway.log_file.open("ab") as log:
        command = [sys.executable, "-c", FATAL, "start", "--config", str(gateway.config)]
        gateway.process = subprocess.Popen(
            command, cwd=gateway.directory, env=gateway.environment, stdout=log, stderr=log
        )
    wait_until("the relay accepts", gateway._accepts, detail=gateway.log)
    (gateway.directory / "fail").write_text(str(error))
    assert gateway.wait() == 70
    assert "relay: the relay has served and cannot continue: " in gateway.log()


def test_usr1_makes_the_workers_reopen_the_access_log(relay, pki):
    gateway = relay()
    talk(pki, gateway.port())
    gateway.wait_for_access(1)
    gateway.access_file.rename(gateway.directory / "access.old")
    gateway.signal(signal.SIGUSR1)

    def reopened():
        talk(pki, gateway.port())
        return gateway.access_file.exists()

    wait_until("the log is written anew", reopened)
    assert (gateway.directory / "access.old").stat().st_size > 0


@looks_into_processes
def test_a_worker_has_no_descriptor_of_another_process(relay):
    gateway = relay(relay={"workers": 3})
    inodes = {}
    for slot, pid in gateway.workers().items():
        inodes[slot] = {
            connection.laddr.port
            for connection in psutil.Process(pid).net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        assert inodes[slot] == {gateway.port()}
        listening = [
            c for c in psutil.Process(pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN
        ]
        assert len(listening) == 1
        unix = [
            c.laddr
            for c in psutil.Process(pid).net_connections("unix")
            if "control.sock" in str(c.laddr)
        ]
        assert unix == []
        names = [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()]
        assert not [name for name in names if "relay.pid" in name]
