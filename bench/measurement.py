"""One measurement of one gateway: what it is, and how it is made.

Never: reports a measurement with errors as valid.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench import usage
from bench.beside import Beside, run_beside
from bench.children import Backend, Load
from bench.job import Job
from bench.pki import BACKEND_NAME, GATEWAY_NAME, Pki
from bench.running import Running
from bench.workloads import Workload

NOISE = 0.05
# Closing a connection takes a little longer than its last byte.
_SETTLE_S = 0.05


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure.

    `syscalls` adds a short traced measurement to each. `retakes` is how often a noisy
    measurement is repeated.
    """

    directory: Path
    pki: Pki
    rounds: int
    seconds: float
    quick: bool
    same_cipher: bool
    syscalls: bool
    load_cpus: frozenset[int] | None
    gateway_cpus: frozenset[int] | None
    processes: int = 1
    retakes: int = 0


@dataclass(frozen=True, slots=True)
class Measurement:
    """One gateway, workload and round. `cost` is None when it is invalid."""

    workload: str
    gateway: str
    round: int
    cost: float | None
    errors: dict[str, int] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def valid(self) -> bool:
        """Whether it may be compared."""
        return self.cost is not None and not self.errors

    @property
    def noisy(self) -> bool:
        """Whether other programs used more than NOISE of the gateway's CPUs."""
        return bool(self.details.get("others", 0.0) > NOISE)


@dataclass(frozen=True, slots=True)
class Target:
    """What the load connects to: a gateway, or the backend (`running` is None)."""

    name: str
    running: Running | None
    backend: Backend

    @property
    def port(self) -> int:
        """The port to connect to."""
        return self.running.port if self.running else self.backend.port

    def pids(self) -> list[int]:
        """The processes to measure."""
        return self.running.pids() if self.running else []


@dataclass(frozen=True, slots=True)
class _Run:
    """The results of the loads, and what the gateway used meanwhile.

    `busy_s` is the time that the gateway's CPUs were busy, `machine_s` that of all,
    `backend` what its counters increased by.
    """

    results: list[dict[str, Any]]
    used: usage.Used
    busy_s: float
    machine_s: float
    backend: dict[str, int]
    held_bytes: int

    @property
    def units(self) -> int:
        """How many units all loads completed."""
        return sum(result["units"] for result in self.results)

    @property
    def wall_s(self) -> float:
        """The duration of the longest load."""
        longest: float = max(result["wall_s"] for result in self.results)
        return longest


def measure(settings: Settings, target: Target, workload: Workload, turn: int) -> Measurement:
    """Measure once. Raises BenchError."""
    with contextlib.ExitStack() as stack:
        loads = [
            stack.enter_context(Load(cpus=settings.load_cpus)) for _ in range(settings.processes)
        ]
        for load in loads:
            load.prepare(_job(settings, target, workload))
        flood = _start_flood(settings, target, workload, stack) if workload.flood_rate else None
        run = _run_loads(settings, target, workload, loads)
        errors = _sum_errors(
            [*run.results, *([flood.result(settings.seconds + 60)] if flood else [])]
        )
        for load in loads:
            load.finish(holding=workload.mode == "idle")
        # A load that stalled before its end has measured nothing.
        if not run.units or not run.wall_s:
            return Measurement(
                workload.name, target.name, turn, None, errors or {"no unit was completed": 1}
            )
        facts = _facts_of(settings, run)
        if settings.syscalls and target.running and workload.cost == "cpu":
            facts["syscalls_per_unit"] = _trace(settings, target, workload, loads[0])
    cost = {
        "cpu": run.used.cpu_s / run.units * workload.per_unit,
        "memory": run.held_bytes / run.units * workload.per_unit,
        "latency": facts.get("p99_us", 0.0),
    }[workload.cost]
    errors |= _doubts(workload, run.backend, facts)
    return Measurement(workload.name, target.name, turn, cost, errors, facts)


def _start_flood(
    settings: Settings, target: Target, workload: Workload, stack: contextlib.ExitStack
) -> Load:
    flood = stack.enter_context(Load(cpus=settings.load_cpus))
    flood.prepare(
        _job(
            settings,
            target,
            workload,
            mode="flood",
            rate=workload.flood_rate,
            connections=64,
            nice=5,
        )
    )
    flood.go()
    return flood


