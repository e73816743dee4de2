"""Starts and refused starts: each refusal is one line with what, where, why, remedy."""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.support.client import talk
from tests.support.configs import write_body
from tests.support.gateway import ROOT, wait_until
from tests.support.ports import held_port

AS_ROOT = os.geteuid() == 0
only_root = pytest.mark.skipif(not AS_ROOT, reason="needs root, to give it up")
not_root = pytest.mark.skipif(AS_ROOT, reason="root may do this")


def refusal(gateway, code, *more):
    """What `start` says when it refuses; `check` must refuse the same."""
    started = gateway.command("start", *more)
    assert started.returncode == code, started
    assert started.stdout == ""
    assert "Traceback" not in started.stderr
    return [line for line in started.stderr.splitlines() if line.startswith("relay: ")]


def test_endpoints_json_has_what_is_bound_and_all_may_read_it(relay, pki, body):
    gateway = relay(relay={"workers": 2}, admin={})
    file = gateway.state_dir / "endpoints.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    endpoints = json.loads(file.read_text())
    assert set(endpoints) == {"generation", "supervisor", "workers", "listeners", "admin"}
    assert endpoints["supervisor"] == {"pid": gateway.pid}
    assert [worker["slot"] for worker in endpoints["workers"]] == [0, 1]
    assert talk(pki, gateway.port()) == b"hello"


def test_both_workers_get_connections(relay, pki):
    gateway = relay(relay={"workers": 2})
    for _ in range(40):
        talk(pki, gateway.port())
    lines = gateway.wait_for_access(40)
    assert len({line["session"].split("-")[0] for line in lines}) == 2


def test_a_second_relay_with_the_same_state_directory_is_refused(relay):
    gateway = relay()
    (line,) = refusal(gateway, 71)
    assert f"another relay (pid {gateway.pid}) runs with this state directory" in line


@pytest.mark.parametrize(
    "shares", [False, True], ids=["another program", "another program with SO_REUSEPORT"]
)
def test_an_address_in_use_is_refused_with_the_name_of_its_user(relay, pki, echo, shares):
    with socket.socket() as stranger:
        if shares:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        address = f"127.0.0.1:{stranger.getsockname()[1]}"
        gateway = relay(write_body(pki, echo, (address,)), start=False)
        (line,) = refusal(gateway, 71)
        assert f'listener "https": cannot listen on {address}: Address already in use (by ' in line
        assert f"pid {os.getpid()}" in line
        checked = gateway.command("check")
        assert checked.returncode == 78
        assert f"cannot listen on {address}: Address already in use" in checked.stderr


def test_an_address_of_another_machine_is_refused(relay, pki, echo):
    (line,) = refusal(relay(write_body(pki, echo, ("192.0.2.1:0",)), start=False), 71)
    assert (
        "192.0.2.1:0: Cannot assign requested address;"
        " no interface of this machine has this address" in line
    )


def test_a_source_address_of_another_machine_is_refused(relay, pki, echo):
    body = write_body(pki, echo).replace("[pool.echo]", '[pool.echo]\nsource = "192.0.2.1"')
    gateway = relay(body, start=False)
    said = (
        "pool.echo.source: cannot connect from 192.0.2.1: Cannot assign requested address;"
        " no interface of this machine has this address"
    )
    (line,) = refusal(gateway, 71)
    assert said in line
    checked = gateway.command("check")
    assert checked.returncode == 78
    assert said in checked.stderr


def test_a_listener_can_have_an_address_that_is_not_there_yet(relay, pki, echo):
    addresses = ("192.0.2.1:0", "[2001:db8::1]:0", "127.0.0.1:0")
    text = write_body(pki, echo, addresses).replace(
        'name = "https"', 'name = "https"\nfreebind = true'
    )
    gateway = relay(text, start=False)
    assert gateway.command("check").returncode == 0
    gateway.start()
    four, six, loopback = gateway.endpoints["listeners"]["https"]
    assert (four.rpartition(":")[0], six.rpartition(":")[0]) == ("192.0.2.1", "[2001:db8::1]")
    assert talk(pki, int(loopback.rpartition(":")[2])) == b"hello"
    pid = gateway.workers()[0]
    os.kill(pid, signal.SIGKILL)
    gateway.wait_for_workers(lambda now: now.get(0) not in (None, pid))
    assert gateway.command("reload").returncode == 0


