"""Runs the workloads: the gateways take turns, in rounds.

Never: reports a measurement with errors as valid.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench import measure
from bench.beside import Beside, run_beside
from bench.children import Backend, BenchError, Load
from bench.gateways import Gateway, Place, Running
from bench.holes import Hole
from bench.job import Job
from bench.pki import BACKEND_NAME, GATEWAY_NAME, Pki
from bench.workloads import Workload

# Closing a connection takes a little longer than its last byte.
_SETTLE_S = 0.05
DIRECT = "direct"
NOISE = 0.05


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
class _Turn:
    workload: Workload
    turn: int
    backend: Backend
    hole_port: int = 0


def run(
    settings: Settings,
    gateways: Sequence[Gateway],
    workloads: Sequence[Workload],
    progress: Callable[[str], None],
) -> Iterator[Measurement]:
    """Every measurement as it is made. The gateways' order rotates with the round."""
    with Backend(
        settings.pki.directory,
        processes=settings.processes,
        same_cipher=settings.same_cipher,
        cpus=settings.load_cpus,
    ) as backend:
        for workload in workloads:
            with contextlib.ExitStack() as stack:
                names = [
                    gateway.name
                    for gateway in gateways
                    if gateway.name in (workload.only or (gateway.name,))
                ]
                targets: dict[str, Target] = {}
                hole = (
                    stack.enter_context(Hole(workload.beside.hole))
                    if workload.beside and workload.beside.hole
                    else None
                )
                if workload.cost == "latency":
                    targets[DIRECT] = Target(DIRECT, None, backend)
                    names = [DIRECT, *names]
                for turn in range(settings.rounds):
                    for name in names[turn % len(names) :] + names[: turn % len(names)]:
                        progress(f"{workload.name} · round {turn + 1} · {name}")
                        gateway = next((each for each in gateways if each.name == name), None)
                        yield _attempt(
                            settings,
                            stack,
                            gateway,
                            targets,
                            _Turn(workload, turn, backend, hole.port if hole else 0),
                        )


def _attempt(
    settings: Settings,
    stack: contextlib.ExitStack,
    gateway: Gateway | None,
    targets: dict[str, Target],
    at: _Turn,
) -> Measurement:
    """Measure once; a failure is a result too.

    Memory is measured on a freshly started gateway.
    """
    workload, turn, backend = at.workload, at.turn, at.backend
    name = gateway.name if gateway else DIRECT
    place = Place(
        settings.directory / f"{name}-{workload.name}-{turn}",
        settings.pki.directory,
        backend.port,
        workload.workers,
        settings.gateway_cpus,
        at.hole_port,
    )
    try:
        if gateway is not None and workload.cost == "memory":
            with Running(gateway, place) as running:
                return _measure(settings, Target(name, running, backend), workload, turn)
        if gateway is not None and name not in targets:
            targets[name] = Target(name, stack.enter_context(Running(gateway, place)), backend)
        if workload.beside is not None:
            return _measure_beside(settings, targets[name], workload, workload.beside, turn)
        attempts = [_measure(settings, targets[name], workload, turn)]
        while len(attempts) <= settings.retakes and attempts[-1].noisy:
            attempts.append(_measure(settings, targets[name], workload, turn))
        return min(attempts, key=lambda each: each.details.get("others", 1.0))
    except BenchError as failure:
        if gateway is not None:
            targets.pop(name, None)
        return Measurement(workload.name, name, turn, None, {str(failure): 1})


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


def _measure(settings: Settings, target: Target, workload: Workload, turn: int) -> Measurement:
    with contextlib.ExitStack() as stack:
        loads = [
            stack.enter_context(Load(cpus=settings.load_cpus)) for _ in range(settings.processes)
        ]
        for load in loads:
            load.prepare(_job(settings, target, workload))
        flood = None
        if workload.flood_rate:
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
        time.sleep(_SETTLE_S)
        before_bytes = measure.private_bytes(target.pids()) if workload.cost == "memory" else 0
        seen = target.backend.counters()
        busy_s = measure.busy_seconds(settings.gateway_cpus or ())
        before = measure.read_usage(target.pids())
        for load in loads:
            load.go()
        results = [load.result(settings.seconds + 60) for load in loads]
        time.sleep(_SETTLE_S)
        used = measure.difference(before, measure.read_usage(target.pids()))
        busy_s = measure.busy_seconds(settings.gateway_cpus or ()) - busy_s
        details = {name: count - seen[name] for name, count in target.backend.counters().items()}
        held_bytes = (
            measure.private_bytes(target.pids()) - before_bytes if workload.cost == "memory" else 0
        )
        errors: dict[str, int] = {}
        for result in [*results, *([flood.result(settings.seconds + 60)] if flood else [])]:
            for text, count in result["errors"].items():
                errors[text] = errors.get(text, 0) + count
        for load in loads:
            load.finish(holding=workload.mode == "idle")
        units = sum(result["units"] for result in results)
        wall_s = max(result["wall_s"] for result in results)
        # A load that stalled before its end has measured nothing.
        if not units or not wall_s:
            return Measurement(
                workload.name, target.name, turn, None, errors or {"no unit was completed": 1}
            )
        latencies = sorted(value for result in results for value in result["latencies_us"])
        facts = {
            "units": units,
            "wall_s": wall_s,
            "per_second": units / wall_s,
            "cpu_s": used.cpu_s,
            "busy": used.cpu_s / wall_s,
            # The share of the gateway's CPUs that other programs used. They also evict
            # its caches, so a noisy measurement is too high.
            "others": max(0.0, busy_s - used.cpu_s)
            / wall_s
            / max(1, len(settings.gateway_cpus or ())),
            "switches_per_unit": used.switches / units,
            "inbound_resumed": sum(result["resumed"] for result in results),
            "negotiated": results[0]["negotiated"],
            "private_bytes": held_bytes,
            "backend": details,
        }
        if latencies:
            facts |= {
                f"p{label}_us": latencies[min(len(latencies) - 1, int(len(latencies) * part))]
                for label, part in (("50", 0.5), ("99", 0.99), ("99.9", 0.999))
            }
        if settings.syscalls and target.running and workload.cost == "cpu":
            facts["syscalls_per_unit"] = _trace(settings, target, workload, loads[0])
    cost = {
        "cpu": used.cpu_s / units * workload.per_unit,
        "memory": held_bytes / units * workload.per_unit,
        "latency": facts.get("p99_us", 0.0),
    }[workload.cost]
    errors |= _doubts(workload, details, facts)
    return Measurement(workload.name, target.name, turn, cost, errors, facts)


def _measure_beside(
    settings: Settings, target: Target, workload: Workload, who: Beside, turn: int
) -> Measurement:
    seconds = settings.seconds if settings.quick else max(settings.seconds, workload.least_s)
    result = run_beside(
        who, partial(_job, settings, target, workload), target.pids, settings.load_cpus, seconds
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
    with measure.counted_syscalls(target.pids(), settings.directory) as calls:
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
