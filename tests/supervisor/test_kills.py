"""Workers that die often: who is served meanwhile, and what it costs."""

from __future__ import annotations

import itertools
import os
import random
import resource
import signal
import socket
import threading
import time

import psutil
import pytest

from relay.supervisor.control_client import ask
from tests.support.client import context_of, talk
from tests.support.gateway import wait_until
from tests.support.stub_relay import STUB, stub

KILLS_A_SECOND = 4
KILLS = 28
LONGEST_GAP_S = 0.5
TRIES = 3


class Clients:
    """Threads that connect, send one byte and hang up, until they are told to stop."""

    def __init__(self, pki, port, count=6):
        self._context, self._port, self._stop = context_of(pki), port, threading.Event()
        self.served_at, self.hung = [], []
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self):
        while not self._stop.wait(0.02):
            try:
                with (
                    socket.create_connection(("127.0.0.1", self._port), 5) as raw,
                    self._context.wrap_socket(raw, server_hostname="app.example.com") as tls,
                ):
                    tls.sendall(b"x")
                    if tls.recv(1) == b"x":
                        self.served_at.append(time.monotonic())
            except TimeoutError as error:
                self.hung.append(error)
            except OSError:
                continue  # it was the killed worker's

    def longest_gap_s(self):
        at = sorted(self.served_at)
        return max(after - before for before, after in itertools.pairwise(at))


def workers_of(gateway):
    """The pids of all living workers, whether they serve or only start."""
    found = []
    for child in psutil.Process(gateway.pid).children():
        try:
            if child.name().startswith("relay worker"):
                found.append(child.pid)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.serial
@pytest.mark.parametrize("workers", [1, 4])
def test_killing_workers_again_and_again_leaves_no_gap(relay, pki, workers):
    """If slots in back-off kept their sockets, their clients would hang for seconds."""
    gateway = relay(relay={"workers": workers})
    dice = random.Random(8)
    gaps_s = []
    # A busy machine makes gaps longer, never shorter. So the best of some tries counts.
    while len(gaps_s) < TRIES and min(gaps_s, default=LONGEST_GAP_S + 1) > LONGEST_GAP_S:
        with Clients(pki, gateway.port()) as clients:
            wait_until(
                "clients are served", lambda: len(clients.served_at) > 20, detail=gateway.log
            )
            for _ in range(KILLS):
                started = time.monotonic()
                victim = dice.choice(wait_until("there is a worker", lambda: workers_of(gateway)))
                os.kill(victim, signal.SIGKILL)
                time.sleep(max(0, started + 1 / KILLS_A_SECOND - time.monotonic()))
            enough = len(clients.served_at) + 20
            wait_until(
                "they still are",
                lambda clients=clients, enough=enough: len(clients.served_at) > enough,
                detail=gateway.log,
            )
        assert clients.hung == []
        gaps_s.append(clients.longest_gap_s())
    assert min(gaps_s) <= LONGEST_GAP_S, gateway.log()
    assert gateway.log().count("was ended by SIGKILL") == KILLS * len(gaps_s)
    assert "is parked" not in gateway.log()


def test_a_slot_in_back_off_leaves_its_clients_to_the_others(relay, pki):
    gateway = relay(
        module=STUB, env=stub(first_delay_s=600, longest_delay_s=600), relay={"workers": 4}
    )
    (gateway.directory / "behave").write_text("crash")
    os.kill(gateway.workers()[1], signal.SIGKILL)
    gateway.wait_for_log("it is replaced in 600 s; until then its sockets are closed")
    # A connection that is queued when they are closed is reset. The next answer of the
    # supervisor's loop comes after that.
    assert ask(gateway.state_dir, "status", 20)["ok"]
    started = time.monotonic()
    assert [talk(pki, gateway.port()) for _ in range(60)] == [b"hello"] * 60
    assert time.monotonic() - started < 15, "none of them had to ask a second time"
    assert sorted(gateway.wait_for_workers(lambda now: 1 not in now)) == [0, 2, 3]


def test_when_no_slot_is_served_one_is_tried_soon(relay, pki):
    """The relay keeps the port meanwhile."""
    gateway = relay(
        module=STUB,
        env=stub(first_delay_s=600, longest_delay_s=600, park_s=600, park_after_deaths=3),
        relay={"workers": 2},
    )
    port = gateway.port()
    (gateway.directory / "behave").write_text("crash")
    for pid in gateway.workers().values():
        os.kill(pid, signal.SIGKILL)
    gateway.wait_for_log("is parked after 3 early deaths", count=2)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)
    with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
        other.bind(("127.0.0.1", port))
    (gateway.directory / "behave").unlink()
    wait_until("clients are served again", lambda: answers(pki, port), detail=gateway.log)
    assert gateway.command("status").stdout.count("worker slot=") >= 1


def answers(pki, port):
    try:
        return talk(pki, port) == b"hello"
    except ConnectionError:
        return False


@pytest.mark.serial
def test_workers_that_all_die_at_once_for_ever_cost_little(relay):
    gateway = relay(module=STUB, env=stub(), relay={"workers": 2})
    (gateway.directory / "behave").write_text("crash")
    for pid in gateway.workers().values():
        os.kill(pid, signal.SIGKILL)
    gateway.wait_for_log("ended with exit code 3", count=4)
    deaths, started = gateway.log().count("ended with exit code 3"), time.monotonic()
    time.sleep(3)
    cpu = psutil.Process(gateway.pid).cpu_times()
    spent = cpu.user + cpu.system + cpu.children_user + cpu.children_system
    more, seconds = (
        gateway.log().count("ended with exit code 3") - deaths,
        time.monotonic() - started,
    )
    assert 1 <= more <= 4 * seconds, gateway.log()
    time.sleep(2)
    cpu = psutil.Process(gateway.pid).cpu_times()
    assert cpu.user + cpu.system + cpu.children_user + cpu.children_system - spent < 0.3 * 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root is not bound by RLIMIT_NPROC")
def test_a_fork_that_fails_is_tried_again(relay, pki):
    gateway = relay(relay={"workers": 1})
    soft, hard = resource.prlimit(gateway.pid, resource.RLIMIT_NPROC)
    resource.prlimit(gateway.pid, resource.RLIMIT_NPROC, (1, hard))
    os.kill(gateway.workers()[0], signal.SIGKILL)
    gateway.wait_for_log(
        "worker 0 cannot be started: [Errno 11] Resource temporarily unavailable; tried again"
    )
    resource.prlimit(gateway.pid, resource.RLIMIT_NPROC, (soft, hard))
    wait_until("clients are served again", lambda: answers(pki, gateway.port()), detail=gateway.log)
