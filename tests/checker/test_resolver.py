"""Host names are looked up repeatedly; an answer holds until another replaces it."""

from __future__ import annotations

import logging
import selectors
import socket
import subprocess
import sys
import threading
import time

import pytest

from relay.checker import resolver as resolver_module
from relay.checker.host_lookup import Found, NoSuchNameError
from relay.checker.lookup import look_up
from relay.checker.resolver import AGAIN_S, Resolver
from relay.shared.addresses import Addresses, Located, cell_of, is_failing, is_gone, write_addresses
from relay.shared.entities import MAX_ADDRESSES
from tests.support.clockwork import Clockwork
from tests.support.scoreboard import hosts_board

HOST, OTHER = "b.example.com", "c.example.com"
CONFIGURED = (socket.AF_INET, ("192.0.2.1", 443))


class ScriptedResolver:
    """Answers as the test sets, and records the questions."""

    def __init__(self):
        self.answers: dict[str, object] = {}
        self.asked: list[str] = []

    def __call__(self, host):
        self.asked.append(host)
        answer = self.answers.get(host, OSError(-2, "Name or service not known"))
        if isinstance(answer, Exception):
            raise answer
        found = answer() if callable(answer) else answer
        return found if isinstance(found, Found) else Found(tuple(map(Located, found)))


class World:
    """A resolver with scripted answers, and a reader of the addresses it stores."""

    def __init__(self, resolver, hosts):
        self.layout, self.shared = hosts_board(*hosts)
        self.resolver = resolver
        self.hosts = hosts

    def start(self):
        self.clockwork = Clockwork()
        self.names = Resolver(
            self.hosts,
            self.layout,
            self.shared,
            at=self.clockwork.at,
            chance=lambda: 0.5,
            resolve=self.resolver,
        )
        self.clockwork.selector.register(self.names.fd, selectors.EVENT_READ, self.names.on_ready)

    def addresses(self, host=HOST):
        return [
            place[1][0]
            for place in Addresses(f"{host}:443", CONFIGURED, self.layout, self.shared).endpoints()
        ]

    def until(self, condition):
        self.clockwork.run_until(condition)


@pytest.fixture
def resolver():
    return ScriptedResolver()


@pytest.fixture
def world(resolver):
    return World(resolver, {HOST: 0.02})


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO)
    return lambda: [
        record.getMessage() for record in caplog.records if record.name.startswith("relay")
    ]


def test_workers_read_the_latest_answer(world, resolver, said):
    resolver.answers[HOST] = ["192.0.2.7", "2001:db8::7"]
    world.start()
    world.until(lambda: world.addresses() == ["192.0.2.7", "2001:db8::7"])
    resolver.answers[HOST] = ["192.0.2.8"]
    world.until(lambda: world.addresses() == ["192.0.2.8"])
    assert said() == [
        f"host {HOST} is at 192.0.2.7, 2001:db8::7",
        f"host {HOST} is at 192.0.2.8, it was 192.0.2.7, 2001:db8::7",
    ]


def test_the_same_answer_in_another_order_is_no_change(world, resolver, said):
    resolver.answers[HOST] = ["192.0.2.7", "192.0.2.8"]
    world.start()
    world.until(lambda: len(said()) == 1)
    sequence = world.shared[cell_of(world.layout, HOST)]
    resolver.answers[HOST] = ["192.0.2.8", "192.0.2.7"]
    asked = len(resolver.asked)
    world.until(lambda: len(resolver.asked) >= asked + 3)
    assert len(said()) == 1
    assert world.shared[cell_of(world.layout, HOST)] == sequence


def test_a_failed_look_up_keeps_the_last_answer_and_is_said_once(world, resolver, said):
    resolver.answers[HOST] = ["192.0.2.7"]
    world.start()
    world.until(lambda: world.addresses() == ["192.0.2.7"])
    resolver.answers[HOST] = OSError(-3, "Temporary failure in name resolution")
    asked = len(resolver.asked)
    world.until(lambda: len(resolver.asked) >= asked + 4)
    assert world.addresses() == ["192.0.2.7"]
    assert world.names.all[0].error == "Temporary failure in name resolution"
    resolver.answers[HOST] = ["192.0.2.7"]
    world.until(lambda: not world.names.all[0].error)
    failed, again = said()[1:]
    assert failed.startswith(
        f"host {HOST}: the name cannot be looked up: Temporary failure in name resolution; "
        "the last answer, 192.0.2.7, is kept; "
    )
    assert again == f"host {HOST}: the name can be looked up again"


