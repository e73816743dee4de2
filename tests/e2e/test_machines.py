"""Two and three relays as machines of their own, with a real keepalived.

An address must move within 3 s. The tests print the times; they fail only after a
minute, because other load on the machine must not fail them.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count

import pytest

from relay.supervisor.control_client import ask
from tests.support.backend import TlsBackend, name_itself
from tests.support.client import context_of
from tests.support.gateway import ROOT, Gateway, wait_until
from tests.support.network import NETWORK, Network, ip, why_not
from tests.support.programs import find, needs
from tests.support.tables import listener_table, pool_table, route_table

CLIENTS = 12
PATIENCE_S = 60
COOKIE = "cookie.example.com"
WHY_NOT = why_not()
pytestmark = [needs("keepalived"), pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]


@pytest.fixture(scope="module")
def network():
    with Network(3, CLIENTS) as network:
        yield network


@pytest.fixture(scope="module")
def body(network, pki):
    """Two routes to the same backends: sticky by address, and by cookie."""
    with ExitStack() as opened:
        backends = []
        for name in ("w1", "w2", "w3"):
            backend = TlsBackend(
                pki.backend.certificate,
                pki.backend.key,
                pki.ca,
                name_itself(name),
                host=f"{NETWORK}.1",
            )
            opened.callback(backend.close)
            backends.append(backend.address)
        yield (
            listener_table(
                route_table(pki, "cookie", sni=[COOKIE]),
                route_table(pki, "source"),
                listen=["0.0.0.0:443"],
            )
            + pool_table(pki, backends, name="source", sticky="source")
            + pool_table(pki, backends, name="cookie", sticky="cookie", cookie="ID")
        )


class Machine:
    """A relay and a keepalived in a namespace."""

    def __init__(self, network: Network, number: int, body: str) -> None:
        self.network, self.number = network, number
        self.name = network.machines[number - 1]
        self.gateway = Gateway(body, relay={"workers": 1, "drain_delay_s": 5, "drain_timeout_s": 1})
        self.keepalived: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        """Start the relay, and return at once."""
        self.gateway.launch(find("ip") or "ip", "netns", "exec", self.name)

    def start(self) -> None:
        """Start the relay; returns when it accepts."""
        self.launch()
        self.gateway.wait_until_it_accepts(PATIENCE_S)

    def start_keepalived(self, example: str) -> None:
        """Start keepalived with the example, as on the machine with this name."""
        directory = self.gateway.directory
        script = directory / "status"
        script.write_text(
            f"#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m relay status --quiet"
            f" --config {self.gateway.config}\n"
        )
        script.chmod(0o755)
        text = (ROOT / "conf/keepalived" / example).read_text()
        # Others may write to /tmp, so keepalived would not run a script there.
        text = text.replace("    enable_script_security\n", "").replace(
            "script_user relay ", "script_user root "
        )
        text = re.sub(r"script_user relay$", "script_user root", text, flags=re.MULTILINE)
        text = re.sub(r'script "[^"]*"', f'script "{script}"', text)
        # A machine with as much other load as this one must not fail the check.
        text = text.replace("timeout 2", "timeout 10").replace(
            "preempt_delay 60", "preempt_delay 1"
        )
        (directory / "keepalived.conf").write_text(text)
        pids = [f"--{kind}={directory}/{kind}" for kind in ("pid", "vrrp_pid", "checkers_pid")]
        command = [
            *(find("ip") or "ip", "netns", "exec", self.name),
            *(find("keepalived") or "keepalived", "--dont-fork", "--log-console", "--vrrp"),
            *(f"--use-file={directory}/keepalived.conf", f"--config-id=gateway{self.number}"),
            *pids,
        ]
        with (directory / "keepalived.log").open("wb") as log:
            self.keepalived = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def log(self) -> str:
        """What keepalived has said."""
        file = self.gateway.directory / "keepalived.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def wait_until_ready(self, meanwhile: Callable[[], bool] = lambda: True) -> None:
        """Wait until it could take an address, and `meanwhile` is true."""
        wait_until(
            "keepalived is ready again",
            lambda: meanwhile() and "Entering BACKUP" in self.log().split("FAULT")[-1],
            PATIENCE_S,
            self.log,
        )

    def has(self, address: str) -> bool:
        """Whether it has this address now."""
        return self.network.has_address(self.name, address)

    def stop_keepalived(self) -> None:
        """End keepalived; it gives up its addresses."""
        if self.keepalived is not None:
            self.keepalived.terminate()
            try:
                self.keepalived.wait(20)
            finally:
                self.keepalived.kill()
            self.keepalived = None

    def close(self) -> None:
        """End everything."""
        print(self.log())
        try:
            self.stop_keepalived()
        finally:
            self.gateway.close()


@pytest.fixture(scope="module")
def machines(network, body):
    with ExitStack() as opened:
        made = [Machine(network, number, body) for number in (1, 2, 3)]
        for machine in made:
            opened.callback(machine.close)
            machine.launch()
        for machine in made:
            machine.gateway.wait_until_it_accepts(PATIENCE_S)
        yield made


@pytest.fixture(scope="module")
def context(pki):
    return context_of(pki)


@pytest.fixture
def dial(network, context, stack):
    """`dial(address, number)`: a session, and the backend that answers it."""

    def dial(address, number):
        by_cookie = number % 2
        sock = socket.create_connection((address, 443), 10, (network.clients[number], 0))
        stack.callback(sock.close)
        tls = context.wrap_socket(sock, server_hostname=COOKIE if by_cookie else "app.example.com")
        stack.callback(tls.close)
        tls.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nCookie: ID=session%d\r\n\r\n" % number)
        return tls, tls.recv(10).decode().strip()

    return dial


def all_dial(dial, address):
    """Every client's session, and every client's backend."""
    sessions, backends = zip(*(dial(address, number) for number in range(CLIENTS)), strict=True)
    assert set(backends) == {"w1", "w2", "w3"}
    return sessions, backends


def lives(session):
    try:
        session.sendall(b"still there?")
        return bool(session.recv(10))
    except OSError:
        return False


def moved_to(machine, others, address):
    """Wait until a machine has the address and no other one has it."""
    wait_until(
        f"gateway{machine.number} has {address}",
        lambda: machine.has(address) and not any(other.has(address) for other in others),
        PATIENCE_S,
        detail=lambda: "\n".join(each.log() for each in (machine, *others)),
    )


def test_an_address_follows_the_relay_that_serves(machines, dial):
    """Killed, drained, stopped: each time all clients find their backends again."""
    one, two, _ = machines
    address = f"{NETWORK}.100"
    one.start_keepalived("two.conf")
    moved_to(one, [two], address)
    two.start_keepalived("two.conf")
    sessions, backends = all_dial(dial, address)

    started = time.monotonic()
    os.kill(one.gateway.pid, signal.SIGKILL)
    moved_to(two, [one], address)
    print(f"killed: {time.monotonic() - started:.2f} s")
    again, same = all_dial(dial, address)
    assert same == backends
    assert not any(map(lives, sessions))  # a move ends all sessions

    one.gateway.kill()
    one.start()
    one.wait_until_ready(meanwhile=lambda: all(map(lives, again)))
    assert two.has(address)  # the address did not come back

    assert two.gateway.command("drain").returncode == 0
    started = time.monotonic()
    wrong = []

    def next_one():
        number = next(numbers) % CLIENTS
        try:
            backend = dial(address, number)[1]
        except (ConnectionResetError, TimeoutError):
            backend = ""
        if backend != backends[number]:
            wrong.append(backend)
        return one.has(address)

    numbers = count()
    wait_until("the address has moved, and no client was refused", next_one, PATIENCE_S)
    print(f"drained: {time.monotonic() - started:.2f} s")
    assert wrong in ([], [""])  # the move may cut the one that is under way
    assert all_dial(dial, address)[1] == backends
    assert two.gateway.stop() == 0  # without the rest of the delay
    two.start()
    two.wait_until_ready()

    assert one.gateway.command("stop").returncode == 0
    started = time.monotonic()
    one.gateway.wait()
    moved_to(two, [one], address)
    print(f"stopped: {time.monotonic() - started:.2f} s")
    assert all_dial(dial, address)[1] == backends
    one.start()
    for machine in (one, two):
        machine.stop_keepalived()


def test_consistent_routes_end_only_the_sessions_of_a_machine(machines, network, dial):
    """A router with a resilient next-hop group before the machines."""
    address, hub = "192.0.2.10", network.hub
    for machine in machines:
        ip("-n", machine.name, "addr", "add", f"{address}/32", "dev", "lo")
        hop = f"{NETWORK}.{10 + machine.number}"
        ip("-n", hub, "nexthop", "add", "id", str(machine.number), "via", hop, "dev", "br0")

    def route_to(group):
        kind = ("type", "resilient", "buckets", "128", "idle_timer", "60", "unbalanced_timer", "0")
        ip("-n", hub, "nexthop", "replace", "id", "10", "group", group, *kind)

    try:
        route_to("1/2/3")
    except AssertionError as error:
        pytest.skip(f"this kernel has no resilient next-hop groups: {error}")
    ip("-n", hub, "route", "add", f"{address}/32", "nhid", "10")
    sessions, backends = all_dial(dial, address)
    last = ask(machines[2].gateway.state_dir, "status", PATIENCE_S)["workers"][0]["connections"]
    route_to("1/2")
    alive = [session for session in sessions if lives(session)]
    assert len(alive) == CLIENTS - last
    assert all_dial(dial, address)[1] == backends
    route_to("1/2/3")
    assert all(map(lives, alive))
    ip("-n", hub, "route", "del", f"{address}/32")


def test_three_machines_take_over_for_each_other(machines, dial):
    addresses = [f"{NETWORK}.{last}" for last in (101, 102, 103)]
    for machine in machines:
        machine.start_keepalived("three.conf")
    for machine, address in zip(machines, addresses, strict=True):
        moved_to(machine, [each for each in machines if each is not machine], address)
    _, backends = all_dial(dial, addresses[0])
    assert all(all_dial(dial, address)[1] == backends for address in addresses)
    one, two, three = machines
    started = time.monotonic()
    ip("-n", one.name, "link", "set", "eth0", "down")  # the machine is gone
    wait_until("the second one has it", lambda: two.has(addresses[0]), PATIENCE_S, two.log)
    print(f"gone: {time.monotonic() - started:.2f} s")
    assert three.has(addresses[2])
    assert all_dial(dial, addresses[0])[1] == backends