@not_root
def test_refusing_a_privileged_port_names_the_capability(relay, pki, echo):
    (line,) = refusal(relay(write_body(pki, echo, ("127.0.0.1:1",)), start=False), 71)
    assert "CAP_NET_BIND_SERVICE" in line


def test_an_admin_address_in_use_is_refused(relay):
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        (line,) = refusal(
            relay(start=False, admin={"listen": f"127.0.0.1:{stranger.getsockname()[1]}"}), 71
        )
    assert "admin.listen: cannot listen on" in line


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (
            False,
            "the directory {directory} does not exist; create it, or choose another admin.listen",
        ),
        (True, "{directory} is not a directory; choose another admin.listen"),
    ],
    ids=["missing", "a file"],
)
def test_a_unix_socket_of_the_admin_process_needs_its_directory(relay, short_path, there, said):
    directory = short_path / "absent"
    if there:
        directory.touch()
    gateway = relay(start=False, admin={"listen": f"unix:{directory}/admin.sock"})
    (line,) = refusal(gateway, 71)
    assert (
        line == f"relay: {directory}/admin.sock: cannot make the admin process's socket:"
        f" {said.format(directory=directory)}"
    )
    checked = gateway.command("check")
    assert checked.returncode == 78
    assert said.format(directory=directory) in checked.stderr


def test_without_admin_there_is_no_admin_process(relay):
    gateway = relay(admin={"listen": ""})
    assert gateway.endpoints["admin"] == ""
    assert "admin: off" in gateway.command("status").stdout


def test_the_listeners_of_a_refused_start_are_closed(relay, pki, echo, stack):
    port = stack.enter_context(held_port())
    gateway = relay(write_body(pki, echo, (f"127.0.0.1:{port}", "192.0.2.1:0")), start=False)
    refusal(gateway, 71)
    with socket.create_server(("127.0.0.1", port)):
        assert not (gateway.state_dir / "control.sock").exists()


def with_a_file(place):
    (place / "run").touch()
    return place / "run"


def below_a_file(place):
    (place / "file").touch()
    return place / "file" / "run"


def with_a_link_to_nowhere(place):
    (place / "run").symlink_to(place / "nowhere")
    return place / "run"


def with_a_directory_for_the_lock(place):
    (place / "run" / "relay.pid").mkdir(parents=True)
    return place / "run"


def with_a_file_for_the_socket(place):
    (place / "run").mkdir()
    (place / "run" / "control.sock").touch()
    return place / "run"


def below_a_closed_directory(place):
    (place / "closed").mkdir(mode=0o555)
    return place / "closed" / "run"


UNUSABLE = "the state directory cannot be used: "


@pytest.mark.parametrize(
    ("state_dir", "said"),
    [
        (lambda _: "/proc/relay", f"/proc/relay: {UNUSABLE}"),
        (lambda _: "/proc", f"/proc: {UNUSABLE}"),
        (lambda _: "/sys/relay/run", f"/sys/relay/run: {UNUSABLE}"),
        (with_a_file, f"/run: {UNUSABLE}"),
        (below_a_file, f"/file/run: {UNUSABLE}"),
        (with_a_link_to_nowhere, f"/run: {UNUSABLE}"),
        (with_a_directory_for_the_lock, f"/run: {UNUSABLE}"),
        (
            with_a_file_for_the_socket,
            "cannot make the control socket: a file that is not a socket has this name",
        ),
        (lambda place: place / ("x" * 110), "choose a shorter relay.state_dir"),
        pytest.param(
            below_a_closed_directory, f"/closed/run: {UNUSABLE}Permission denied", marks=not_root
        ),
    ],
    ids=[
        "in proc",
        "proc itself",
        "in sys",
        "a file",
        "below a file",
        "a link to nowhere",
        "no lock",
        "no socket",
        "a long path",
        "no permission",
    ],
)
def test_start_and_check_refuse_an_unusable_state_directory(relay, short_path, state_dir, said):
    """The check changes nothing."""
    gateway = relay(start=False, relay={"state_dir": state_dir(short_path)})
    before = sorted(short_path.rglob("*"))
    checked = gateway.command("check")
    assert checked.returncode == 78, checked
    (line,) = [line for line in checked.stderr.splitlines() if ": relay.state_dir: " in line]
    assert said in line
    assert sorted(short_path.rglob("*")) == before
    (line,) = refusal(gateway, 71)
    assert said in line


