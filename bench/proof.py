"""`python -m bench.proof`: every part of the proof that no client is lost, in one go.

Each part is a run of `bench.endurance` against a gateway of its own. HAProxy and nginx
are reloaded in the same way at the end, if they are installed. The report says what
they lose, and the exit status does not depend on it.

Never: goes on in silence after a part that failed; its exit status says so.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from bench import facts
from bench.children import BenchError
from bench.endurance import Run
from bench.endurance_plan import Plan
from bench.endurance_report import table
from bench.gateways import GATEWAYS
from bench.running import raise_file_limit

_RATE: Final = 500.0
_RATE_PER_CPU: Final = 75.0  # clients, relay and backend share the machine

_SOAK: Final = {"reload": 60, "renew": 40, "kill": 20, "flap": 20, "upgrade": 4}

# At full size. A transfer that a restart waits for has to end.
PARTS: Final = {
    "reloads": Plan("relay", {"reload": 100}, _RATE, 200, 150),
    "upgrades": Plan("relay", {"upgrade": 10}, _RATE, 200, 100),
    "restarts": Plan("relay", {"restart": 10}, _RATE, 200, 150, transfer_s=5),
    "kills": Plan("relay", {"kill": 50}, _RATE, 200, 110),
    "soak": Plan("relay", _SOAK, _RATE / 2, 200, 1200, strangers=60),
    "haproxy": Plan("haproxy", {"reload": 100}, _RATE, 200, 150),
    "nginx": Plan("nginx", {"reload": 100}, _RATE, 200, 150),
}


def scaled(plan: Plan, size: float, rate: float) -> Plan:
    """A part of the proof at another size, and at this many new clients a second."""
    return replace(
        plan,
        events={name: max(1, round(size * count)) for name, count in plan.events.items()},
        rate=plan.rate / _RATE * rate,
        transfers=max(1, round(min(1.0, 2 * size) * plan.transfers)),
        seconds=max(5.0, size * plan.seconds),
        processes=2,
    )


def _run(plan: Plan) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="proof-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        return Run(plan, directory).run()


def prove(parts: list[str], size: float, rate: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run the parts, one after another. A part that breaks off has an `error`."""
    for name in parts:
        plan = scaled(PARTS[name], size, rate)
        if GATEWAYS[plan.gateway].program() is None:
            yield name, {"skipped": f"{plan.gateway} is not installed"}
            continue
        try:
            yield name, _run(plan)
        except (BenchError, OSError) as error:
            yield name, {"error": f"{type(error).__name__}: {error}"}


def failed(name: str, report: dict[str, Any]) -> bool:
    """Whether the proof fails by this part."""
    if PARTS[name].gateway != "relay" or "skipped" in report:
        return False
    return "error" in report or bool(report["lost"] or report["problems"])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--size", type=click.FloatRange(0.01, 1), default=1.0, help="0.1: a tenth of it.")
@click.option("--rate", type=float, help="New clients a second. [default: 75 per CPU, at most 500]")
@click.option("--parts", default=",".join(PARTS), show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False))
def main(*, size: float, rate: float | None, parts: str, json_file: Path | None) -> None:
    """Prove that reloads, upgrades, restarts and kills lose no client: 36 minutes.

    Exit status 1: a client of the relay was lost or changed, or something was not done.
    """
    names = [name.strip() for name in parts.split(",") if name.strip()]
    if unknown := [name for name in names if name not in PARTS]:
        raise click.UsageError(f"no such part: {', '.join(unknown)}; parts: {', '.join(PARTS)}")
    raise_file_limit()
    cpus = len(os.sched_getaffinity(0))
    found: dict[str, Any] = {"environment": facts.describe_machine()}
    bad = []
    for name, report in prove(names, size, rate or min(_RATE, _RATE_PER_CPU * cpus)):
        found[name] = report
        told = report.get("error") or report.get("skipped") or table(report)
        print(f"{time.strftime('%H:%M:%S')} {name}: {told}", flush=True)
        if failed(name, report):
            bad.append(name)
        if json_file is not None:
            json_file.write_text(json.dumps(found, indent=1))
    print(f"failed: {', '.join(bad)}" if bad else "no client of the relay was lost")
    if bad:
        sys.exit(1)


if __name__ == "__main__":
    main()