def test_a_name_never_found_keeps_the_address_of_the_start(world, said):
    world.start()
    world.until(said)
    assert world.addresses() == ["192.0.2.1"]
    assert "the address it had when the configuration was loaded is kept" in said()[0]


def test_an_empty_answer_is_a_failure(world, resolver, said):
    resolver.answers[HOST] = []
    world.start()
    world.until(said)
    assert "it has no address" in said()[0]


def test_only_as_many_addresses_as_there_is_room_for_are_used(world, resolver):
    resolver.answers[HOST] = [f"192.0.2.{number}" for number in range(1, 90)]
    world.start()
    world.until(lambda: len(world.addresses()) == MAX_ADDRESSES)


def test_a_look_up_that_hangs_delays_no_other_name(resolver):
    release = threading.Event()
    resolver.answers = {HOST: lambda: (release.wait(30), [])[1], OTHER: ["192.0.2.9"]}
    world = World(resolver, {HOST: 0.02, OTHER: 0.02})
    world.start()
    world.until(lambda: world.addresses(OTHER) == ["192.0.2.9"])
    resolver.answers[OTHER] = ["192.0.2.10"]
    world.until(lambda: world.addresses(OTHER) == ["192.0.2.10"])
    release.set()


def test_many_look_ups_that_hang_delay_no_other_name(resolver):
    release = threading.Event()
    silent = [f"s{number}.example.com" for number in range(20)]
    resolver.answers = {host: lambda: (release.wait(30), [])[1] for host in silent}
    resolver.answers[OTHER] = ["192.0.2.9"]
    world = World(resolver, dict.fromkeys([*silent, OTHER], 0.02))
    world.start()
    world.until(lambda: world.addresses(OTHER) == ["192.0.2.9"])
    resolver.answers[OTHER] = ["192.0.2.10"]
    world.until(lambda: world.addresses(OTHER) == ["192.0.2.10"])
    release.set()


def test_names_that_are_answered_at_once_share_a_few_threads(resolver):
    hosts = [f"h{number}.example.com" for number in range(3)]
    resolver.answers = {host: ["192.0.2.9"] for host in hosts}
    world = World(resolver, dict.fromkeys(hosts, 0.01))
    before = threading.active_count()
    world.start()
    world.until(lambda: len(resolver.asked) > 60)
    assert threading.active_count() - before <= len(hosts)


def test_a_bug_in_a_look_up_is_a_failure_of_that_look_up(world, resolver, said):
    resolver.answers[HOST] = ValueError("embedded null")
    world.start()
    world.until(said)
    assert "a bug: ValueError('embedded null')" in said()[0]
    resolver.answers[HOST] = ["192.0.2.7"]
    world.until(lambda: world.addresses() == ["192.0.2.7"])


def test_the_next_checker_logs_no_known_answer(world, resolver, said):
    write_addresses(world.shared, cell_of(world.layout, HOST), [Located("192.0.2.7")])
    resolver.answers[HOST] = ["192.0.2.7"]
    world.start()
    world.until(lambda: world.names.all[0].answered_at)
    assert said() == []


def test_after_a_failure_the_next_look_up_comes_soon(resolver):
    world = World(resolver, {HOST: 3600.0})
    due = []
    world.clockwork = Clockwork()
    names = Resolver(
        world.hosts,
        world.layout,
        world.shared,
        at=lambda when, call: due.append(when),
        chance=lambda: 0.5,
        resolve=resolver,
    )
    world.clockwork.selector.register(names.fd, selectors.EVENT_READ, names.on_ready)
    world.until(lambda: due)
    assert due[0] <= time.monotonic() + AGAIN_S


def test_look_up_returns_both_families_each_address_once():
    found = look_up("localhost").located
    assert {Located("127.0.0.1"), Located("::1")} & {*found}
    assert len(set(found)) == len(found)