def test_check_makes_nothing_of_what_start_will_make(relay, short_path):
    gateway = relay(
        start=False,
        relay={"state_dir": short_path / "new" / "run"},
        admin={"listen": f"unix:{short_path}/admin.sock"},
    )
    checked = gateway.command("check")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert list(short_path.iterdir()) == []
    gateway.state_dir = short_path / "new" / "run"
    gateway.start()
    assert gateway.command("check").returncode == 0
    gateway.kill()
    there = sorted(short_path.rglob("*"))
    assert gateway.command("check").returncode == 0, (
        "sockets that a dead relay left are not in the way"
    )
    assert sorted(short_path.rglob("*")) == there


@only_root
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"user": ""},
            'relay.user: is missing, and the relay is started as root; set user = "relay"',
        ),
        (
            {"user": "nobody-of-this-name"},
            'relay.user: this system has no user "nobody-of-this-name"',
        ),
        (
            {"user": "root", "group": "no-such-group"},
            'relay.group: this system has no group "no-such-group"',
        ),
    ],
)
def test_root_needs_a_user_that_exists_at_start_and_check(relay, settings, expected):
    gateway = relay(start=False, relay=settings)
    (line,) = refusal(gateway, 71)
    assert line.startswith(f"relay: {gateway.config}:")
    assert expected in line
    checked = gateway.command("check")
    assert checked.returncode == 78
    assert line in checked.stderr.splitlines()


@not_root
def test_another_user_cannot_be_taken_on_without_root(relay):
    (line,) = refusal(relay(start=False, relay={"user": "root"}), 71)
    assert "start it as root or as that user" in line


@only_root
def test_workers_of_root_are_an_unprivileged_user(relay, pki):
    gateway = relay(
        relay={"user": "nobody", "group": "daemon", "workers": 1},
        log={"access": "-"},
        admin={"listen": ""},
    )
    with open(f"/proc/{gateway.workers()[0]}/status") as file:  # noqa: PTH123  not a file of a disk
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    assert set(status["Uid"].split()) == {str(pwd.getpwnam("nobody").pw_uid)}
    assert set(status["Gid"].split()) == {str(grp.getgrnam("daemon").gr_gid)}
    assert "0" not in status["Groups"].split()
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    assert talk(pki, gateway.port()) == b"hello"
    # Sockets, keys and state stay with the supervisor, so it can do this again.
    gateway.change_a_setting()
    assert gateway.command("reload").returncode == 0
    assert talk(pki, gateway.port()) == b"hello"


def test_strict_start_and_check_refuse_an_expired_certificate(relay, pki, body):
    """The message has its file and its subject."""
    bad = body.replace(str(pki.gateway.certificate), str(pki.backend_expired.certificate)).replace(
        str(pki.gateway.key), str(pki.backend_expired.key)
    )
    gateway = relay(bad, start=False)
    lines = refusal(gateway, 78, "--strict")
    assert any(
        "backend-expired.pem" in line and "CN=backend" in line and "expired" in line
        for line in lines
    )
    checked = gateway.command("check")
    assert checked.returncode == 78
    assert any(
        "backend-expired.pem" in line and "expired on" in line
        for line in checked.stderr.splitlines()
    )


