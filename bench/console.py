"""The terminal: a progress bar while measuring, then the tables.

Never: writes a file.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench import report
from bench.gateways import GATEWAYS, Gateway
from bench.measurement import NOISE, Measurement, Settings
from bench.runner import DIRECT, run
from bench.workloads import WORKLOADS, Workload


def run_with_progress(
    settings: Settings, gateways: list[Gateway], workloads: list[Workload], console: Console
) -> list[Measurement]:
    """Make every measurement, with a progress bar. Raises BenchError."""
    measurements: list[Measurement] = []
    total = sum(
        (
            sum(each.name in (workload.only or (each.name,)) for each in gateways)
            + (workload.cost == "latency")
        )
        * settings.rounds
        for workload in workloads
    )
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task("", total=total)
        for each in run(
            settings, gateways, workloads, lambda what: progress.update(task, description=what)
        ):
            measurements.append(each)
            progress.advance(task)
    return measurements


def print_summary(
    console: Console,
    environment: dict[str, Any],
    cells: dict[str, dict[str, report.Cell]],
    reference: str,
) -> None:
    """Print the machine, the gateways and the table."""
    console.print(
        f"{environment['cpus']} CPUs {environment['cpu']}, Linux {environment['kernel']}, "
        f"{environment['congestion_control']}, "
        f"revision {environment['revision'] or 'unknown'}"
    )
    console.print(
        ", ".join(
            f"{name} {about['version']} ({about['tls'] or 'TLS library unknown'})"
            for name, about in environment["gateways"].items()
        )
    )
    console.print(report.build_table(cells, [DIRECT, *GATEWAYS], reference))
    for workload in cells:
        console.print(f"[dim]{workload}: {WORKLOADS[workload].what}[/dim]")


def print_findings(console: Console, measurements: list[Measurement]) -> None:
    """Print the second table, and which measurements are noisy or invalid."""
    beside = report.build_beside_table(measurements)
    if beside is not None:
        console.print(beside)
    noisy = sum(each.noisy for each in measurements)
    if noisy:
        console.print(
            f"[yellow]~[/yellow] in {noisy} of {len(measurements)} measurements other programs "
            f"used more than {NOISE:.0%} of the gateway's CPU"
        )
    for line in report.list_errors(measurements):
        console.print(f"[red]invalid:[/red] {line}")
