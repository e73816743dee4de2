"""`relay status` on one screen: what needs attention comes first, and it all fits."""

import contextlib
import json
import os
import pty
import re
import ssl
import subprocess
import sys
import termios
from array import array

import pytest

from relay.cli.backend import why_unused
from relay.cli.status_lines import header, problem_lines, traffic_lines, workers_line
from relay.shared.column_sums import column_sums
from relay.supervisor import recent_counts
from relay.supervisor.recent_counts import RecentCounts
from tests.support.client import talk
from tests.support.gateway import ROOT
from tests.support.scoreboard import Board
from tests.support.tables import listener_table, pool_table, route_table

ROWS, COLUMNS = 24, 80
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def screen_of(gateway, *options, size=(ROWS, COLUMNS)):
    """What a person sees on a terminal, without colours."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, size)
    environment = {**ENVIRONMENT, "TERM": "xterm"}
    environment.pop("COLUMNS", None)
    environment.pop("LINES", None)
    with os.fdopen(ours, "rb", buffering=0) as screen:
        command = [sys.executable, "-m", "relay", "status", "--config", str(gateway.config)]
        status = subprocess.Popen([*command, *options], env=environment, stdout=theirs)
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: that was all
            while more := screen.read(65536):
                shown += more
    assert status.wait(60) == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).replace("\r\n", "\n")


@pytest.fixture
def ailing(relay, pki, echo):
    """A relay with traffic, refusals, a dead backend, and a reload that was refused."""
    listeners = "".join(
        listener_table(route_table(pki), name=f"l{number}", listen=["127.0.0.1:0"])
        for number in range(30)
    )
    body = listeners + pool_table(pki, [echo.address, "127.0.0.1:1"], retry_s=3600)
    gateway = relay(body, relay={"workers": 2})
    for _ in range(4):
        talk(pki, gateway.port("l0"))
    for _ in range(3):
        with pytest.raises(OSError, match=r"(?i)alert"):
            talk(
                pki,
                gateway.port("l0"),
                context=ssl.create_default_context(cafile=str(pki.ca)),
            )
    gateway.wait_for_access(7)
    gateway.write(body + "\n[mistake]\n")
    assert gateway.command("reload").returncode == 78
    gateway.write(body)
    return gateway


def test_one_screen_has_what_needs_attention_first(ailing):
    shown = screen_of(ailing)
    lines = shown.splitlines()
    assert sum(-(-len(line) // COLUMNS) for line in lines) < ROWS
    assert f"pid {ailing.pid}: serving, generation 1" in lines[0]
    assert re.match(
        r"pool main: 1 of 2 backends used, not w2 \(a connection to it failed", lines[1]
    )
    assert lines[2].startswith("the last reload was refused: ")
    assert "mistake" in lines[2]
    (last,) = (line for line in lines if re.match(r"last \d+ s: ", line))
    # A client of another test may have come to one of the thirty ports.
    assert re.search(r": \d+ clients, 4 admitted \(\d+ % resumed\), ", last)
    assert re.search(r" refused \(no_certificate 3\b", last)
    assert "  connections to backends: 1 failed (backend_refused 1)" in lines
    assert "workers: 2 of 2 serve, 0 connections" in lines
    assert re.search(r"^… and \d+ more lines: relay status --all$", lines[-1])
    narrow = screen_of(ailing, size=(10, 40)).splitlines()
    assert sum(-(-len(line) // 40) for line in narrow) < 10
    assert any(line.startswith("pool main: 1 of 2 backends used") for line in narrow)
    everything = screen_of(ailing, "--all")
    assert "listener l29: " in everything
    found = json.loads(ailing.command("status", "--json").stdout)
    assert found["last_minute"]["refused"]["no_certificate"] == 3
    assert found["short_pools"][0]["down"][0]["backend"] == "w2"
    assert found["last_reload"]["why"] in lines[2]
    backends = ailing.command("backend", "list").stdout
    assert "\nmain/w2 is not used: a connection to it failed; the relay's log has" in backends
    assert backends.count("is not used") == 1


def reply_of(**changes):
    """A reply of a relay that is well."""
    return {
        "version": "9.8.7",
        "supervisor": {"pid": 7},
        "state": "serving",
        "generation": 3,
        "started_at": 1_000_000.0,
        "last_reload": {"ok": True, "at": 1_000_000.0},
        "slots": [{"slot": 0, "parked": False, "early_deaths": 0, "next_start_in_s": 0.0}],
        "workers": [],
        **changes,
    }


def test_the_list_of_backends_says_why_one_is_not_used():
    health = {"state": "down", "reason": "backend_refused: no", "remedy": "start it"}
    backend = {"disabled": "", "up": False, "health": health}
    assert why_unused(backend) == "backend_refused: no; start it"
    assert why_unused({**backend, "disabled": "its CA has expired"}) == "its CA has expired"
    assert not why_unused({**backend, "up": True})


def test_a_relay_that_is_well_has_no_problem_lines():
    assert not list(problem_lines(reply_of(), 1_000_000.0))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"not_ready": "the relay is starting"}, "not ready: the relay is starting"),
        (
            {
                "certificates": [
                    {"file": "s.pem", "subject": "CN=s", "not_after": 1_000_000.0 + 9 * 86_400}
                ]
            },
            "s.pem (CN=s) ends on 1970-01-21 13:46 UTC, in 9 days",
        ),
        (
            {
                "crls": [
                    {
                        "issuer": "CN=ca",
                        "source": "ca.crl",
                        "number": 4,
                        "this_update": 1_000_000.0 - 6 * 86_400,
                        "next_update": 1_000_000.0 + 3_600,
                        "entries": 0,
                        "grace_s": 0.0,
                    }
                ]
            },
            'CRL 4 of "CN=ca" from ca.crl ends on 1970-01-12 14:46 UTC, and no newer one is here',
        ),
        (
            {"slots": [{"slot": 1, "parked": True, "early_deaths": 5, "next_start_in_s": 30.0}]},
            "slot 1 is parked after 5 early deaths of its workers; next try in 30 s",
        ),
        (
            {"connections_allowed": 9, "workers": [{"connections": 9}, {"connections": 8}]},
            "workers with all 9 connections that they can have: 1; new clients wait",
        ),
    ],
    ids=["not ready", "certificate", "list", "slot", "full worker"],
)
def test_each_problem_has_its_line(changes, line):
    assert list(problem_lines(reply_of(**changes), 1_000_000.0)) == [line]


def test_workers_that_drain_are_summed_up():
    worker = {"slot": 0, "pid": 1, "generation": 2, "age_s": 9.0, "heartbeat_age_s": 0.1}
    workers = [
        {**worker, "phase": "serving", "connections": 5, "drain_left_s": None},
        {**worker, "phase": "draining", "connections": 3, "drain_left_s": 25.0},
    ]
    assert workers_line(reply_of(workers=workers)) == (
        "workers: 1 of 1 serve, 8 connections; 1 drain for 25 s at most (3 connections)"
    )
    assert header(reply_of(drains_in_s=4.5)).startswith("relay 9.8.7, pid 7: draining in 4.5 s, ")


def test_the_last_minute_forgets_what_is_older():
    board = Board()
    recent = RecentCounts(board.scoreboards)
    route, row = ("https", "app.example.com"), board.scoreboard.lease(0)

    def refuse(times):
        board.count(row, "relay_connections_total", *route, by=times)
        board.count(row, "relay_handshakes_total", *route, "inbound", "expired", by=times)
        board.count(row, "relay_sessions_closed_total", *route, "expired", by=times)

    refuse(5)
    for now in range(0, 200, int(recent_counts.EVERY_S)):
        recent.step(float(now))
        if now == 100:
            refuse(7)
            board.count(row, "relay_sessions_closed_total", *route, "no_backend", by=2)
            assert recent.facts(100.5)["refused"] == {"expired": 7}
            assert recent.facts(100.5)["ended"] == {"no_backend": 2}
            board.scoreboards.fold(board.scoreboard, row)  # the worker ends
            assert recent.facts(101.0)["refused"] == {"expired": 7}
            assert recent.facts(101.0)["seconds"] == pytest.approx(61)
            board.scoreboards.count("relay_worker_restarts_total")
    found = recent.facts(200.0)
    assert (found["refused"], found["ended"], found["clients"]) == ({}, {}, 0)
    assert found["restarts"] == 1
    assert list(traffic_lines(found)) == ["last 60 s: 0 clients, 0 refused"]


def test_a_cell_that_no_worker_should_write_raises_nothing():
    rows = array("q", [1, -1, 3, 2, 5, (1 << 63) - 1, 1, 1, 1 << 62])
    sums = column_sums([rows.tobytes(), bytes(24)], 3)
    assert sums[0] == 4
    assert len(sums) == 3
    assert column_sums([], 2) == [0, 0]