def _run_loads(
    settings: Settings, target: Target, workload: Workload, loads: Sequence[Load]
) -> _Run:
    """Run the measured part; every counter is read before and after it."""
    memory, cpus = workload.cost == "memory", settings.gateway_cpus or ()
    time.sleep(_SETTLE_S)
    bytes_before = usage.private_bytes(target.pids()) if memory else 0
    counters_before = target.backend.counters()
    busy_before_s = usage.busy_seconds(cpus)
    machine_before_s = usage.busy_seconds(range(usage.CPUS))
    before = usage.read_usage(target.pids())
    for load in loads:
        load.go()
    results = [load.result(settings.seconds + 60) for load in loads]
    time.sleep(_SETTLE_S)
    used = usage.difference(before, usage.read_usage(target.pids()))
    machine_s = usage.busy_seconds(range(usage.CPUS)) - machine_before_s
    busy_s = usage.busy_seconds(cpus) - busy_before_s
    backend = {
        name: count - counters_before[name] for name, count in target.backend.counters().items()
    }
    held_bytes = usage.private_bytes(target.pids()) - bytes_before if memory else 0
    return _Run(results, used, busy_s, machine_s, backend, held_bytes)


def _sum_errors(results: Iterable[dict[str, Any]]) -> dict[str, int]:
    errors: dict[str, int] = {}
    for result in results:
        for text, count in result["errors"].items():
            errors[text] = errors.get(text, 0) + count
    return errors


def _facts_of(settings: Settings, run: _Run) -> dict[str, Any]:
    units, wall_s, cpu_s = run.units, run.wall_s, run.used.cpu_s
    # The share of the gateway's CPUs that other programs used. They also evict its
    # caches, so a noisy measurement is too high.
    others = max(0.0, run.busy_s - cpu_s) / wall_s / max(1, len(settings.gateway_cpus or ()))
    facts = {
        "units": units,
        "wall_s": wall_s,
        "per_second": units / wall_s,
        "cpu_s": cpu_s,
        "busy": cpu_s / wall_s,
        "others": others,
        "machine_s": run.machine_s,
        "switches_per_unit": run.used.switches / units,
        "inbound_resumed": sum(result["resumed"] for result in run.results),
        "negotiated": run.results[0]["negotiated"],
        "private_bytes": run.held_bytes,
        "backend": run.backend,
    }
    latencies = sorted(value for result in run.results for value in result["latencies_us"])
    if latencies:
        facts |= {
            f"p{label}_us": latencies[min(len(latencies) - 1, int(len(latencies) * part))]
            for label, part in (("50", 0.5), ("99", 0.99), ("99.9", 0.999))
        }
    return facts


def _job(settings: Settings, target: Target, workload: Workload, **changes: Any) -> Job:
    connections = (workload.quick_connections if settings.quick else None) or workload.connections
    values: dict[str, Any] = {
        "mode": workload.mode,
        "address": "127.0.0.1",
        "port": target.port,
        "pki": str(settings.pki.directory),
        "connections": max(1, connections // settings.processes),
        "seconds": settings.seconds,
        "same_cipher": settings.same_cipher,
        "warm_units": workload.warm_units,
        "exact": target.running.gateway.exact if target.running else True,
        "server_name": GATEWAY_NAME if target.running else BACKEND_NAME,
    }
    return Job(**(values | workload.options | changes))


def measure_beside(
    settings: Settings, target: Target, workload: Workload, beside: Beside, turn: int
) -> Measurement:
    """Measure regular clients beside strangers once. Raises BenchError."""
    seconds = settings.seconds if settings.quick else max(settings.seconds, workload.least_s)
    result = run_beside(
        beside, partial(_job, settings, target, workload), target.pids, settings.load_cpus, seconds
    )
    facts = {
        "units": len(result.beside.connects),
        "wall_s": result.beside.wall_s,
        "cpu_s": result.beside.cpu_s,
        "busy": result.beside.cpu_s / result.beside.wall_s,
        "negotiated": result.beside.negotiated,
        **result.quiet.facts("quiet"),
        **result.beside.facts("beside"),
        "strangers": result.strangers,
    }
    errors = {**result.quiet.errors, **result.beside.errors}
    return Measurement(workload.name, target.name, turn, result.cost, errors, facts)


def _doubts(workload: Workload, backend: dict[str, int], facts: dict[str, Any]) -> dict[str, int]:
    """Errors that make a measurement invalid although no connection failed."""
    found = {}
    if backend["errors"]:
        found["the backend saw a broken connection or message"] = backend["errors"]
    if workload.options.get("resume") and facts["inbound_resumed"] < facts["units"] * 0.95:
        found["the gateway did not resume a session it was offered"] = (
            facts["units"] - facts["inbound_resumed"]
        )
    return found


def _trace(settings: Settings, target: Target, workload: Workload, load: Load) -> dict[str, float]:
    """System calls per unit, in a separate run: tracing slows a gateway tenfold."""
    load.prepare(_job(settings, target, workload, seconds=min(1.0, settings.seconds)))
    with usage.counted_syscalls(target.pids(), settings.directory) as calls:
        load.go()
        result = load.result(60)
    load.finish()
    return {
        name: count / max(1, result["units"])
        for name, count in sorted(calls.items(), key=lambda item: -item[1])
    }


def as_rows(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Measurements as JSON values."""
    return [
        asdict(measurement) | {"valid": measurement.valid, "noisy": measurement.noisy}
        for measurement in measurements
    ]
