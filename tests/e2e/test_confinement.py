"""What each process may still do if an attacker controls it; the real ones try it."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from relay.sandbox import confinement, landlock, seccomp
from tests.support.client import talk
from tests.support.gateway import ROOT, Gateway, wait_until
from tests.support.operator import Operator
from tests.support.tables import listener_table, pool_table, route_table

PRYING = ROOT / "tests" / "support" / "prying"
only_with_landlock = pytest.mark.skipif(
    landlock.version() == 0, reason="this kernel has no Landlock, or may not use it"
)
only_with_signals = pytest.mark.skipif(
    landlock.version() < 6, reason="Landlock of this kernel does not know signals (Linux 6.12)"
)


class World:
    """A relay with worker, checker and admin process that try `attempts` at SIGALRM."""

    def __init__(self, pki, echo, short_path, attempts):
        self.logs = short_path / "logs"
        self.logs.mkdir()
        (self.logs / "access.log.1").touch()
        self.secret = short_path / "secret.pem"
        self.secret.write_text("key")
        pool = pool_table(
            pki, [f"localhost:{echo.address.rpartition(':')[2]}"], health={"interval_s": 0.2}
        )
        self.gateway = Gateway(
            listener_table(route_table(pki)) + pool,
            relay={"workers": 1},
            admin={},
            log={"access": self.logs / "access.log"},
        )
        environment = self.gateway.environment
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(PRYING)])
        environment["PRYING_ATTEMPTS"] = json.dumps(
            [[kind, str(at(self) if callable(at) else at)] for kind, at in attempts]
        )

    def pid_of(self, process):
        name = {
            "worker": "relay worker 0",
            "checker": "relay checker",
            "admin": "relay.admin.main",
        }[process]
        return self.gateway.child(name).pid

    def may(self, process):
        """The attempts that worked in that process."""
        pid = self.pid_of(process)
        if process == "admin":
            wait_until("it serves", lambda: served(self.gateway), detail=self.gateway.log)
        if process == "checker":
            wait_until(
                "it has checked",
                (self.gateway.state_dir / "checker" / "health.json").exists,
                detail=self.gateway.log,
            )
        os.kill(pid, signal.SIGALRM)

        def said():
            for line in self.gateway.log().splitlines():
                if line.startswith("PRYING "):
                    told = json.loads(line.removeprefix("PRYING "))
                    if told["pid"] == pid:
                        return {tuple(one) for one in told["worked"]}, True
            return None

        return wait_until("it says what it may", said, detail=self.gateway.log)[0]


def served(gateway):
    try:
        return Operator(gateway.endpoints["admin"]).ask("/readyz")[0] == 200
    except OSError:
        return False


@pytest.fixture
def world(pki, echo, short_path):
    worlds = []

    def make(attempts):
        world = World(pki, echo, short_path, attempts)
        worlds.append(world)
        world.gateway.start()
        return world

    yield make
    for world in worlds:
        print(world.gateway.log())
        world.gateway.close()


def config(world):
    return world.gateway.config


def in_state_dir(world):
    return world.gateway.state_dir / "intruder"


def in_checkers_directory(world):
    return world.gateway.state_dir / "checker" / "health.json"


def in_logs(world):
    return world.logs / "new.log"


def old_log(world):
    return world.logs / "access.log.1"


def key(world):
    return world.secret


def elsewhere(world):
    return world.logs.parent / "intruder"


ATTEMPTS = [
    ("execute", "/bin/true"),
    ("read", "/etc/passwd"),
    ("read", config),
    ("read", key),
    ("list", "/"),
    ("read", "/etc/hosts"),
    ("read", os.__file__),
    ("import", "antigravity"),
    ("resolve", "localhost"),
    ("write", in_state_dir),
    ("write", elsewhere),
    ("write", in_logs),
    ("write", in_checkers_directory),
    ("write", "/dev/shm/relay-intruder"),
    ("remove", old_log),
    ("bind", "0"),
    ("read", "/proc/self/environ"),
]


def names(world, worked):
    """The attempts, with their paths filled in."""
    short = {str(at(world)): at.__name__ for _, at in ATTEMPTS if callable(at)}
    return {(kind, short.get(argument, argument)) for kind, argument in worked}


@only_with_landlock
def test_a_worker_writes_logs_alone_and_executes_nothing(world):
    there = world(ATTEMPTS)
    worked = names(there, there.may("worker"))
    assert {
        (kind, argument) for kind, argument in worked if kind in {"write", "remove", "execute"}
    } == {("write", "in_logs")}
    assert worked >= {("read", "/etc/passwd"), ("read", os.__file__), ("bind", "0")}


@only_with_landlock
def test_a_checker_reads_what_it_needs_and_writes_its_directory(world):
    there = world(ATTEMPTS)
    worked = names(there, there.may("checker"))
    assert worked == {
        ("read", os.__file__),
        ("read", "/etc/hosts"),
        ("import", "antigravity"),
        ("resolve", "localhost"),
        ("write", "in_checkers_directory"),
        ("bind", "0"),
    }


@only_with_landlock
def test_an_admin_process_reads_findings_and_has_no_network(world):
    there = world(ATTEMPTS)
    worked = names(there, there.may("admin"))
    allowed = {("read", os.__file__), ("import", "antigravity")}
    assert worked - {("bind", "0"), ("resolve", "localhost")} == allowed
    if landlock.version() >= 4:
        assert ("bind", "0") not in worked


@only_with_signals
@pytest.mark.parametrize("process", ["worker", "checker", "admin"])
def test_none_of_them_signals_its_supervisor(world, process):
    there = world([("signal", 1), ("signal", os.getpid())])
    assert there.may(process) == set()


@pytest.mark.skipif(not seccomp.is_available(), reason="this kernel takes no system call filters")
@pytest.mark.parametrize("process", ["worker", "checker", "admin"])
def test_none_of_them_sets_limits_of_its_supervisor(world, process):
    """A CPU time limit of 0 would end it, and Landlock does not cover limits."""
    there = world(
        [
            ("limit", "0"),
            ("slow", "0"),
            ("signal supervisor", "0"),
            ("execute", "/bin/true"),
            ("read", os.__file__),
        ]
    )
    assert there.may(process) == {("read", os.__file__)}
    there.gateway.wait_for_log("or set their limits")
    if process != "checker":  # any signal that it does not handle ends it
        os.kill(there.pid_of(process), signal.SIGABRT)
        there.gateway.wait_for_log("most recent call first")


# What must still work.


@pytest.fixture
def logs(short_path):
    place = short_path / "logs"
    place.mkdir()
    return place


@pytest.mark.parametrize("name", ["access.log", "access_%Y%m%d%H%M%S.log", "%Y/access.log"])
def test_a_confined_worker_makes_new_log_files(start, simple, pki, logs, name):
    (logs / f"{dt.datetime.now(dt.UTC):%Y}").mkdir()
    gateway = start(
        simple, log={"access": logs / name, **({"access_rotate_s": 1} if "%" in name else {})}
    )

    def lines():
        return sum(path.read_text().count("\n") for path in logs.rglob("*") if path.is_file())

    assert talk(pki, gateway.port()) == b"hello"
    wait_until("there is a line", lambda: lines() >= 1, detail=gateway.log)
    if name == "access.log":
        (logs / name).rename(logs / "access.log.1")
        gateway.signal(signal.SIGUSR1)
        wait_until(
            "the new file is there",
            lambda: talk(pki, gateway.port()) == b"hello" and (logs / name).exists(),
            detail=gateway.log,
        )
    before = lines()
    gateway.change_a_setting()
    assert gateway.command("reload").returncode == 0
    assert talk(pki, gateway.port()) == b"hello"
    wait_until("the next generation writes too", lambda: lines() > before, detail=gateway.log)
    assert "cannot be written: " not in gateway.log()


def test_a_log_behind_a_link_is_written(start, simple, pki, logs, short_path):
    real = short_path / "real"
    real.mkdir()
    (real / "access.log").touch()
    (logs / "access.log").symlink_to(real / "access.log")
    gateway = start(simple, log={"access": logs / "access.log"})
    assert talk(pki, gateway.port()) == b"hello"
    wait_until(
        "there is a line",
        lambda: (real / "access.log").read_text().count("\n") == 1,
        detail=gateway.log,
    )


@pytest.mark.parametrize("access", ["/dev/stdout", "/dev/stderr", "/dev/null", "-"])
def test_a_log_that_is_a_device_is_written(start, simple, pki, access):
    gateway = start(simple, log={"access": access})
    assert talk(pki, gateway.port()) == b"hello"
    if access != "/dev/null":
        gateway.wait_for_log('"session":')
    wait_until("the session is over", lambda: talk(pki, gateway.port()) == b"hello")
    assert "cannot be written: " not in gateway.log()


def test_a_confined_checker_resolves_and_checks_and_is_shown(start, pki, echo):
    port = echo.address.rpartition(":")[2]
    gateway = start(
        listener_table(route_table(pki))
        + pool_table(pki, [f"localhost:{port}"], health={"interval_s": 0.2}),
        admin={},
    )
    operator = Operator(gateway.endpoints["admin"])
    up = wait_until(
        "the finding is shown",
        lambda: (found := operator.backend()["health"])["tls_version"] and found,
        detail=gateway.log,
    )
    assert up["state"] == "up"
    assert operator.ask("/balancer-manager")[0] == 200
    assert "cannot be written" not in gateway.log()
    gateway.wait_for_log("localhost is at 127.0.0.1")
    gateway.change_a_setting()
    assert gateway.command("reload").returncode == 0
    wait_until(
        "it is shown again",
        lambda: operator.backend()["health"]["state"] == "up",
        detail=gateway.log,
    )


def test_the_log_says_what_is_in_force(start, simple, logs):
    gateway = start(simple, log={"access": logs / "access.log"})
    text = gateway.wait_for_log("Landlock")
    if landlock.version():
        assert (
            f"Landlock {landlock.version()} is in force: workers execute nothing"
            f" and write only {logs};" in text
        )
    else:
        assert "Landlock is not in force: " in text


# Older kernels.

FAKE_LIBC = """
import errno, ctypes, os, sys
from relay.sandbox import landlock
from relay.sandbox import confinement
number = getattr(errno, sys.argv[1])
class Libc:
    prctl = landlock._libc.prctl
    def syscall(self, *arguments):
        ctypes.set_errno(number)
        return -1