def test_the_admin_process_imports_no_relay_of_the_directory(relay):
    """A package of that name in the current directory is not run."""
    gateway = relay(start=False, admin={})
    trap = gateway.directory / "relay" / "admin"
    trap.mkdir(parents=True)
    for file in (trap.parent / "__init__.py", trap / "__init__.py", trap / "main.py"):
        file.write_text("open('trapped', 'w')")
    program = (
        "import sys; sys.path[:] = [p for p in sys.path if p not in ('', sys.argv[-1])];"
        " sys.path.insert(0, sys.argv.pop(1));"
        " from relay.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    with gateway.log_file.open("ab") as log:
        gateway.process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-c",
                program,
                str(ROOT),
                "start",
                "--config",
                str(gateway.config),
            ],
            cwd=gateway.directory,
            stdout=log,
            stderr=log,
        )
    wait_until("it accepts", gateway._accepts, detail=gateway.log)
    with urllib.request.urlopen(f"{gateway.admin_url}/healthz", timeout=20) as page:
        assert page.status == 200
    assert not (gateway.directory / "trapped").exists()


@pytest.mark.parametrize("megabytes", [40, 46, 52, 58, 64, 70, 76, 82])
def test_too_little_memory_at_the_start_says_what_to_do(relay, megabytes):
    """It may run out in an import, in the preparer, at a fork or in a worker."""
    gateway = relay(start=False, relay={"workers": 1}, admin={"listen": ""})
    command = f'ulimit -v {megabytes * 1000} && exec "$0" -m relay start --config "$1"'
    with gateway.log_file.open("ab") as log:
        gateway.process = subprocess.Popen(
            ["/bin/sh", "-c", command, sys.executable, str(gateway.config)],
            cwd=gateway.directory,
            env=gateway.environment,
            stdout=log,
            stderr=log,
        )
    running = gateway.process
    wait_until(
        "it serves or ends",
        lambda: running.poll() is not None or "the relay accepts on" in gateway.log(),
        detail=gateway.log,
    )
    log = gateway.log()
    assert "Traceback" not in log
    assert "a bug" not in log
    if running.poll() is not None:
        assert running.returncode == 71
        (said,) = [line for line in log.splitlines() if line.startswith("relay: ")]
        assert (
            "too little memory" in said
            or "see its last messages" in said
            or "own messages above" in said
        )
        assert "too little memory" in log
        assert "MemoryMax= of the unit" in log


def test_a_strict_start_without_dns_may_be_tried_again(relay, pki, echo, body):
    """A unit starts the relay again after exit code 71, and not after 78."""
    nowhere = body.replace(echo.address, "no-such-host.invalid:443")
    for text, code in ((nowhere, 71), (nowhere + "nonsense = 1\n", 78)):
        started = relay(text, start=False).command("start", "--strict")
        assert started.returncode == code, started
    assert "nonsense" in started.stderr


def test_a_relay_that_the_tests_fork_is_as_any_other(relay):
    """Most tests start relays from a process that has imported the relay already."""

    def look(gateway):
        at = Path("/proc", str(gateway.pid))
        status = dict(line.split(":\t", 1) for line in (at / "status").read_text().splitlines())
        kept = ("SigIgn", "SigCgt", "SigBlk", "Threads", "CapEff", "NoNewPrivs", "Umask")
        opened = sorted(
            re.sub(r"\d+|/\S*/", "", str(fd.readlink())) for fd in (at / "fd").iterdir()
        )
        return {key: status[key] for key in kept}, opened, (at / "cwd").readlink().parent

    forked, whole = relay(start=False), relay(start=False)
    whole.may_be_warm = False
    assert look(forked.start()) == look(whole.start())
    refused = [each.command("status", "--nonsense") for each in (forked, whole)]
    assert {(each.returncode, each.stdout, each.stderr) for each in refused} == {
        (64, "", "relay: No such option '--nonsense'.; see: relay status --help\n")
    }


def test_the_collector_is_off_during_imports_only(relay):
    gateway = relay(start=False)
    code = (
        "import gc, importlib.util, sys, relay.__main__\n"
        "class Supervisor:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'relay.supervisor.main':\n"
        "            return importlib.util.spec_from_loader(name, self)\n"
        "    def create_module(self, spec):\n"
        "        return None\n"
        "    def exec_module(self, module):\n"
        "        print(gc.isenabled())\n"
        "        module.run = lambda *_, **__: print(gc.isenabled())\n"
        "sys.meta_path.insert(0, Supervisor())\n"
        f"sys.argv = ['relay', 'start', '--config', {str(gateway.config)!r}]\n"
        "relay.__main__.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=gateway.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "False\nTrue\n", done
