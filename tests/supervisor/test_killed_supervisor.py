"""The supervisor is killed: workers finish, and the next start takes over at once."""

from __future__ import annotations

import os

import psutil
import pytest

from tests.support.client import talk
from tests.support.gateway import wait_until
from tests.support.traffic import LongSession

pytestmark = pytest.mark.timeout(600)
PATIENCE_S = 90.0
# A longer proof is RELAY_TEST_KILLS=20.
KILLS = int(os.environ.get("RELAY_TEST_KILLS", "2"))


def test_sessions_go_on_and_the_next_start_takes_over(relay, pki):
    """The ports are fixed, so the next start needs what the last one had."""
    gateway = relay(admin={})
    text, port, admin = gateway.config.read_text(), gateway.port(), gateway.endpoints["admin"]
    text = text.replace('"127.0.0.1:0"]', f'"127.0.0.1:{port}"]')
    gateway.config.write_text(text.replace('"127.0.0.1:0"', f'"{admin}"'))
    for _ in range(KILLS):
        workers = [psutil.Process(pid) for pid in gateway.workers().values()]
        with LongSession(pki, port) as session:
            session.wait_for_more()
            gateway.running.kill()
            gateway.running.wait(PATIENCE_S)
            gateway.launch().wait_until_it_accepts(PATIENCE_S)
            assert talk(pki, port, patience_s=PATIENCE_S) == b"hello"
            assert gateway.port() == port
            session.wait_for_more()
        assert session.failures == []
        wait_until("they end", lambda left=workers: not any(map(is_alive, left)), PATIENCE_S)
    assert gateway.command("status").returncode == 0


def is_alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