landlock._libc = Libc()
print(landlock.version())
print(landlock.restrict(landlock.ALL, []))
print(confinement.describe("-"))
confinement.confine_worker("-")
confinement.confine_checker(os.open("/", os.O_PATH))
confinement.confine_admin(-1)
open("/etc/hosts").close()
"""


@pytest.mark.parametrize("error", ["ENOSYS", "EOPNOTSUPP", "EPERM"])
def test_a_kernel_without_landlock_is_no_reason_not_to_serve(error):
    done = subprocess.run(
        [sys.executable, "-c", FAKE_LIBC, error],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        cwd=ROOT,
    )
    first, second, words = done.stdout.splitlines()
    assert (first, second) == ("0", "0")
    assert words.startswith("Landlock is not in force: ")
    assert done.stderr == ""


@only_with_landlock
@pytest.mark.parametrize("known", range(1, 8))
def test_every_version_of_landlock_forbids_what_it_knows(known, tmp_path):
    if known > landlock.version():
        pytest.skip(f"the kernel knows version {landlock.version()} alone")
    code = f"""
import os, socket
from pathlib import Path
from relay.sandbox.landlock import *
tmp = Path({str(tmp_path)!r})
other = tmp.parent
missing = Rule(Path("/no/such/place"), READ)
rules = [Rule(tmp, ALL), Rule(Path("/etc/hosts"), READ), missing]
assert restrict(ALL, rules, ports=True, known={known}) == {known}
open("/etc/hosts").close()
(tmp / "new").write_text("x")
os.truncate(tmp / "new", 0)
(tmp / "new").unlink()
def refused(do):
    try:
        do()
    except PermissionError:
        return True
    return False
