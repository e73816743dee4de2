"""What a monitor does with results: cells for the workers, a line for the operator."""

from __future__ import annotations

import contextlib
import logging
import re
import resource
import ssl
import time

import pytest

from relay.checker.check import check_settings
from relay.checker.monitor import CheckerContext, Monitor
from relay.core.health import HealthStatus
from relay.shared.addresses import Located, cell_of, write_addresses, write_gone
from relay.shared.entities import (
    HEALTH,
    HEALTH_DOWN,
    HEALTH_UP,
    HEALTH_VERSION,
    RETURNED_AT_MS,
    entities_of,
)
from relay.shared.scoreboard import CHECKER_SLOT, SHARED_ROW, monotonic_ms
from tests.support.clockwork import Clockwork
from tests.support.gateway import wait_until
from tests.support.scoreboard import scoreboard_of

QUICK = {"interval_s": 0.05, "timeout_s": 2, "rise": 2, "fall": 3}


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO)
    return lambda: [
        record.getMessage() for record in caplog.records if record.name.startswith("relay")
    ]


@pytest.fixture
def watched(generation):
    """Monitor the backend at an address.

    The monitor, its clockwork, and two functions that read states and counters.
    """

    def begin(address, **health):
        made = generation([address], health={**QUICK, **health})
        scoreboard, clockwork = scoreboard_of(entities_of(made.config)), Clockwork()
        layout, shared, cells = (
            scoreboard.layout,
            scoreboard.row(SHARED_ROW),
            scoreboard.row(scoreboard.lease(CHECKER_SLOT)),
        )
        context = CheckerContext(
            clockwork.selector, clockwork.at, lambda: 0.5, lambda: None, layout, shared, cells
        )
        pool = made.config.pool["main"]
        monitor = Monitor(
            context,
            made.targets["main"][0],
            pool.health,
            check_settings(pool, pool.health, made.config, "main"),
        )

        def cell(name, *labels):
            return shared[layout.cell(name, *labels)]

        def count(result):
            return cells[layout.cell("relay_health_checks_total", "main", "w1", result)]

        clockworks.append(clockwork)
        return monitor, clockwork, cell, count

    clockworks = []
    yield begin
    for clockwork in clockworks:
        for key in list(clockwork.selector.get_map().values()):
            key.data.__self__._close()  # a check that is still running


def test_a_change_is_stored_with_version_and_return_time(make_backend, watched, said):
    backend = make_backend(
        version=ssl.TLSVersion.TLSv1_2
    )  # no check is in progress when the clockwork stops
    monitor, clockwork, cell, count = watched(backend.address)
    clockwork.run_until(lambda: monitor.state.status is HealthStatus.UP)
    assert (
        cell(HEALTH, "main", "w1"),
        cell(HEALTH_VERSION),
        cell(RETURNED_AT_MS, "main", "w1"),
    ) == (HEALTH_UP, 1, 0)
    wait_until("the backend has done its part", lambda: len(backend.peers) == backend.accepted)
    backend.close()
    clockwork.run_until(lambda: monitor.state.status is HealthStatus.DOWN)
    assert (
        cell(HEALTH, "main", "w1"),
        cell(HEALTH_VERSION),
        cell(RETURNED_AT_MS, "main", "w1"),
    ) == (HEALTH_DOWN, 2, 0)
    assert count("connect_failed") == 3
    before_ms = monotonic_ms()
    make_backend(port=backend.port)
    clockwork.run_until(lambda: monitor.state.status is HealthStatus.UP)
    assert (cell(HEALTH, "main", "w1"), cell(HEALTH_VERSION)) == (HEALTH_UP, 3)
    assert before_ms <= cell(RETURNED_AT_MS, "main", "w1") <= monotonic_ms()
    up, down, again = said()
    assert up.startswith("pool main: backend w1 is up: TLSv1.2 handshake in ")
    assert "is down: backend_refused at" in down
    assert re.search(r"\(3 checks in a row\); it was up for \d+ s; nothing listens", down)
    assert re.search(r"\(2 checks in a row\); it was down for \d+ s$", again)


@contextlib.contextmanager
def no_file_left():
    """This process can open no file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_check_without_a_free_descriptor_changes_nothing(make_backend, watched, said):
    """It is this machine's shortage: the backend stays UP, and one line is logged."""
    backend = make_backend()
    monitor, clockwork, cell, count = watched(backend.address)
    clockwork.run_until(lambda: monitor.state.status is HealthStatus.UP)
    checked = count("ok")
    with no_file_left():
        clockwork.run_until(lambda: len(said()) > 1)
        began = monotonic_ms()
        clockwork.run_until(lambda: monotonic_ms() > began + 250)
    assert monitor.state.status is HealthStatus.UP
    assert len(said()) == 2
    assert said()[1].startswith("pool main: backend w1 cannot be checked: no_resources at ")
    assert count("connect_failed") == 0
    assert cell(HEALTH, "main", "w1") == HEALTH_UP
    backend.close()  # it runs in this process, and had no free descriptor either
    make_backend(port=backend.port)
    clockwork.run_until(lambda: count("ok") > checked + 1)


def test_a_check_tries_a_few_addresses_and_the_next_one_goes_on(make_backend, watched):
    """Only the last of 12 answers. One check of all could take 12 times timeout_s."""
    backend = make_backend(version=ssl.TLSVersion.TLSv1_2)
    monitor, clockwork, _, count = watched(f"localhost:{backend.port}")
    dead = [Located(f"127.0.0.{number}") for number in range(2, 13)]
    context = monitor._context
    cell = cell_of(context.layout, "localhost")
    write_addresses(context.shared, cell, [*dead, Located("127.0.0.1")])
    clockwork.run_until(lambda: monitor.state.status is HealthStatus.UP)
    assert count("connect_failed") == 1
    wait_until("the backend has done its part", lambda: len(backend.peers) == backend.accepted)


def test_a_backend_that_lost_its_addresses_keeps_its_health(make_backend, watched):
    """Its sessions go on, so it must not go down: on_down would close them."""
    backend = make_backend(version=ssl.TLSVersion.TLSv1_2)
    monitor, clockwork, _, count = watched(f"localhost:{backend.port}", fall=1)
    context = monitor._context
    cell = cell_of(context.layout, "localhost")
    write_addresses(context.shared, cell, [Located("127.0.0.1")])
    clockwork.run_until(lambda: monitor.state.status is HealthStatus.UP)
    write_gone(context.shared, cell)
    at = time.monotonic() + 0.5
    clockwork.run_until(lambda: time.monotonic() > at)
    assert monitor.state.status is HealthStatus.UP
    assert count("connect_failed") == 0
    wait_until("the backend has done its part", lambda: len(backend.peers) == backend.accepted)