def test_a_look_up_loads_no_module():
    """The checker may have lost the right to read Python's files by then."""
    code = (
        "import sys, relay.checker.resolver as resolver\n"
        "before = set(sys.modules)\n"
        "resolver.look_up('localhost')\n"
        "assert set(sys.modules) == before, set(sys.modules) - before\n"
    )
    subprocess.run([sys.executable, "-c", code], timeout=30, check=True)


SERVICE = "srv:_https._tcp.app.test"
DENIED = NoSuchNameError(-2, "Name or service not known")


def gone(world, name=HOST):
    return is_gone(world.shared, cell_of(world.layout, name))


def test_a_name_that_is_denied_for_long_has_no_address_any_more(world, resolver, said, monkeypatch):
    monkeypatch.setattr(resolver_module, "GONE_AFTER_S", 0.2)
    resolver.answers[HOST] = ["192.0.2.7"]
    world.start()
    world.until(lambda: world.addresses() == ["192.0.2.7"])
    resolver.answers[HOST] = DENIED
    world.until(lambda: is_failing(world.shared, cell_of(world.layout, HOST)))
    assert world.addresses() == ["192.0.2.7"]
    world.until(lambda: gone(world))
    assert world.addresses() == []
    asked = len(resolver.asked)
    world.until(lambda: len(resolver.asked) > asked + 3)
    resolver.answers[HOST] = ["192.0.2.7"]
    world.until(lambda: world.addresses() == ["192.0.2.7"])
    assert not is_failing(world.shared, cell_of(world.layout, HOST))
    assert [line.partition(":")[0] for line in said()] == [
        f"host {HOST} is at 192.0.2.7",
        f"host {HOST}",  # cannot be looked up
        f"host {HOST} has no address any more",
        f"host {HOST} is at 192.0.2.7",
    ]


def test_an_error_in_between_starts_the_time_of_denials_anew(world, resolver, monkeypatch):
    monkeypatch.setattr(resolver_module, "GONE_AFTER_S", 0.2)
    resolver.answers[HOST] = ["192.0.2.7"]
    world.start()
    world.until(lambda: world.addresses() == ["192.0.2.7"])
    turns = iter(range(10**9))
    until = time.monotonic() + 1.0

    def answer():
        raise DENIED if next(turns) % 3 else OSError(-3, "Temporary failure in name resolution")

    resolver.answers[HOST] = answer
    world.until(lambda: time.monotonic() > until)
    assert not gone(world)


def test_an_empty_service_has_no_endpoint_at_once(resolver, said):
    world = World(resolver, {SERVICE: 0.02})
    resolver.answers[SERVICE] = Found((Located("192.0.2.7", 0, 8443, 10, 5),))
    world.start()
    world.until(lambda: said() != [])
    resolver.answers[SERVICE] = Found(nothing="it has no SRV record")
    world.until(lambda: gone(world, SERVICE))
    assert said()[0] == (
        "service _https._tcp.app.test is at 192.0.2.7:8443 (priority 10, weight 5)"
    )
    assert "it has no SRV record; its backends get no new sessions" in said()[1]


@pytest.mark.parametrize(
    ("ttl_s", "interval_s", "expected_s"), [(7, 30, 7), (90, 30, 30), (0, 30, 1), (0, 0.5, 0.5)]
)
def test_an_answer_is_used_for_its_ttl_within_bounds(resolver, ttl_s, interval_s, expected_s):
    world = World(resolver, {SERVICE: interval_s})
    resolver.answers[SERVICE] = Found((Located("192.0.2.7", 0, 8443),), ttl_s)
    world.start()
    due = []
    world.names._at = lambda when, _: due.append(when - time.monotonic())
    world.until(lambda: due)
    assert due == [pytest.approx(expected_s, abs=0.3)]


def test_the_same_addresses_of_a_rotated_long_answer_are_used(world, resolver, said):
    """There is room for 64 of 90. Other ones each time would be a change each time."""
    every = [f"192.0.2.{number}" for number in range(90)]
    resolver.answers[HOST] = every
    world.start()
    world.until(lambda: len(world.addresses()) == MAX_ADDRESSES)
    before = world.addresses()
    resolver.answers[HOST] = every[45:] + every[:45]
    asked = len(resolver.asked)
    world.until(lambda: len(resolver.asked) >= asked + 3)
    assert sorted(world.addresses()) == sorted(before)
    assert len(said()) == 1
