"""Standard streams that are closed, full, or not read any more."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
import urllib.request

import pytest

from relay.observe.metrics import parse_metrics
from tests.support.client import talk
from tests.support.gateway import wait_until


def launch(gateway, **streams):
    """Start a relay with these standard streams."""
    gateway.process = subprocess.Popen(
        [sys.executable, "-m", *gateway.module, "start", "--config", str(gateway.config)],
        cwd=gateway.directory,
        env=gateway.environment,
        **{"stdin": subprocess.DEVNULL, **streams},
    )
    wait_until("the relay accepts", gateway._accepts, patience_s=30)


@pytest.fixture
def full_pipe():
    """A pipe of one page that takes nothing more: its two ends."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.write(write, b"x" * 4096)
    yield read, write
    os.close(read)
    os.close(write)


def test_a_full_stderr_holds_up_no_process_and_its_messages_come_when_it_is_read(relay, pki, full_pipe):
    """Each message once cost its process 100 ms, of a worker's sessions too."""
    read, write = full_pipe
    gateway = relay(start=False, relay={"workers": 1}, log={"access": "-", "level": "debug"})
    launch(gateway, stdout=write, stderr=write)
    pid = gateway.workers()[0]
    assert [talk(pki, gateway.port()) for _ in range(5)] == [b"hello"] * 5
    os.kill(pid, 9)
    gateway.wait_for_workers(lambda now: now[0] != pid)
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