print(
    refused(lambda: open("/etc/passwd")),
    refused(lambda: os.listdir("/")),
    refused(lambda: open(other / "x", "w")),
    refused(lambda: os.execv("/bin/true", ["true"])),
)
print(
    refused(lambda: socket.socket().bind(("127.0.0.1", 0))),
    refused(lambda: os.kill(os.getppid(), 0)),
)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=ROOT,
    )
    assert (done.stdout.splitlines(), done.stderr) == (
        ["True True True True", f"{known >= 4} {known >= 6}"],
        "",
    )


@only_with_landlock
def test_a_library_in_any_directory_can_import_its_submodules(tmp_path):
    """As after `pip install --target vendor`, with PYTHONPATH=vendor."""
    package = tmp_path / "vendor" / "library"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "late.py").touch()
    (tmp_path / "vendor" / "key.pem").touch()
    code = """
import sys
from relay.sandbox.confinement import confine_admin
import library
confine_admin(-1)
import library.late
try:
    open(sys.argv[1])
except PermissionError:
    print("refused")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "vendor" / "key.pem")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path / 'vendor'}"},
    )
    assert (done.stdout, done.stderr) == ("refused\n", "")


def test_rules_are_written_as_the_kernel_reads_them():
    """The sizes of struct landlock_ruleset_attr in Linux 5.13, 6.7 and 6.12."""
    sizes = {}
    for known in (1, 3, 4, 5, 6, 7):
        _, size = landlock._ruleset(landlock.READ, known, ports=True)
        sizes[known] = size.value
    assert sizes == {1: 8, 3: 8, 4: 16, 5: 16, 6: 24, 7: 24}
    assert [int(landlock._files_known(known)).bit_length() for known in range(1, 8)] == [
        13,
        14,
        15,
        15,
        16,
        16,
        16,
    ]


@pytest.mark.parametrize(
    ("access", "places"),
    [
        ("-", []),
        ("", []),
        ("/no/such/access.log", ["/no/such"]),
        ("/no/such/access_%Y.log", ["/no/such"]),
        ("/no/%Y/access_%m.log", ["/no"]),
        ("/no/x%Y/such/access.log", ["/no"]),
    ],
)
def test_where_a_log_is_written(access, places):
    assert confinement.log_paths(access) == [Path(place) for place in places]


def test_a_worker_of_an_ordinary_user_starts_no_process(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    code = """
import os, sys
from relay.sandbox import confinement
os.setgroups([]); os.setgid(65534); os.setuid(65534)
confinement.confine_worker("-")
try:
    os.fork()
