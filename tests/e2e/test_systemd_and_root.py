"""Under a service manager, and started as root: messages and permissions."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from relay.shared.backends_view import HEALTH_FILE
from tests.support.client import talk
from tests.support.gateway import ROOT, Gateway, wait_until
from tests.support.operator import Operator, login
from tests.support.programs import needs, run
from tests.support.tables import listener_table, pool_table, route_table

PATIENCE_S = 20
UNIT = ROOT / "systemd" / "relay.service"
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give it up")


@pytest.fixture
def manager():
    """A manager's abstract notification socket, and its address for NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        name = f"relay-test-{os.getpid()}-{time.monotonic_ns()}"
        listener.bind(f"\0{name}")
        listener.settimeout(PATIENCE_S)
        yield listener, f"@{name}"


def test_a_manager_hears_ready_signs_of_life_reloads_and_the_end(start, simple, manager):
    listener, address = manager
    period_s = 0.4
    gateway = start(
        simple, env={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": str(int(period_s * 1e6))}
    )

    def hear(word):
        while True:
            message = listener.recv(4096).decode()
            if word in message.splitlines():
                return message

    assert "STATUS=generation 1, 2 of 2 workers serve" in hear("READY=1")
    started = time.monotonic()
    signs = 10
    for _ in range(signs):
        assert hear("WATCHDOG=1")
    # At half the period, and not as often as the loop turns, nor only once a second.
    assert time.monotonic() - started < signs * period_s + 4
    before = psutil.Process(gateway.pid).cpu_times()
    for _ in range(signs):
        assert hear("WATCHDOG=1")
    after = psutil.Process(gateway.pid).cpu_times()
    assert after.user + after.system - before.user - before.system < 1
    gateway.change_a_setting()
    gateway.signal(signal.SIGHUP)
    assert "MONOTONIC_USEC=" in hear("RELOADING=1")
    assert "generation 2" in hear("READY=1")
    assert gateway.stop() == 0
    assert "STATUS=draining" in hear("STOPPING=1")


def test_a_manager_that_does_not_listen_is_no_reason_not_to_relay(start, pki, simple):
    gateway = start(
        simple, env={"NOTIFY_SOCKET": "@nobody-listens-here", "WATCHDOG_USEC": "100000"}
    )
    assert talk(pki, gateway.port()) == b"hello"
    assert gateway.stop() == 0


@needs("systemd-analyze")
def test_systemd_finds_no_fault_with_the_unit(short_path):
    program = short_path / "relay"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = short_path / "relay.service"
    unit.write_text(UNIT.read_text().replace("/usr/local/bin/relay", str(program)))
    verified = run("systemd-analyze", "verify", unit)
    about_us = [line for line in verified.stderr.splitlines() if "relay" in line]
    assert (verified.returncode, about_us) == (0, [])


def may_read(user, path):
    """Whether a process of that user can open the file."""
    return (
        subprocess.run(
            ["/bin/cat", str(path)],
            user=user,
            group=pwd.getpwnam(user).pw_gid,
            extra_groups=[],
            capture_output=True,
            timeout=20,
            check=False,
        ).returncode
        == 0
    )


@pytest.fixture
def private(pki, short_path):
    """Keys that only root can read, and a log directory that belongs to `nobody`."""
    short_path.chmod(0o755)
    keys = {}
    for name, files in (("gateway", pki.gateway), ("machine", pki.machine)):
        keys[name] = short_path / f"{name}.key"
        shutil.copy(files.key, keys[name])
        keys[name].chmod(0o600)
    logs = short_path / "logs"
    logs.mkdir(mode=0o750)
    shutil.chown(logs, "nobody")
    return short_path, keys, logs


@only_root
def test_as_root_the_workers_are_nobody_and_cannot_read_the_keys(start, pki, echo, private):
    _, keys, logs = private
    pool = pool_table(pki, [echo.address], machine_key=keys["machine"])
    body = listener_table(route_table(pki, private_key=keys["gateway"])) + pool
    gateway = start(
        body, relay={"user": "nobody"}, log={"access": logs / "access.log"}, admin={"listen": ""}
    )
    nobody = pwd.getpwnam("nobody").pw_uid
    assert {psutil.Process(pid).uids() for pid in gateway.workers().values()} == {
        (nobody, nobody, nobody)
    }
    assert psutil.Process(gateway.pid).uids().effective == 0
    assert not any(may_read("nobody", key) for key in keys.values())
    for pid in gateway.workers().values():
        opened = [str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()]
        assert not [name for name in opened if name.endswith((".key", ".pem"))]
    log = logs / "access.log"

    def visit(count):
        assert talk(pki, gateway.port()) == b"hello"
        wait_until(
            "the session has its line",
            lambda: log.exists() and log.read_text().count("\n") == count,
        )

    visit(1)
    assert log.stat().st_uid == nobody
    gateway.change_a_setting()
    assert gateway.command("reload").returncode == 0
    visit(2)
    os.kill(gateway.workers()[0], signal.SIGKILL)
    gateway.wait_for_log("it is replaced ")
    gateway.wait_for_workers(lambda workers: len(workers) == 2)
    visit(3)


@only_root
def test_as_root_the_checker_is_nobody_and_writes_its_findings(start, pki, echo, private):
    _, keys, _ = private
    pool = pool_table(pki, [echo.address], machine_key=keys["machine"], health={"interval_s": 0.2})
    body = listener_table(route_table(pki, private_key=keys["gateway"])) + pool
    gateway = start(body, relay={"user": "nobody"}, log={"access": ""}, admin={"listen": ""})
    file = gateway.state_dir / HEALTH_FILE
    found = wait_until(
        "the backend was checked",
        lambda: file.exists() and json.loads(file.read_text()),
        detail=gateway.log,
    )
    nobody = pwd.getpwnam("nobody").pw_uid
    assert psutil.Process(found["pid"]).uids() == (nobody, nobody, nobody)
    wait_until(
        "it is up",
        lambda: json.loads(file.read_text())["main/w1"]["state"] == "up",
        detail=gateway.log,
    )
    assert file.stat().st_uid == nobody
    assert gateway.state_dir.stat().st_uid == 0
    os.kill(found["pid"], signal.SIGKILL)
    wait_until(
        "another one goes on",
        lambda: json.loads(file.read_text())["pid"] != found["pid"],
        detail=gateway.log,
    )
    assert "cannot be written" not in gateway.log()


@only_root
def test_as_root_a_log_directory_must_be_writable_for_workers(simple, private):
    _, _, logs = private
    shutil.chown(logs, "root")
    gateway = Gateway(simple, relay={"user": "nobody"}, log={"access": logs / "access.log"})
    for command in ("check", "start"):
        done = gateway.command(command)
        assert done.returncode == 78
        assert (
            f"log.access: this user may not enter {logs}; change its owner or mode"
            in done.stdout + done.stderr
        )


def nobody_can_run_us():
    try:
        tried = subprocess.run(
            [sys.executable, "-c", "import relay.admin.main"],
            user="nobody",
            cwd="/",
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            timeout=60,
            check=False,
        )
    except PermissionError:
        return False
    return tried.returncode == 0


@only_root
def test_an_admin_process_with_its_own_user_shows_the_findings(start, pki, echo, private):
    """Its user can neither enter the state directory nor read the password file."""
    if not nobody_can_run_us():
        pytest.skip("the user nobody may not run this Python, or not read this checkout")
    place, _, logs = private
    password = place / "password"
    password.write_text("correct horse\n")
    password.chmod(0o600)
    socket_file = place / "admin.sock"
    pool = pool_table(pki, [echo.address], health={"interval_s": 0.2})
    gateway = start(
        listener_table(route_table(pki)) + pool,
        relay={"user": "nobody"},
        log={"access": logs / "access.log"},
        admin={"listen": f"unix:{socket_file}", "user": "alice", "password_file": password},
    )
    operator = Operator(gateway.endpoints["admin"], authorization=login("alice", "correct horse"))
    wait_until("it serves", lambda: asked(operator, "/readyz") == 200, detail=gateway.log)
    wait_until(
        "the finding is shown",
        lambda: operator.backend()["health"]["tls_version"] == "TLSv1.3",
        detail=gateway.log,
    )
    assert operator.ask("/balancer-manager")[0] == 200
    assert operator.change("main/w1", {"mode": "drain"})[0] == 200
    assert gateway.command("reload").returncode == 0
    wait_until(
        "the drain is still shown",
        lambda: asked(operator, "/api/pools") == 200 and operator.backend()["mode"] == "drain",
        detail=gateway.log,
    )


def asked(operator, path):
    try:
        return operator.ask(path)[0]
    except OSError:
        return 0


@only_root
def test_a_configured_admin_user_must_exist_and_is_used(start, simple, private):
    gateway = Gateway(simple, relay={"admin_user": "no-such-user"}, admin={})
    try:
        for command in ("check", "start"):
            done = gateway.command(command)
            assert done.returncode in {71, 78}
            assert (
                'relay.admin_user: this system has no user "no-such-user"; create it'
                in done.stdout + done.stderr
            )
    finally:
        gateway.close()
    gateway = start(simple, relay={"admin_user": "root"}, log={"access": ""}, admin={})
    assert gateway.command("check").returncode == 0
    gateway.write(simple, relay={"admin_user": "nobody"})
    done = gateway.command("reload")
    assert done.returncode == 78
    assert (
        "user, group and admin_user cannot change while the relay runs" in done.stdout + done.stderr
    )


@only_root
def test_no_admin_user_that_can_run_python_is_logged(start, simple, fetch):
    if nobody_can_run_us():
        pytest.skip("the user nobody may run this Python")
    gateway = start(simple)
    assert fetch(f"{gateway.admin_url}/readyz") == (200, "ok\n")
    gateway.wait_for_log(
        "the admin process has the workers' user, as none of relay-admin, nobody, daemon can run"
    )


@needs("systemd-analyze")
def test_the_unit_leaves_little_to_attack(short_path):
    """The exposure that systemd computes, and what the relay needs of the unit."""
    unit = short_path / "relay.service"
    unit.write_text(UNIT.read_text())
    done = run("systemd-analyze", "security", "--offline=true", "--no-pager", str(unit))
    exposure = float(
        re.search(r"Overall exposure level for relay.service: (\d+\.\d)", done.stdout)[1]
    )
    assert exposure <= 1.7, done.stdout
    text = UNIT.read_text()
    for line in (
        "LimitCORE=0",
        "NoExecPaths=/",
        "TasksMax=4096",
        "# MemoryMax=4G",
        "NoNewPrivileges=yes",
    ):
        assert f"\n{line}\n" in text
    for name in ("create_ruleset", "add_rule", "restrict_self"):
        assert f"landlock_{name}" in text


def holds(pid, secret):
    """Whether these bytes are anywhere in the process's memory."""
    with (
        Path(f"/proc/{pid}/maps").open() as maps,
        Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory,
    ):
        for line in maps:
            span, access, *_, name = line.split()
            if access[0] != "r" or name in {"[vvar]", "[vsyscall]", "[vvar_vclock]"}:
                continue
            first, last = (int(each, 16) for each in span.split("-"))
            memory.seek(first)
            if secret in memory.read(last - first):
                return True
    return False


@only_root
def test_as_root_the_admin_process_has_its_own_user_and_no_key(start, simple, fetch, private, pki):
    if not nobody_can_run_us():
        pytest.skip("the user nobody may not run this Python, or not read this checkout")
    _, _, logs = private
    gateway = start(simple, relay={"user": "nobody"}, log={"access": logs / "access.log"})
    assert fetch(f"{gateway.admin_url}/readyz") == (200, "ok\n")
    own = pwd.getpwnam("daemon")  # the first of its candidates here that is not the workers'
    (admin,) = [
        child
        for child in psutil.Process(gateway.pid).children()
        if child.pid not in gateway.workers().values()
    ]
    assert admin.uids() == (own.pw_uid,) * 3
    assert admin.gids() == (own.pw_gid,) * 3
    status = Path(f"/proc/{admin.pid}/status").read_text()
    assert f"\nGroups:\t{own.pw_gid} \n" in status
    assert "\nNoNewPrivs:\t1\n" in status
    assert "\nCapEff:\t0000000000000000\n" in status
    assert "relay.admin.main" in admin.cmdline()
    assert "cryptography" not in Path(f"/proc/{admin.pid}/maps").read_text()
    for files in (pki.gateway, pki.machine):
        scalar = files.issued.key.private_numbers().private_value.to_bytes(
            32, "little"
        )  # as OpenSSL keeps it
        assert holds(gateway.workers()[0], scalar), "else the search finds nothing anywhere"
        assert not holds(admin.pid, scalar)
        assert not holds(admin.pid, scalar[::-1])
        assert not holds(admin.pid, files.key.read_bytes().splitlines()[1])
