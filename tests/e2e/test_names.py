"""Backends whose names appear, move and vanish in a real DNS server."""

from __future__ import annotations

import pytest

from tests.support.backend import name_itself
from tests.support.client import talk
from tests.support.dns_server import DnsServer, Etc, possible
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
        gateway = stack.enter_context(etc.relay(body, **sections))
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


def ask(pki, gateway, times=1):
    """Which backends answered."""
    return {talk(pki, gateway.port(), b"?\n").decode().strip() for _ in range(times)}


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
