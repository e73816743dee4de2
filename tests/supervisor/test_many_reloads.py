"""Any number of reloads, with sessions kept open in old generations.

Each reload has new names and another number of workers.
"""

from __future__ import annotations

import collections
import contextlib
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import psutil
import pytest

from relay.admin.metrics import parse_metrics
from relay.supervisor.control_client import ask
from tests.support.client import context_of
from tests.support.configs import write_body
from tests.support.gateway import wait_until

# A longer proof is RELAY_TEST_RELOADS=200.
RELOADS = int(os.environ.get("RELAY_TEST_RELOADS", "16"))
OLD = 7
PATIENCE_S = 30.0


def body(pki, echo, number):
    """One backend that answers, and three with names that no earlier generation had.

    They have a host name, so there is a checker.
    """
    new = "".join(
        f'[[pool.echo.backend]]\nroute = "g{number}-{i}"\naddress = "localhost:1"\n'
        'name = "x.example.com"\nstandby = true\n'
        for i in range(3)
    )
    return write_body(pki, echo) + new


class Watcher:
    """Reads /metrics repeatedly; `back` lists counters that went back or vanished."""

    def __init__(self, gateway):
        self._url = f"{gateway.admin_url}/metrics"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.last = {}
        self.reads = 0
        self.back = []

    def read(self):
        with urllib.request.urlopen(self._url, timeout=PATIENCE_S) as answer:
            return parse_metrics(answer.read().decode())

    def _watch(self):
        while not self._stop.is_set():
            try:
                now = self.read()
            except OSError as error:
                self.back.append(
                    error.read() if isinstance(error, urllib.error.HTTPError) else repr(error)
                )
                return
            self.back += [
                (key, value, now.get(key))
                for key, value in self.last.items()
                if is_counter(key) and now.get(key, -1) < value
            ]
            self.last = now
            self.reads += 1
            time.sleep(0.05)  # gaps between reads, so that reloads have the processor too

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(PATIENCE_S)


def is_counter(key):
    return "_total{" in key or "_bucket{" in key or "_count{" in key or key.endswith("_total{}")


def session(gateway, context):
    """A session that has moved bytes."""
    connected = context.wrap_socket(
        socket.create_connection(gateway.address(), PATIENCE_S), server_hostname="app.example.com"
    )
    connected.sendall(b"hello")
    assert connected.recv(5) == b"hello"
    return connected


def cost(pid):
    """Descriptors, mappings and bytes that belong to a process alone."""
    process = psutil.Process(pid)
    return (
        process.num_fds(),
        len(Path(f"/proc/{pid}/maps").read_text().splitlines()),
        process.memory_full_info().uss,
    )


def processes(gateway):
    """The pids of the supervisor, the admin process and the checker."""
    admin = gateway.child("relay.admin.main").pid
    checker = ask(gateway.state_dir, "status", PATIENCE_S)["checker"]["pid"]
    return {"supervisor": gateway.pid, "admin": admin, "checker": checker}


def costs(gateway):
    """What each process costs; None while the checker of an old generation ends."""
    try:
        return {name: cost(pid) for name, pid in processes(gateway).items()}
    except (psutil.NoSuchProcess, FileNotFoundError):
        return None


def generations(gateway):
    return {
        worker["generation"] for worker in ask(gateway.state_dir, "status", PATIENCE_S)["workers"]
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="looks into processes that only root may see")
def test_no_reload_is_refused_for_room_and_no_counter_goes_back(relay, pki, echo):
    gateway = relay(body(pki, echo, 0), relay={"workers": 1, "drain_timeout_s": 3600}, admin={})
    context = context_of(pki)
    watched = {}
    with contextlib.ExitStack() as stack, Watcher(gateway) as watcher:
        held = collections.deque()
        for number in range(1, RELOADS + 1):
            held.append(stack.enter_context(session(gateway, context)))
            if len(held) > OLD:
                held.popleft().close()
            gateway.write(body(pki, echo, number), relay={"workers": 1 + number % 3})
            reply = ask(gateway.state_dir, "reload", PATIENCE_S)
            assert reply["ok"], f"reload {number}: {reply}"
            if number in (RELOADS // 2, RELOADS):
                wait_until(
                    "only those with a session are left",
                    lambda: len(generations(gateway)) == 1 + len(held),
                    PATIENCE_S,
                    gateway.log,
                )
                watched[number] = wait_until("all are measured", partial(costs, gateway))
        for one in held:
            one.sendall(b"still")
            assert one.recv(5) == b"still", "a session of an old generation goes on"
        wait_until(
            "the scraper has read all along",
            lambda: watcher.reads > 3,
            detail=lambda: f"{watcher.back}\n{gateway.log()}",
        )
    assert watcher.back == []
    final = watcher.read()
    assert (
        sum(
            value
            for key, value in final.items()
            if key.startswith("relay_backend_selected_total{") and 'backend="w1"' in key
        )
        == RELOADS
    )
    assert any('backend="g1-0"' in key for key in final), "names that are gone keep their totals"
    early, late = watched[RELOADS // 2], watched[RELOADS]
    print(watched, watcher.reads)
    for process in early:
        (fds, maps, uss), (fds_later, maps_later, uss_later) = early[process], late[process]
        assert fds_later <= fds + 8, f"{process} keeps descriptors"
        assert maps_later <= maps + 30, f"{process} keeps mappings"
        assert uss_later <= uss + 4_000_000 + 30_000 * RELOADS, f"{process} keeps memory"
