"""A unix socket of a listener over upgrades, restarts with a store, and canaries."""

from __future__ import annotations

import socket
import threading

import pytest

from tests.support.client import talk
from tests.support.configs import write_body
from tests.support.gateway import wait_until
from tests.support.manager import Manager
from tests.support.versions import Installation

PATIENCE_S = 120
BOTH = '{ from = ["unix"] }'
pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def path(short_path):
    return short_path / "in.sock"


@pytest.fixture
def unix_body(pki, echo, path):
    return write_body(pki, echo, (f"unix:{path}",), accept_proxy=BOTH)


@pytest.fixture
def say(pki, path):
    """Whether a client behind a balancer on this machine is served."""

    def say(queued=None):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE_S)
            sock.connect(str(path))
            if queued is not None:
                queued.set()
            sock.sendall(b"PROXY TCP4 192.0.2.7 198.51.100.9 1 2\r\n")
            return talk(pki, 0, raw=sock, patience_s=PATIENCE_S) == b"hello"

    return say


def test_an_upgrade_keeps_the_socket(relay, unix_body, say, path, short_path):
    installed = Installation(short_path / "lib")
    gateway = relay(unix_body, env={"PYTHONPATH": str(installed.directory)})
    inode, failures, stop = path.stat().st_ino, [], threading.Event()

    def visit():
        while not stop.wait(0.02):
            try:
                assert say()
            except (OSError, AssertionError) as error:
                failures.append(repr(error))

    visitors = [threading.Thread(target=visit) for _ in range(2)]
    for each in visitors:
        each.start()
    try:
        for version in ("2.0.0", "3.0.0"):
            installed.install(version)
            answered = gateway.command("upgrade", patience_s=PATIENCE_S)
            assert answered.returncode == 0, gateway.log()
    finally:
        stop.set()
        for each in visitors:
            each.join(PATIENCE_S)
    assert failures == []
    assert path.stat().st_ino == inode
    gateway.change_a_setting()
    assert gateway.command("reload", patience_s=PATIENCE_S).returncode == 0
    assert say()
    assert gateway.stop() == 0
    assert not path.exists()


def test_a_store_keeps_the_socket_over_a_restart(relay, unix_body, say, path, short_path):
    with Manager(short_path) as manager:
        gateway = relay(unix_body, start=False, env={"NOTIFY_SOCKET": manager.address})
        manager.start(gateway)
        wait_until("its socket is stored", lambda: len(manager.stored) == 1)
        assert say()
        assert gateway.stop() == 0
        queued, answers = threading.Event(), []
        waiting = threading.Thread(target=lambda: answers.append(say(queued)))
        waiting.start()
        assert queued.wait(PATIENCE_S), "the socket's file is gone"
        manager.start(gateway)
        waiting.join(PATIENCE_S)
        assert answers == [True]
        assert say()
        assert gateway.command("stop", patience_s=PATIENCE_S).returncode == 0
        wait_until("its file is gone", lambda: not path.exists())


@pytest.mark.parametrize("new", [True, False])
def test_a_canary_serves_the_socket(relay, pki, echo, unix_body, say, path, new):
    """One that only the canary has, and one that both generations have."""
    gateway = relay(write_body(pki, echo) if new else unix_body)
    gateway.write(unix_body, timeouts={"idle_s": 299})
    with_canary = threading.Thread(
        target=gateway.command,
        args=("reload", "--canary", "300s"),
        kwargs={"patience_s": 300},
        daemon=True,
    )
    with_canary.start()
    wait_until(
        "the canary serves",
        lambda: "of this slot" in gateway.log() or "of its slot" in gateway.log(),
    )
    assert all(say() for _ in range(10))
    wait_until(
        "the rest may follow",
        lambda: gateway.command("reload", "--promote", patience_s=PATIENCE_S).returncode == 0,
    )
    with_canary.join(PATIENCE_S)
    assert all(say() for _ in range(10))
    assert gateway.endpoints["generation"] == 2
