"""An attacker controls a worker.

It can write the memory of its own generation. Nothing in there ends another process.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from relay.admin.metrics import parse_metrics
from relay.shared.sealed_memory import F_SEAL_FUTURE_WRITE
from relay.supervisor.control_client import ask
from tests.support.client import talk
from tests.support.gateway import wait_until
from tests.support.stub_relay import SCRIBBLES, STUB, stub

RANDOM = 6  # writings of random numbers, after those that are known to be awkward
PATIENCE_S = 20.0
only_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="looks into processes that only root may see"
)


def read(gateway, path):
    """Status and text of a page of the admin process."""
    try:
        with urllib.request.urlopen(gateway.admin_url + path, timeout=PATIENCE_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def admin_pid(gateway):
    return gateway.child("relay.admin.main").pid


def test_nothing_a_worker_writes_ends_another_process(relay, pki):
    gateway = relay(module=STUB, env=stub(hang_s=60), relay={"workers": 2}, admin={}, start=False)
    behave, scribbled = gateway.directory / "behave", gateway.directory / "scribbled"
    behave.write_text("scribble")
    gateway.start()
    wait_until(
        "the admin process answers", lambda: read(gateway, "/healthz")[0] == 200, detail=gateway.log
    )
    admin = admin_pid(gateway)
    before = {}
    for number in range(len(SCRIBBLES) + RANDOM):
        scribbled.unlink(missing_ok=True)
        taken_over = gateway.workers()[0]
        os.kill(taken_over, signal.SIGUSR2)
        wait_until("it has written", scribbled.exists, detail=gateway.log)
        for path in ("/metrics", "/balancer-manager", "/api/pools", "/healthz"):
            status, text = read(gateway, path)
            assert status == 200, (number, path, text)
        assert read(gateway, "/readyz")[0] in {200, 503}
        status = ask(gateway.state_dir, "status", PATIENCE_S)
        assert status["ok"], status
        assert all(worker["connections"] >= 0 for worker in status["workers"])
        assert gateway.command("backend", "list").returncode == 0
        now = parse_metrics(read(gateway, "/metrics")[1])
        restarts = {key: value for key, value in now.items() if "worker_restarts" in key}
        assert all(restarts[key] >= value for key, value in before.items())
        before = restarts
    behave.unlink()
    pids = set(gateway.workers().values())
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    # What it counted is folded now, and new workers begin with clean rows.
    gateway.wait_for_workers(lambda workers: len(workers) == 2 and not pids & set(workers.values()))
    reply = ask(gateway.state_dir, "reload", PATIENCE_S)
    assert reply["ok"], reply
    wait_until(
        "clients are served", lambda: talk(pki, gateway.port()) == b"hello", detail=gateway.log
    )
    assert read(gateway, "/metrics")[0] == 200
    assert gateway.running.poll() is None
    assert admin_pid(gateway) == admin, "the admin process was not replaced"
    assert "Traceback" not in "".join(
        line for line in gateway.log().splitlines() if '"process": "supervisor"' in line
    )


def shared_files(pid):
    """Copies of a process's descriptors of shared memory, with the same rights."""
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    try:
        for entry in list(Path(f"/proc/{pid}/fd").iterdir()):
            with contextlib.suppress(FileNotFoundError):
                name = str(entry.readlink())
                if "memfd:relay" in name:
                    fd = libc.syscall(438, pidfd, int(entry.name), 0)  # pidfd_getfd
                    assert fd >= 0, os.strerror(ctypes.get_errno())
                    yield name, fd
    finally:
        os.close(pidfd)


def what_can_be_done(fd):
    """Every way to change a file that the kernel allows, also through /proc."""

    def reopen():
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        try:
            os.pwrite(again, b"x", 0)
        except OSError:
            mmap.mmap(again, 0)
        finally:
            os.close(again)

    tries = {
        "write": lambda: os.pwrite(fd, b"x", 0),
        "map": lambda: mmap.mmap(fd, 0),
        "shorten": lambda: os.ftruncate(fd, 0),
        "lengthen": lambda: os.ftruncate(fd, 1 << 30),
        "open again": reopen,
    }
    for what, change in tries.items():
        try:
            change()
        except OSError:
            continue
        yield what


@only_root
def test_the_admin_process_can_only_read_the_scoreboard(relay):
    gateway = relay(relay={"workers": 1}, admin={})
    wait_until("it serves", lambda: read(gateway, "/metrics")[0] == 200, detail=gateway.log)
    found = list(shared_files(admin_pid(gateway)))
    assert {name.partition(":")[2].partition(" ")[0] for name, _ in found} >= {
        "relay-scoreboard",
        "relay-totals",
        "relay-states",
        "relay-generation-1",
    }
    for name, fd in found:
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY, name
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        assert (
            seals & (fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
        ), name
        assert seals & (fcntl.F_SEAL_WRITE | F_SEAL_FUTURE_WRITE), name
        assert list(what_can_be_done(fd)) == [], name
        os.close(fd)


@only_root
def test_worker_and_checker_write_only_their_generation(relay, pki):
    gateway = relay(relay={"workers": 1})
    gateway.change_a_setting()
    assert ask(gateway.state_dir, "reload", PATIENCE_S)["ok"]
    worker = gateway.workers()[0]
    writable = set()
    for line in (Path(f"/proc/{worker}/maps")).read_text().splitlines():
        fields = line.split(maxsplit=5)
        if "memfd:relay" in line and "w" in fields[1] and "s" in fields[1]:
            writable.add(fields[5].partition("memfd:")[2].partition(" ")[0])
    assert writable == {"relay-states", "relay-generation-2"}
    for name, fd in shared_files(worker):
        assert list(what_can_be_done(fd)) == [], name
        os.close(fd)
    assert talk(pki, gateway.port()) == b"hello"


def test_facts_of_any_size_are_published(relay, pki, echo):
    """Overrides of every backend with the longest texts, on the page and as JSON."""
    gateway = relay(relay={"workers": 1}, admin={})
    answer = ask(
        gateway.state_dir,
        "override",
        PATIENCE_S,
        pool="echo",
        backend="w1",
        mode="drain",
        by="\n\u2028\x85" + "ä" * 500,
    )
    assert answer["ok"], answer
    wait_until("it serves", lambda: read(gateway, "/metrics")[0] == 200, detail=gateway.log)
    status, text = read(gateway, "/api/pools")
    assert status == 200
    assert json.loads(text)["pools"][0]["backends"][0]["mode"] == "drain"
