"""Backends whose names appear, move and vanish in a real DNS server."""

from __future__ import annotations

import json
import socket
import ssl
import threading

import pytest

from relay.supervisor.control_client import ask as ask_supervisor
from tests.support.backend import name_itself
from tests.support.client import context_of, talk
from tests.support.dns_server import DnsServer, Etc, possible
from tests.support.gateway import wait_until
from tests.support.tables import listener_table, pool_table, route_table

pytestmark = pytest.mark.skipif(not possible(), reason="needs root, for port 53")

NAME = "_https._tcp.app.test"
SERVICE = f"srv:{NAME}"


@pytest.fixture
def dns():
    with DnsServer() as server:
        server.set("a.test", "A", "127.0.0.1")
        yield server


@pytest.fixture
def etc(short_path, dns):
    return Etc(short_path / "etc", dns.address)


@pytest.fixture
def start(etc, stack):
    def begin(body, **sections):
        gateway = etc.relay(body, **{"admin": {}, **sections})
        stack.callback(gateway.close)
        stack.callback(lambda: print(gateway.log()))
        return gateway.start()

    return begin


@pytest.fixture
def named(make_backend):
    """`named("a")`: a backend that answers with its name."""
    return lambda name: make_backend(name_itself(name))


@pytest.fixture
def body(pki):
    """A configuration with these addresses in its pool."""

    def make(*addresses, **more):
        pool = pool_table(pki, addresses, **{"resolve_s": 0.3, "retry_s": 60, **more})
        return listener_table(route_table(pki)) + pool

    return make


def records(*backends, priority=1, weight=1):
    return [f"{priority} {weight} {each.port} a.test" for each in backends]


def open_session(pki, gateway):
    """A session that has had one answer."""
    raw = socket.create_connection(("127.0.0.1", gateway.port()), 20)
    tls = context_of(pki).wrap_socket(raw, server_hostname="app.example.com")
    tls.sendall(b"?\n")
    assert tls.recv(99)
    return tls


def ask(pki, gateway, times=1):
    """Which backends answered."""
    return {talk(pki, gateway.port(), b"?\n").decode().strip() for _ in range(times)}


def is_shown_at(gateway, *ports):
    """Whether the relay has taken these endpoints of the service."""
    [name] = status(gateway)["names"]
    shown = sorted(each["address"] for each in name["endpoints"])
    return shown == sorted(f"127.0.0.1:{port}" for port in ports)


def wait_for_endpoints(gateway, backends):
    ports = [each.port for each in backends]
    wait_until(f"it is at {ports}", lambda: is_shown_at(gateway, *ports))


def status(gateway):
    return ask_supervisor(gateway.state_dir, "status", 10)


def test_a_service_is_used_by_priority_and_weight(pki, dns, start, named, body):
    """The endpoint of the next priority is used when those of the first are gone."""
    a, b, standby = named("a"), named("b"), named("standby")
    dns.set(NAME, "SRV", *records(a, b), *records(standby, priority=7))
    gateway = start(body(SERVICE))
    gateway.wait_for_log("service _https._tcp.app.test is at 127.0.0.1:")
    assert ask(pki, gateway, 20) == {"a", "b"}
    a.close()
    b.close()
    assert ask(pki, gateway, 8) == {"standby"}


def test_operators_see_the_endpoints_of_a_service(pki, dns, start, named, body, fetch, scrape):
    a, b = named("a"), named("b")
    dns.set(NAME, "SRV", *records(a, weight=5), *records(b, priority=20))
    gateway = start(body(SERVICE))
    wait_until("both are shown", lambda: is_shown_at(gateway, a.port, b.port))
    said = gateway.command("status").stdout
    assert f"service {NAME} is at 127.0.0.1:{a.port} (priority 1, weight 5), 127.0.0.1:" in said
    [backend] = json.loads(fetch(f"{gateway.admin_url}/api/pools")[1])["pools"][0]["backends"]
    assert backend["endpoints"][1] == {
        "address": f"127.0.0.1:{b.port}",
        "priority": 20,
        "weight": 1,
    }
    page = fetch(f"{gateway.admin_url}/balancer-manager")[1]
    assert f"127.0.0.1:{a.port}" in page
    samples = scrape(gateway)
    assert samples[f"relay_name_addresses{{name={SERVICE}}}"] == 2
    assert samples["relay_name_lookups_total{result=ok}"] >= 1
    labels = f"backend=w1,endpoint=127.0.0.1:{b.port},pool=main,priority=20,weight=1"
    assert samples[f"relay_backend_endpoint_info{{{labels}}}"] == 1


