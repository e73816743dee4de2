"""Standard streams that are closed, full, or not read any more."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from relay.admin.metrics import parse_metrics
from tests.support.client import talk
from tests.support.gateway import wait_until
from tests.support.programs import program


def launch(gateway, **streams):
    """Start a relay with these standard streams."""
    gateway.process = subprocess.Popen(
        [sys.executable, "-m", *gateway.module, "start", "--config", str(gateway.config)],
        cwd=gateway.directory,
        env=gateway.environment,
        **{"stdin": subprocess.DEVNULL, **streams},
    )
    wait_until("the relay accepts", gateway._accepts, patience_s=30)


def is_imported(maps):
    """Whether the process has imported the relay. Later it hides its memory."""
    try:
        return "_pydantic_core" in maps.read_text()
    except PermissionError:
        return True


@pytest.fixture
def full_pipe():
    """A pipe of one page that takes nothing more: its two ends."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.write(write, b"x" * 4096)
    yield read, write
    os.close(read)
    os.close(write)


def test_a_full_stderr_blocks_no_process_and_loses_no_message(relay, pki, full_pipe):
    """Each message once cost its process 100 ms, of a worker's sessions too."""
    read, write = full_pipe
    gateway = relay(
        start=False, relay={"workers": 1}, admin={}, log={"access": "-", "level": "debug"}
    )
    launch(gateway, stdout=write, stderr=write)
    pid = gateway.workers()[0]
    assert [talk(pki, gateway.port()) for _ in range(5)] == [b"hello"] * 5
    os.kill(pid, 9)
    gateway.wait_for_workers(lambda now: now[0] != pid)
    gateway.change_a_setting()
    assert gateway.command("reload").returncode == 0
    started = time.monotonic()
    assert [talk(pki, gateway.port()) for _ in range(20)] == [b"hello"] * 20
    assert time.monotonic() - started < 5
    with urllib.request.urlopen(f"{gateway.admin_url}/metrics", timeout=10) as page:
        assert parse_metrics(page.read().decode())["relay_messages_dropped_total{}"] == 0
    seen = b""
    while b"generation 2 serves" not in seen:
        seen += os.read(read, 65536)
    assert b"was ended by SIGKILL" in seen
    gateway.signal(15)
    os.set_blocking(read, False)
    started = time.monotonic()
    assert gateway.wait() == 0
    assert time.monotonic() - started < 10


CLOSED = {
    "stdin": "<&-",
    "stdout": ">&-",
    "stderr": "2>&-",
    "stdout and stderr": ">&- 2>&-",
    "all three": "<&- >&- 2>&-",
}


@pytest.mark.parametrize("closed", CLOSED)
def test_closed_standard_streams_are_replaced(relay, pki, closed):
    gateway = relay(start=False, relay={"workers": 1}, admin={}, log={"access": "-"})
    command = f'exec "$0" -m relay start --config "$1" {CLOSED[closed]}'
    with gateway.log_file.open("ab") as log:
        gateway.process = subprocess.Popen(
            ["/bin/sh", "-c", command, sys.executable, str(gateway.config)],
            cwd=gateway.directory,
            env=gateway.environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
        )
    gateway.process.stdin.close()
    wait_until("the relay accepts", gateway._accepts, detail=gateway.log)
    assert talk(pki, gateway.port()) == b"hello"
    numbers = {"stdin": (0,), "stdout": (1,), "stderr": (2,), "stdout and stderr": (1, 2)}
    family = (psutil.Process(gateway.pid), *psutil.Process(gateway.pid).children())
    for process in family if os.geteuid() == 0 else ():  # only root may see their descriptors
        for number in numbers.get(closed, (0, 1, 2)):
            assert Path(f"/proc/{process.pid}/fd/{number}").readlink() == Path("/dev/null")
    assert gateway.command("reload").returncode == 0
    assert talk(pki, gateway.port()) == b"hello"
    assert gateway.stop() == 0


def test_readers_of_stdout_and_stderr_that_go_away_end_nothing(relay, pki):
    gateway = relay(start=False, relay={"workers": 1}, log={"access": "-"})
    read, write = os.pipe()
    launch(gateway, stdout=write, stderr=write)
    os.close(write)
    os.close(read)
    pid = gateway.workers()[0]
    assert [talk(pki, gateway.port()) for _ in range(5)] == [b"hello"] * 5
    os.kill(pid, signal.SIGKILL)
    gateway.wait_for_workers(lambda now: now[0] != pid)
    assert talk(pki, gateway.port()) == b"hello"
    gateway.change_a_setting()
    assert gateway.command("reload").returncode == 0
    assert gateway.stop() == 0