except BlockingIOError:
    print("refused")
"""
    assert (
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
            cwd=ROOT,
        ).stdout
        == "refused\n"
    )


@pytest.fixture
def own_etc(short_path):
    """A copy of the files of name resolution, to mount over /etc where allowed."""
    tried = subprocess.run(
        [sys.executable, "-m", "tests.support.own_etc", "try"],
        capture_output=True,
        timeout=20,
        check=False,
        cwd=ROOT,
    )
    if tried.returncode != 0:
        pytest.skip("needs root, and the right to make a mount namespace")
    etc = short_path / "etc"
    etc.mkdir(mode=0o755)
    for name in ("passwd", "group", "ld.so.cache", "localtime"):
        if Path("/etc", name).exists():
            shutil.copy(Path("/etc", name), etc / name)
    (etc / "nsswitch.conf").write_text("hosts: files\n")
    (etc / "hosts").write_text("127.0.0.1 localhost moving.test\n")
    return etc


def test_a_confined_checker_reads_a_replaced_hosts_file(pki, echo, own_etc):
    """Editors, DHCP clients and NetworkManager rename a new file over the old one."""
    port = echo.address.rpartition(":")[2]
    pool = pool_table(pki, [f"moving.test:{port}"], resolve_s=0.5, health={"interval_s": 0.2})
    gateway = Gateway(
        listener_table(route_table(pki)) + pool,
        module=("tests.support.own_etc",),
        env={"OWN_ETC": str(own_etc)},
    )
    try:
        gateway.start()
        gateway.wait_for_log("moving.test is at 127.0.0.1")
        (own_etc / "hosts.new").write_text("127.0.0.1 localhost\n127.0.0.2 moving.test\n")
        (own_etc / "hosts.new").replace(own_etc / "hosts")
        text = gateway.wait_for_log("moving.test is at 127.0.0.2")
        if landlock.version():
            assert "a file of name resolution was replaced" in text
    finally:
        print(gateway.log())
        gateway.close()
