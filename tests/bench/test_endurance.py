"""The proof that no client is lost, in a short version with few clients."""

from __future__ import annotations

import click
import pytest

from bench.endurance import Plan, Run, parse_events
from bench.endurance_counts import Counts, differences
from bench.endurance_excuses import Excuses, Kill, Logged, Outage
from bench.endurance_report import growth, table
from bench.gateways import GATEWAYS
from bench.proof import PARTS, scaled

GATEWAYS_HERE = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            GATEWAYS[name].program() is None, reason=f"{name} is not installed"
        ),
    )
    for name in ("haproxy", "nginx")
]


def test_reloads_and_renewals_lose_no_client(tmp_path):
    plan = Plan("relay", {"reload": 3, "renew": 2}, rate=20, transfers=5, seconds=6)
    report = Run(plan, tmp_path).run()
    assert report["lost"] == 0, table(report)
    assert report["problems"] == []
    assert report["done"] == {"reload": 3, "renew": 2}
    assert report["short"]["finished"] == report["short"]["started"] > 0
    assert report["long"]["finished"] == 5
    assert report["long"]["bytes_compared"] > 0
    assert report["growth"].keys() >= {"supervisor_files", "workers_files", "workers_kib"}


def test_a_kill_ends_only_the_clients_of_the_killed_worker(tmp_path):
    plan = Plan("relay", {"kill": 2, "flap": 1}, rate=20, transfers=10, seconds=6, strangers=20)
    report = Run(plan, tmp_path).run()
    assert report["lost"] == 0, table(report)
    assert report["done"] == {"kill": 2, "flap": 1}
    assert report["long"]["excused"] == report["long"]["failed"] > 0
    assert report["problems"] == []


@pytest.mark.parametrize("name", GATEWAYS_HERE)
def test_other_gateways_are_reloaded_beside(name, tmp_path):
    tmp_path.chmod(0o755)
    report = Run(Plan(name, {"reload": 2}, rate=10, transfers=2, seconds=4), tmp_path).run()
    assert report["done"] == {"reload": 2}
    assert report["short"]["finished"] > 0


KILLS = Excuses(kills=[Kill(100.0, frozenset((1,)))])
OUTAGES = Excuses(outages=[Outage(100.0, 101.0)])
EXCUSED = [
    (KILLS, 100.5, 1, []),
    (OUTAGES, 100.6, 1, [Logged(90.0, 100.5, "outbound_reset")]),
]
LOST = [
    (KILLS, 100.5, 2, []),  # a client of another worker
    (KILLS, 130.0, 1, []),  # long after the kill
    (KILLS, 100.5, 0, []),  # refused before it had a port
    (OUTAGES, 100.6, 1, []),  # nothing says why
    (OUTAGES, 100.6, 1, [Logged(90.0, 100.5, "internal_error")]),
    (OUTAGES, 103.0, 1, [Logged(102.0, 102.5, "backend_gone")]),  # it came after it
]


@pytest.mark.parametrize(("excuses", "at", "port", "sessions"), EXCUSED)
def test_what_the_run_itself_ended_is_excused(excuses, at, port, sessions):
    assert excuses.cover(at, port, sessions)


@pytest.mark.parametrize(("excuses", "at", "port", "sessions"), LOST)
def test_all_other_clients_that_failed_are_lost(excuses, at, port, sessions):
    assert not excuses.cover(at, port, sessions)


def test_counts_may_differ_only_by_clients_of_killed_workers():
    clients, same = Counts(10, 100_000, 100_000), {"metrics": Counts(10, 100_000, 100_000)}
    assert differences(clients, same, 0, 0) == []
    other = {"metrics": Counts(9, 96_000, 100_000)}
    assert len(differences(clients, other, 0, 0)) == 2
    assert differences(clients, other, 1, 0) == []


def test_the_parts_of_the_proof_have_a_size():
    trial = scaled(PARTS["soak"], 0.1, 100)
    assert trial.events == {"reload": 6, "renew": 4, "kill": 2, "flap": 2, "upgrade": 1}
    assert (trial.rate, trial.transfers, trial.seconds) == (50, 40, 120)
    minutes = sum(plan.seconds for plan in PARTS.values()) / 60
    assert minutes <= 36


def test_events_are_read():
    assert parse_events("reload=100,kill=50,renew=0") == {"reload": 100, "kill": 50}
    for wrong in ("reload", "reload=x", "explode=1"):
        with pytest.raises(click.BadParameter):
            parse_events(wrong)


def test_growth_compares_early_samples_with_late_ones():
    samples = [{"at_s": at, "workers_files": 10 + (at == 0) * 90} for at in range(100)]
    assert growth(samples) == {"workers_files": [10, 10, 10]}
