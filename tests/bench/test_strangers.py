"""Strangers, and pools that do not answer: real clients are measured beside them."""

from __future__ import annotations

import dataclasses
import math

import psutil
import pytest

from bench import report
from bench.beside import Beside
from bench.children import Backend, Load
from bench.gateways import GATEWAYS, Place
from bench.hellos import make_hello
from bench.holes import Hole
from bench.job import Job
from bench.measurement import Settings
from bench.pki import GATEWAY_NAME, HOLE_NAME
from bench.runner import run
from bench.running import Running
from bench.strangers import Strangers, StrangersChild
from bench.workloads import WORKLOADS, choose
from relay.core.hello import Hello, parse_hello
from tests.support.worker import wait_until

WITH_HOLE = [
    pytest.param(
        GATEWAYS[name],
        id=name,
        marks=pytest.mark.skipif(
            GATEWAYS[name].program() is None, reason=f"{name} is not installed"
        ),
    )
    for name in ("relay", "nginx", "haproxy")
]


@pytest.fixture
def place(tmp_path, bench_pki):
    for each in (tmp_path, *tmp_path.parents):
        if "pytest" in str(each):
            each.chmod(0o755)
    return Place(tmp_path / "gateway", bench_pki.directory, 9)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("tls13", [True, False])
def test_a_made_hello_is_one(share, tls13):
    hello = parse_hello(make_hello(GATEWAY_NAME, share=share, tls13=tls13))
    assert isinstance(hello, Hello)
    assert hello.sni == GATEWAY_NAME


def open_connections(running):
    """How many clients the gateway has; other users may not ask for the owner."""
    return sum(
        each.status == psutil.CONN_ESTABLISHED and each.laddr.port == running.port
        for each in psutil.net_connections("tcp")
    )


@pytest.mark.parametrize(("hello", "answered"), [("silent", 0), ("retry", 20), ("whole", 20)])
def test_strangers_come_stay_and_are_counted(place, hello, answered):
    with Running(GATEWAYS["relay"], place) as running:
        job = Strangers("127.0.0.1", running.port, GATEWAY_NAME, hello, 1000.0, 2.0, most=20)
        with StrangersChild(job) as crowd:
            crowd.go()
            wait_until(lambda: open_connections(running) == 20, "20 connections")
            counts = crowd.hear(30)["counts"]
    assert counts == {"opened": 20} | ({"answered": answered} if answered else {})


@pytest.mark.parametrize("gateway", WITH_HOLE)
@pytest.mark.parametrize("kind", ["blackhole", "tarpit"])
def test_a_second_route_leads_to_a_pool_that_does_not_answer(gateway, place, kind):
    with Backend(place.pki) as backend, Hole(kind) as hole:
        here = dataclasses.replace(place, backend_port=backend.port, hole_port=hole.port)
        with Running(gateway, here) as running:
            ask(place, running, HOLE_NAME, 0)
            ask(place, running, GATEWAY_NAME, 3)
            assert backend.counters()["requests"] == 3


def ask(place, running, name, units):
    """A few connections to this name; with 0 units they never get an answer."""
    values = {"connections": 3, "warm_units": 0, "server_name": name, "address": "127.0.0.1"}
    mode, seconds = ("probe", 20.0) if units else ("lost", 0.2)
    job = Job(
        mode=mode,
        port=running.port,
        pki=str(place.pki),
        seconds=seconds,
        units=units,
        rate=50.0,
        **values,
    )
    with Load() as load:
        load.prepare(job)
        load.go()
        if units:
            result = load.result(30)
            assert (result["units"], result["errors"]) == (units, {})


@pytest.mark.parametrize(
    "name", ["strangers-hello", "strangers-stopped", "strangers-blackhole", "strangers-tarpit"]
)
def test_real_clients_are_measured_beside_strangers(short_path, bench_pki, name):
    short_path.chmod(0o755)
    settings = Settings(
        directory=short_path, pki=bench_pki, rounds=1, seconds=1.0, quick=True, same_cipher=True,
        syscalls=False, load_cpus=None, gateway_cpus=None,
    )  # fmt: skip
    (measured,) = run(settings, [GATEWAYS["relay"]], [WORKLOADS[name]], lambda _: None)
    assert measured.errors == {}
    details = measured.details
    assert 0 < details["beside_connect_p50_ms"] <= details["beside_connect_p99_ms"] < math.inf
    assert details["beside_connects"] > 10
    assert measured.cost == details["beside_connect_p99_ms"]
    table = report.build_beside_table([measured])
    assert table is not None
    assert table.row_count == 1


def test_the_strangers_are_a_group():
    assert all(each.beside != Beside(0) for each in choose("strangers"))
    assert len(choose("strangers")) == 5