def test_a_service_that_is_not_there_is_drained_until_it_is(pki, dns, start, named, body, scrape):
    """A running session goes on; new clients are refused with the reason."""
    a = named("a")
    dns.set(NAME, "SRV", *records(a))
    gateway = start(body(SERVICE, health={"interval_s": 0.2, "fall": 1}, on_down="close"))
    wait_until("it is shown", lambda: is_shown_at(gateway, a.port))
    with open_session(pki, gateway) as running:
        dns.set(NAME, "SRV", "0 0 0 .")
        gateway.wait_for_log("has no address any more: the target of its SRV record is")
        gateway.wait_for_log(f"backend main/w1 is disabled: {SERVICE} has no address any more")
        with pytest.raises((OSError, ssl.SSLError)):
            ask(pki, gateway)
        gateway.wait_for_access(reason="backend_unresolved")
        samples = scrape(gateway)
        assert samples[f"relay_name_addresses{{name={SERVICE}}}"] == 0
        assert samples["relay_backend_up{backend=w1,pool=main}"] == 0
        assert "has no address: its backends get no" in gateway.command("status").stdout
        gateway.change_a_setting()
        assert gateway.command("reload").returncode == 0
        dns.set(NAME, "SRV", *records(a))
        gateway.wait_for_log("backend main/w1 is no longer disabled")
        assert ask(pki, gateway) == {"a"}
        running.sendall(b"?\n")
        assert running.recv(99) == b"a\n"


def test_a_resolver_that_fails_keeps_the_last_answer(pki, dns, start, named, body, scrape):
    a = named("a")
    dns.set(NAME, "SRV", *records(a))
    gateway = start(body(SERVICE))
    wait_until("it is shown", lambda: is_shown_at(gateway, a.port))
    dns.fail(NAME)
    gateway.wait_for_log("is kept; see whether the resolver of this machine answers")
    failing = f"relay_name_lookup_failing{{name={SERVICE}}}"
    wait_until("the metric says so", lambda: scrape(gateway)[failing] == 1)
    dns.ignore(NAME)
    failed = "relay_name_lookups_total{result=failed}"
    before = scrape(gateway)[failed]
    wait_until("it has failed again", lambda: scrape(gateway)[failed] > before)
    assert ask(pki, gateway) == {"a"}
    assert gateway.log().count("cannot be looked up") == 1
    dns.answer_again(NAME)
    gateway.wait_for_log("the name can be looked up again")
    wait_until("the metric says so", lambda: scrape(gateway)[failing] == 0)


@pytest.mark.parametrize("form", ["service", "host"])
def test_a_name_that_does_not_resolve_yet_is_waited_for(pki, dns, start, named, body, form):
    """At a start and at a reload, whatever the DNS server says of it."""
    a = named("a")
    address = "srv:_late._tcp.app.test" if form == "service" else f"late.test:{a.port}"
    gateway = start(body(address))
    gateway.wait_for_log("backend main/w1 is disabled: ")
    gateway.change_a_setting()
    assert gateway.command("reload").returncode == 0
    assert "does not resolve" in gateway.command("check").stdout
    with pytest.raises((OSError, ssl.SSLError)):
        ask(pki, gateway)
    dns.set("_late._tcp.app.test", "SRV", *records(a))
    dns.set("late.test", "A", "127.0.0.1")
    gateway.wait_for_log("backend main/w1 is no longer disabled")
    assert ask(pki, gateway) == {"a"}
    assert gateway.log().count("backend main/w1 is disabled") == 1


def test_all_instances_are_replaced_and_no_client_notices(pki, dns, start, named, body):
    """Rolling: each new one is named before the old one is not. One ends when idle."""
    old = [named(f"old{number}") for number in range(3)]
    dns.set(NAME, "SRV", *records(*old))
    gateway = start(body(SERVICE, health={"interval_s": 0.2}))
    wait_for_endpoints(gateway, old)
    failures, stop, served, rounds = [], threading.Event(), set(), [0] * 4

    def load(number):
        while not stop.is_set():
            try:
                served.update(ask(pki, gateway))
            except (OSError, ssl.SSLError, ValueError) as error:
                failures.append(error)
            rounds[number] += 1

    def each_has_begun_anew():
        """Every session of before has ended, and another one after it."""
        wanted = [each + 2 for each in rounds]
        wait_until("each client has", lambda: all(map(int.__ge__, rounds, wanted)))

    clients = [threading.Thread(target=load, args=(number,)) for number in range(4)]
    for each in clients:
        each.start()
    present = list(old)
    for number, leaving in enumerate(old):
        present.append(named(f"new{number}"))
        dns.set(NAME, "SRV", *records(*present))
        wait_for_endpoints(gateway, present)
        present.remove(leaving)
        dns.set(NAME, "SRV", *records(*present))
        wait_for_endpoints(gateway, present)
        each_has_begun_anew()
        leaving.close()
    served.clear()
    wait_until("the new ones serve", lambda: len(served) == 3)
    stop.set()
    for each in clients:
        each.join(30)
    assert failures == []
    assert served == {"new0", "new1", "new2"}
