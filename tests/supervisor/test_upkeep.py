"""A state directory that is deleted, filled up or made read-only at run time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import urllib.request

import pytest

from relay.shared.backends_view import HEALTH_FILE
from tests.support.client import talk
from tests.support.gateway import wait_until
from tests.support.programs import program

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")


def reachable(gateway):
    return gateway.command("status").returncode == 0


def everything_is_back(gateway):
    """The relay answers, and its files are as before."""
    wait_until(
        "endpoints.json is back", (gateway.state_dir / "endpoints.json").exists, detail=gateway.log
    )
    wait_until("it can be asked", lambda: reachable(gateway), detail=gateway.log)
    assert gateway.endpoints["supervisor"]["pid"] == gateway.pid
    gateway.change_a_setting()
    assert gateway.command("reload").returncode == 0
    assert gateway.command("start").returncode == 71, "the lock is there too"


@pytest.fixture
def checked(pki, echo, body):
    """A configuration whose backend is checked."""
    return (
        body + "[pool.echo.health]\ninterval_s = 0.1\n"
        if "[pool.echo.health]" not in body
        else body
    )


@pytest.mark.parametrize("what", ["control.sock", "endpoints.json", "relay.pid"])
def test_a_file_that_is_deleted_is_made_again(relay, pki, what):
    gateway = relay()
    (gateway.state_dir / what).unlink()
    wait_until("it is back", (gateway.state_dir / what).exists, detail=gateway.log)
    everything_is_back(gateway)
    assert talk(pki, gateway.port()) == b"hello"
    assert gateway.stop() == 0
    assert not (gateway.state_dir / "control.sock").exists()


def test_a_deleted_directory_is_restored_with_its_files(relay, pki, checked):
    """The checker once died in a loop, and no command reached the relay any more."""
    gateway = relay(checked)
    assert gateway.command("backend", "weight", "echo/w1", "7").returncode == 0
    health = gateway.state_dir / HEALTH_FILE
    wait_until("the backend was checked", health.exists)
    shutil.rmtree(gateway.state_dir)
    everything_is_back(gateway)
    wait_until("checks are reported again", health.exists, detail=gateway.log)
    overrides = json.loads((gateway.state_dir / "overrides.json").read_text())
    assert "7" in json.dumps(overrides)
    log = gateway.log()
    assert "the state directory was deleted or was out of date, and has been restored" in log
    assert "the checker ended" not in log
    assert "Traceback" not in log
    assert talk(pki, gateway.port()) == b"hello"


def test_a_hangup_makes_it_again_at_once(relay):
    gateway = relay()
    gateway.change_a_setting()
    shutil.rmtree(gateway.state_dir)
    gateway.signal(signal.SIGHUP)
    wait_until(
        "the reload is done",
        lambda: (
            (gateway.state_dir / "endpoints.json").exists() and gateway.endpoints["generation"] == 2
        ),
        detail=gateway.log,
    )
    assert reachable(gateway)


def test_a_checker_without_its_directory_continues_checks(relay, pki, checked):
    gateway = relay(checked)
    directory = (gateway.state_dir / HEALTH_FILE).parent
    wait_until("the backend was checked", (gateway.state_dir / HEALTH_FILE).exists)
    shutil.rmtree(directory)
    directory.write_text("in the way")
    gateway.wait_for_log("cannot be restored: File exists")
    gateway.change_a_setting()
    assert gateway.command("reload").returncode == 0
    gateway.wait_for_log(
        "checker: cannot be used: Not a directory;"
        " the admin page shows old health results; the checks go on"
    )
    status = gateway.command("status").stdout
    assert "checker: pid " in status
    assert "the checker ended" not in gateway.log()
    directory.unlink()
    wait_until(
        "checks are reported again", (gateway.state_dir / HEALTH_FILE).exists, detail=gateway.log
    )


def test_what_another_relay_has_taken_is_left_to_it(relay):
    gateway = relay()
    shutil.rmtree(gateway.state_dir)
    gateway.state_dir.mkdir()
    with (gateway.state_dir / "relay.pid").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        theirs = gateway.state_dir / "control.sock"
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(theirs))
            inode = theirs.stat().st_ino
            gateway.wait_for_log("cannot be restored: another relay uses it now")
            gateway.change_a_setting()
            gateway.signal(signal.SIGHUP)
            gateway.wait_for_log("generation 2 serves")
            assert gateway.stop() == 0
            assert theirs.stat().st_ino == inode
    assert gateway.log().count("another relay uses it now") == 1


@only_root
def test_a_directory_that_another_user_has_made_is_not_trusted(relay, pki):
    gateway = relay()
    port = gateway.port()
    shutil.rmtree(gateway.state_dir)
    gateway.state_dir.mkdir()
    os.chown(gateway.state_dir, 65534, 65534)
    gateway.wait_for_log("belongs to another user now")
    assert not (gateway.state_dir / "control.sock").exists()
    assert talk(pki, port) == b"hello"
    gateway.state_dir.rmdir()
    everything_is_back(gateway)


def test_a_deleted_unix_socket_of_the_admin_process_is_restored(relay, short_path):
    path = short_path / "admin.sock"
    gateway = relay(admin={"listen": f"unix:{path}"})

    def healthy():
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(path))
            client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            return b"200 OK" in client.recv(4096)
        return False

    wait_until("it answers", healthy)
    path.unlink()
    wait_until("it answers again", healthy, detail=gateway.log)


@pytest.fixture
def small_disk(short_path):
    """A file system of 64 KiB, and what fills it up."""
    path = short_path / "disk"
    path.mkdir()
    mount, umount = program("mount"), program("umount")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=64k,mode=755", "none", str(path)],
        timeout=20,
        check=False,
    )
    if done.returncode:
        pytest.skip("no file system can be mounted here")
    yield path
    while os.path.ismount(path):
        subprocess.run([umount, "--lazy", str(path)], timeout=20, check=True)


def fill(path):
    with (path / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 1024)


@only_root
def test_a_full_disk_ends_nothing_and_files_are_written_later(relay, pki, small_disk, checked):
    gateway = relay(checked, start=False, relay={"state_dir": small_disk / "run"})
    gateway.state_dir = small_disk / "run"
    gateway.start()
    fill(small_disk)
    gateway.change_a_setting()
    assert gateway.command("reload").returncode == 0
    changed = gateway.command("backend", "weight", "echo/w1", "7")
    assert changed.returncode == 0
    assert "No space left" in changed.stdout + changed.stderr
    gateway.wait_for_log("cannot write endpoints.json: No space left on device")
    assert talk(pki, gateway.port()) == b"hello"
    assert reachable(gateway)
    assert "the checker ended" not in gateway.log()
    (small_disk / "filler").unlink()
    wait_until(
        "endpoints.json is right", lambda: gateway.endpoints["generation"] == 2, detail=gateway.log
    )
    wait_until(
        "so is overrides.json", (gateway.state_dir / "overrides.json").exists, detail=gateway.log
    )
    assert gateway.stop() == 0
    fill(small_disk)
    gateway.launch()
    gateway.wait_for_log("the relay accepts on", count=2)
    assert reachable(gateway)


@only_root
def test_a_disk_that_becomes_read_only_ends_nothing(relay, pki, small_disk):
    gateway = relay(start=False, relay={"state_dir": small_disk / "run"}, admin={})
    gateway.state_dir = small_disk / "run"
    gateway.start()
    # Files open for writing prevent a read-only remount, so mount another over it.
    for how in (["--bind", str(small_disk)], ["-o", "remount,ro,bind"]):
        subprocess.run([program("mount"), *how, str(small_disk)], timeout=20, check=True)
    gateway.change_a_setting()
    assert gateway.command("reload").returncode == 0
    assert reachable(gateway)
    with urllib.request.urlopen(f"{gateway.admin_url}/healthz", timeout=10) as page:
        assert page.status == 200
    assert talk(pki, gateway.port()) == b"hello"
    assert gateway.stop() == 0
