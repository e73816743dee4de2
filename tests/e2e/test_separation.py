"""No relay process can read another one's memory, and a crash leaves no core file."""

from __future__ import annotations

import os
import pwd
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.client import talk
from tests.support.gateway import Gateway, wait_until
from tests.support.operator import Operator
from tests.support.tables import listener_table, pool_table, route_table

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")

# Runs without privileges as the user of relay's processes. It tries every way to read
# the memory of the given pids, and prints those that work.
INTRUDER = """
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
gid, uid = int(sys.argv[1]), int(sys.argv[2])
os.setgroups([])
os.setresgid(gid, gid, gid)
os.setresuid(uid, uid, uid)
ctypes.set_errno(0)

class Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

def opens(path):
    try:
        with open(path, "rb", buffering=0) as file:
            return bool(file.read(1)) if not path.endswith("mem") else True
    except OSError:
        return False

for pid in map(int, sys.argv[3:]):
    here = ctypes.create_string_buffer(16)
    local, remote = Iovec(ctypes.addressof(here), 16), Iovec(id(None), 16)
    ways = {
        "ptrace": libc.ptrace(16, pid, 0, 0) == 0,
        "seize": libc.ptrace(0x4206, pid, 0, 0) == 0,
        "process_vm_readv": libc.process_vm_readv(
            pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0
        ) >= 0 or ctypes.get_errno() != errno.EPERM,
        "mem": opens(f"/proc/{pid}/mem"),
        "maps": opens(f"/proc/{pid}/maps"),
        "environ": opens(f"/proc/{pid}/environ"),
        "fd": os.access(f"/proc/{pid}/fd/0", os.F_OK),
        "pidfd_getfd": libc.syscall(438, libc.syscall(434, pid, 0), 0, 0) >= 0,
    }
    print(pid, *sorted(way for way, worked in ways.items() if worked))
"""


def ways_in(user, pids):
    """pid -> the ways by which a process of that user reads its memory."""
    entry = pwd.getpwnam(user)
    done = subprocess.run(
        [sys.executable, "-c", INTRUDER, str(entry.pw_gid), str(entry.pw_uid), *map(str, pids)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return {int(pid): ways for pid, *ways in map(str.split, done.stdout.splitlines())}


@pytest.fixture
def busy(start, pki, echo, short_path):
    """A relay started as root. Its workers and its checker run as nobody."""
    short_path.chmod(0o755)
    logs = short_path / "logs"
    logs.mkdir()
    os.chown(logs, pwd.getpwnam("nobody").pw_uid, -1)
    pool = pool_table(pki, [echo.address], health={"interval_s": 0.5})
    gateway = start(
        listener_table(route_table(pki)) + pool,
        relay={"user": "nobody"},
        admin={},
        log={"access": logs / "access.log"},
    )
    checker = wait_until(
        "there is a checker", lambda: pids_named(gateway, "relay checker"), detail=gateway.log
    )
    return gateway, checker[0]


def pids_named(gateway, name):
    return [child.pid for child in psutil.Process(gateway.pid).children() if child.name() == name]


@only_root
def test_no_process_of_the_same_user_reads_their_memory(busy):
    gateway, checker = busy
    processes = [*gateway.workers().values(), checker, gateway.pid]
    assert ways_in("nobody", processes) == {pid: [] for pid in processes}
    with subprocess.Popen(
        ["/bin/sleep", "60"], user="nobody", group=pwd.getpwnam("nobody").pw_gid, extra_groups=[]
    ) as other:
        try:
            found = ways_in("nobody", [other.pid])[other.pid]
            assert {"process_vm_readv", "mem", "ptrace"} <= set(found), (
                "these ways work on an unprotected process"
            )
        finally:
            other.kill()


@only_root
def test_a_reload_and_a_respawn_keep_memory_private(busy):
    gateway, _ = busy
    before = gateway.workers()
    os.kill(before[0], signal.SIGKILL)
    gateway.wait_for_workers(lambda workers: len(workers) == 2 and workers[0] != before[0])
    gateway.change_a_setting()
    assert gateway.command("reload").returncode == 0
    processes = list(gateway.workers().values())
    assert ways_in("nobody", processes) == {pid: [] for pid in processes}


def limits(pid):
    """The soft and hard limit of core files. Any user may read them in /proc."""
    found = re.search(r"Max core file size +(\S+) +(\S+)", Path(f"/proc/{pid}/limits").read_text())
    assert found is not None
    return tuple(map(int, found.groups()))


def test_no_process_may_leave_a_core_file(start, simple):
    gateway = start(simple, admin={})
    family = [gateway.pid, *(child.pid for child in psutil.Process(gateway.pid).children())]
    assert len(family) >= 4
    assert {limits(pid) for pid in family} == {(0, 0)}


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV], ids=str)
def test_a_crashed_worker_prints_a_traceback_and_leaves_no_core(start, simple, number):
    before = resource.getrlimit(resource.RLIMIT_CORE)
    if before[1] != 0:
        resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        gateway = start(simple)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
    worker = gateway.workers()[0]
    os.kill(worker, number)
    text = gateway.wait_for_log("it is replaced")
    assert "most recent call first" in text
    assert "loop.py" in text
    assert not list(gateway.directory.glob("core*"))
    assert not [path for path in gateway.directory.rglob("*") if path.name.startswith("core")]


def test_cpu_and_memory_of_the_workers_are_in_the_metrics(start, simple, pki):
    gateway = start(simple, admin={})
    operator = Operator(gateway.endpoints["admin"])

    def value(name):
        lines = [
            line
            for line in operator.ask("/metrics")[1].splitlines()
            if line.startswith(f'{name}{{slot="0"}}')
        ]
        return float(lines[0].rpartition(" ")[2]) if lines else 0.0

    worker = psutil.Process(gateway.workers()[0])
    assert talk(pki, gateway.port()) == b"hello"
    wait_until(
        "the memory is told",
        lambda: abs(value("relay_worker_resident_bytes") - worker.memory_info().rss) < 4 << 20,
    )
    times = worker.cpu_times()
    wait_until(
        "the CPU time is told",
        lambda: abs(value("relay_worker_cpu_seconds_total") - times.user - times.system) < 0.5,
    )
    before = value("relay_worker_cpu_seconds_total")
    worker.kill()
    gateway.wait_for_log("it is replaced")
    assert value("relay_worker_cpu_seconds_total") >= before


@pytest.fixture
def of_one_user(pki, echo):
    """A relay started as nobody by a service manager: all processes have one user."""
    pool = pool_table(pki, [echo.address], health={"interval_s": 0.5})
    gateway = Gateway(
        listener_table(route_table(pki)) + pool,
        module=("tests.support.as_nobody",),
        relay={"user": "nobody"},
        admin={"listen": ""},
    )
    os.chown(gateway.directory, pwd.getpwnam("nobody").pw_uid, -1)
    try:
        yield gateway.start()
    finally:
        print(gateway.log())
        gateway.close()


@only_root
def test_under_one_user_the_supervisor_is_protected_too(of_one_user):
    gateway = of_one_user
    (checker,) = wait_until(
        "there is a checker", lambda: pids_named(gateway, "relay checker"), detail=gateway.log
    )
    processes = [gateway.pid, checker, *gateway.workers().values()]
    assert {psutil.Process(pid).uids().effective for pid in processes} == {
        pwd.getpwnam("nobody").pw_uid
    }
    assert ways_in("nobody", processes) == {pid: [] for pid in processes}