@pytest.mark.parametrize("closed", ["", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_with_closed_streams_has_its_usual_exit_code(relay, closed):
    gateway = relay(start=False)
    command = f'exec "$0" -m relay status --config "$1" {closed}'
    said = subprocess.run(
        ["/bin/sh", "-c", command, sys.executable, str(gateway.config)],
        env=gateway.environment,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert said.returncode == 69
    assert b"Traceback" not in said.stderr


def test_output_that_cannot_be_written_is_no_bug(relay):
    command = [sys.executable, "-m", "relay", "version"]
    environment = relay(start=False).environment
    with Path("/dev/full").open("w") as full:
        said = subprocess.run(
            command,
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
            check=False,
        )
    assert said.returncode == 74
    assert said.stderr == (
        "relay: the output cannot be written: No space left on device;"
        " make room where stdout goes\n"
    )
    read, write = os.pipe()
    os.close(read)
    said = subprocess.run(
        command,
        env=environment,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
    )
    os.close(write)
    assert (said.returncode, said.stderr) == (1, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_during_imports_shows_no_traceback(relay, number):
    gateway = relay(start=False)
    ends = []
    for delay_s in (0, 0.05, 0.1, 0.2):
        command = [sys.executable, "-m", "relay", "start", "--config", str(gateway.config)]
        with subprocess.Popen(
            command, env=gateway.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            maps = Path(f"/proc/{process.pid}/maps")
            # Before this Python itself starts, and prints its traceback.
            wait_until("the relay is imported", lambda maps=maps: is_imported(maps))
            time.sleep(delay_s)
            process.send_signal(number)
            said, _ = process.communicate(timeout=30)
        assert b"Traceback" not in said, said
        assert b"Exception ignored" not in said, said
        ends.append(process.returncode)
    assert set(ends) <= {-number, 0}, ends


def test_hup_and_usr1_do_not_end_a_start(relay, pki):
    """Until the loop ran, either signal ended the process."""
    gateway = relay(start=False)
    gateway.may_be_warm = False
    gateway.launch()
    maps = Path(f"/proc/{gateway.pid}/maps")
    wait_until("the relay is imported", lambda: is_imported(maps))
    while "the relay accepts on" not in gateway.log():
        assert gateway.running.poll() is None, gateway.log()
        gateway.signal(signal.SIGUSR1)
        gateway.signal(signal.SIGHUP)
        time.sleep(0.02)
    gateway.wait_for_log("nothing has changed")  # the files were read again
    assert talk(pki, gateway.port()) == b"hello"


ADOPTING = """
import ctypes, os, sys, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
for _ in range(3):
    if os.fork() == 0:
        if os.fork() == 0:
            for fd in (0, 1, 2):
                os.close(fd)
            while not os.path.exists("go"):
                time.sleep(0.01)
        os._exit(0)
from relay.__main__ import main
sys.exit(main())
"""


def test_orphans_that_it_adopts_are_reaped(relay, pki):
    """Process 1 of a container is the parent of every orphan."""
    gateway = relay(start=False, admin={})
    with gateway.log_file.open("ab") as log:
        command = [sys.executable, "-c", ADOPTING, "start", "--config", str(gateway.config)]
        gateway.process = subprocess.Popen(
            command, cwd=gateway.directory, env=gateway.environment, stdout=log, stderr=log
        )
    wait_until("the relay accepts", gateway._accepts, detail=gateway.log)
    supervisor = psutil.Process(gateway.pid)
    assert len(supervisor.children()) >= 7, "3 orphans, 2 workers, the admin process, the watcher"
    (gateway.directory / "go").touch()

    def only_ours():
        children = supervisor.children()
        return len(children) == 4 and all(
            child.status() != psutil.STATUS_ZOMBIE for child in children
        )

    wait_until("the orphans are gone", only_ours, detail=gateway.log)
    os.kill(gateway.workers()[0], signal.SIGKILL)
    wait_until(
        "its own are not taken for strangers", lambda: "was ended by SIGKILL" in gateway.log()
    )
    assert talk(pki, gateway.port()) == b"hello"
    assert gateway.stop() == 0


only_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to unshare")
AS_PROCESS_1 = ("--pid", "--fork", "--mount-proc")  # options of unshare


@only_root
def test_as_process_1_of_a_container_it_serves_reaps_and_ends(relay, pki):
    gateway = relay(start=False, admin={})
    gateway.launch(program("unshare"), *AS_PROCESS_1)
    wait_until(
        "the relay accepts", (gateway.state_dir / "endpoints.json").exists, detail=gateway.log
    )
    assert gateway.endpoints["supervisor"]["pid"] == 1
    assert talk(pki, gateway.port()) == b"hello"
    (first,) = psutil.Process(gateway.pid).children()
    first.send_signal(signal.SIGTERM)
    assert gateway.wait() == 0


@only_root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_as_the_first_process_it_can_be_ended_while_it_starts(relay, number):
    """The kernel delivers no signal to process 1 that it has no handler for."""
    gateway = relay(start=False)
    command = [program("unshare"), *AS_PROCESS_1, *gateway.start_command]
    with subprocess.Popen(
        command, env=gateway.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        first = wait_until(
            "it runs", lambda: next(iter(psutil.Process(process.pid).children()), None)
        )
        maps = Path(f"/proc/{first.pid}/maps")
        wait_until("the relay is imported", lambda: is_imported(maps))
        first.send_signal(number)
        said, _ = process.communicate(timeout=30)
    assert b"Traceback" not in said, said
    assert process.returncode in {128 + number, 0}
