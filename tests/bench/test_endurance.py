"""The proof that no client is lost, in a short version with few clients."""

from __future__ import annotations

import click
import pytest

from bench.endurance import Plan, Run, parse_events
from bench.endurance_report import growth, table
from bench.gateways import GATEWAYS

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


@pytest.mark.parametrize("name", GATEWAYS_HERE)
def test_other_gateways_are_reloaded_beside(name, tmp_path):
    tmp_path.chmod(0o755)
    report = Run(Plan(name, {"reload": 2}, rate=10, transfers=2, seconds=4), tmp_path).run()
    assert report["done"] == {"reload": 2}
    assert report["short"]["finished"] > 0


def test_events_are_read():
    assert parse_events("reload=100,kill=50,renew=0") == {"reload": 100, "kill": 50}
    for wrong in ("reload", "reload=x", "explode=1"):
        with pytest.raises(click.BadParameter):
            parse_events(wrong)


def test_growth_compares_early_samples_with_late_ones():
    samples = [{"at_s": at, "workers_files": 10 + (at == 0) * 90} for at in range(100)]
    assert growth(samples) == {"workers_files": [10, 10, 10]}
