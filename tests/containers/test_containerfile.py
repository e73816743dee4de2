"""The image: its steps are executed; relay is process 1, without rights, read-only."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.backend import TlsBackend
from tests.support.client import talk
from tests.support.containerfile import (
    BUILD_S,
    Stage,
    build,
    in_root,
    instructions,
    needs_a_container,
)
from tests.support.gateway import ROOT, wait_until
from tests.support.ports import held_port
from tests.support.volumes import Volume

FILE = ROOT / "conf" / "container" / "Containerfile"
HADOLINT = Path(sys.executable).with_name("hadolint")
CONFIG = ROOT / "conf" / "kubernetes" / "base" / "relay.toml"
# An emptyDir of Kubernetes in a pod with fsGroup.
SCRATCH = "tmpfs:mode=2777,gid=10001"
# Beside other tests, pip may take more than a minute.
pytestmark = pytest.mark.timeout(BUILD_S + 60)
why_not = needs_a_container()
contained = pytest.mark.skipif(bool(why_not), reason=why_not)


def test_the_containerfile_keeps_the_rules():
    found = instructions(FILE)
    last = found[max(index for index, (name, _) in enumerate(found) if name == "FROM") :]
    assert re.fullmatch(r"\d+:\d+", dict(last)["USER"]), "a number, and not 0"
    assert not dict(last)["USER"].startswith("0")
    for name in ("ENTRYPOINT", "CMD"):
        assert dict(last)[name].startswith("["), "no shell"
    assert " CMD [" in dict(last)["HEALTHCHECK"], "no shell"
    assert not [rest for name, rest in last if name in {"RUN", "ADD", "VOLUME"}]
    assert all(":latest" not in rest for name, rest in found if name in {"FROM", "ARG"})
    copied = {rest for name, rest in found if name == "COPY"}
    assert not any(rest.startswith(". ") for rest in copied), "no keys and no .git by accident"


@pytest.mark.skipif(not HADOLINT.exists(), reason="hadolint not installed")
def test_hadolint_finds_nothing():
    done = subprocess.run([HADOLINT, FILE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return build(FILE, tmp_path_factory.mktemp("image"))


class Container:
    """A running container; a context manager."""

    def __init__(self, image: Stage, log: Path, volumes: dict[str, str], **options) -> None:
        self._image = image
        self._user = options.pop("user", image.user)
        self._log = log
        self._volumes = volumes
        self._options = options

    def __enter__(self):
        image = self._image
        command = in_root(
            image.root,
            image.entrypoint + image.command,
            image.environment,
            directory=image.directory,
            user=self._user,
            volumes=self._volumes,
            read_only=True,
            **self._options,
        )
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        return self

    def __exit__(self, *_):
        with suppress(psutil.NoSuchProcess):
            # unshare ends with process 1. The kernel forgets --kill-child when that
            # becomes another user.
            for each in psutil.Process(self.process.pid).children() or [self.process]:
                each.kill()
        self.process.wait(20)

    def log(self) -> str:
        return self._log.read_text()

    def wait_for_log(self, text: str) -> None:
        wait_until(f"the log has {text!r}", lambda: text in self.log(), detail=self.log)

    @property
    def first(self) -> psutil.Process:
        """Process 1."""
        return psutil.Process(self.process.pid).children()[0]

    def named(self, start: str) -> list[psutil.Process]:
        return [each for each in self.first.children() if each.name().startswith(start)]

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program in it, as `podman exec` does."""
        target = ["--target", str(self.first.pid), "--mount", "--pid", "--root", "--wd"]
        uid, _, gid = self._image.user.partition(":")
        return subprocess.run(
            ["nsenter", *target, "--setuid", uid, "--setgid", gid, "--", *command],
            env=self._image.environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def start_orphan(self) -> int:
        """A process in it whose parent ends first; its pid in the container."""
        code = (
            "import os, time\n"
            "pid = os.fork()\n"
            "os.read(0, 1) if pid == 0 else print(pid, flush=True)\n"
        )
        return int(self.execute("python3", "-c", code).stdout)

    def processes(self) -> dict[int, str]:
        """The processes in it: pid there, and state."""
        listing = self.execute(
            "python3",
            "-c",
            "import pathlib, re\n"
            "for each in pathlib.Path('/proc').glob('[0-9]*/stat'):\n"
            "    try: text = each.read_text()\n"
            "    except OSError: continue\n"
            "    print(text.split()[0], text.rpartition(')')[2].split()[0])\n",
        ).stdout
        return {int(line.split()[0]): line.split()[1] for line in listing.splitlines()}


@pytest.fixture(scope="module")
def backend(pki):
    backend = TlsBackend(pki.backend.certificate, pki.backend.key, pki.ca)
    yield backend
    backend.close()


@pytest.fixture
def volume(image, tmp_path, pki, backend, stack):
    """What the pod of conf/kubernetes mounts at /etc/relay, and the port."""
    tmp_path.chmod(0o755)
    volume = Volume(tmp_path / "volume", int(image.user.partition(":")[2]))
    port, admin = (stack.enter_context(held_port()) for _ in range(2))
    text = CONFIG.read_text()
    for old, new in {
        "srv:_https._tcp.app.default.svc.cluster.local": backend.address,
        "app.default.svc": "backend.example.com",
        "0.0.0.0:8443": f"127.0.0.1:{port}",
        "0.0.0.0:9180": f"127.0.0.1:{admin}",
    }.items():
        assert old in text
        text = text.replace(old, new)
    volume.files = {
        "relay.toml": text.replace("[relay]\n", "[relay]\nworkers = 2\nwatch_s = 0.2\n"),
        "server/tls.crt": pki.gateway.certificate,
        "server/tls.key": pki.gateway.key,
        "machine/tls.crt": pki.machine.certificate,
        "machine/tls.key": pki.machine.key,
        "clients/ca.crt": pki.ca,
        "backends/ca.crt": pki.ca,
    }
    volume.put(volume.files)
    volume.port = port
    return volume


@contained
def test_it_serves_as_process_1_until_it_is_drained(image, volume, pki, tmp_path):
    mounts = {"/etc/relay": str(volume.path), "/run": SCRATCH}
    with Container(image, tmp_path / "log", mounts) as container:
        container.wait_for_log("the relay accepts")
        assert talk(pki, volume.port) == b"hello"
        warnings = [line for line in container.log().splitlines() if '"warning"' in line]
        assert all("LimitNOFILE" in line for line in warnings)
        for process in (container.first, *container.first.children()):
            status = Path(f"/proc/{process.pid}/status").read_text()
            assert re.search(r"^Uid:(\t10001){4}$", status, re.MULTILINE)
            assert "\nCapEff:\t0000000000000000\n" in status
        assert container.execute(*image.health).returncode == 0
        assert container.execute("relay", "check").returncode == 0
        assert container.execute("/bin/sh", "-c", "true").returncode != 0, "there is a shell"

        # A worker that is killed is replaced, and an orphan that ends is no zombie.
        victim = container.named("relay worker")[0]
        victim.kill()
        container.wait_for_log("it is replaced")
        wait_until("two workers again", lambda: len(container.named("relay worker")) == 2)
        orphan = container.start_orphan()
        wait_until("the orphan has gone", lambda: orphan not in container.processes())

        # A volume that kubelet renews: no process is replaced.
        volume.put({**volume.files, **renewed(pki)})
        container.wait_for_log("renewed")
        assert talk(pki, volume.port) == b"hello"

        container.first.send_signal(signal.SIGTERM)
        assert container.process.wait(40) == 0
        assert "draining, then stopping" in container.log()


def renewed(pki):
    """Another certificate and key for the same names."""
    return {"server/tls.crt": pki.both.certificate, "server/tls.key": pki.both.key}


@contained
@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ((319,), "forbids what the relay needs: memfd_create; allow it in the container's"),
        ((126, 302), "prlimit64, capget and capset; allow"),
        ((444, 445, 446, 204), "Landlock is not in force: this kernel lacks it"),
    ],
)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="has call numbers of x86-64")
def test_a_narrow_filter_of_system_calls_is_named(image, volume, tmp_path, calls, message):
    mounts = {"/etc/relay": str(volume.path), "/run": SCRATCH}
    filtered = {str(number): errno.EPERM for number in calls}
    with Container(image, tmp_path / "log", mounts, forbidden=filtered) as container:
        container.wait_for_log(message)
        if "needs" in message or "allow" in message:
            assert container.process.wait(20) == 71


@contained
def test_root_without_capabilities_is_told_what_it_lacks(image, volume, tmp_path):
    text = volume.files["relay.toml"].replace("[relay]\n", '[relay]\nuser = "nobody"\n')
    volume.put({**volume.files, "relay.toml": text})
    mounts = {"/etc/relay": str(volume.path), "/run": "tmpfs:mode=755"}
    with Container(image, tmp_path / "log", mounts, user="0:0") as container:
        assert container.process.wait(30) == 71
        assert 'relay.user: root cannot become "nobody" here: Operation not' in container.log()


@contained
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"/run/relay": SCRATCH},
            "every user of this machine; name a new directory below /run/relay, or",
        ),
        ({}, "cannot be used: Read-only file system; mount a tmpfs or a volume at /run"),
    ],
)
def test_a_state_directory_needs_a_volume_above_it(image, volume, tmp_path, more, message):
    mounts = {"/etc/relay": str(volume.path), **more}
    with Container(image, tmp_path / "log", mounts) as container:
        assert container.process.wait(30) == 71
        assert message in container.log()
