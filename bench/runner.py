"""Runs the workloads: the gateways take turns, in rounds.

Never: lets one gateway's failure end the run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bench.children import Backend, BenchError
from bench.gateways import Gateway, Place
from bench.holes import Hole
from bench.measurement import Measurement, Settings, Target, measure, measure_beside
from bench.running import Running
from bench.workloads import Workload

DIRECT = "direct"


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
                behind = backend
                if workload.proxy:
                    behind = stack.enter_context(
                        Backend(
                            settings.pki.directory,
                            processes=settings.processes,
                            same_cipher=settings.same_cipher,
                            proxy=True,
                            cpus=settings.load_cpus,
                        )
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
                            _Turn(workload, turn, behind, hole.port if hole else 0),
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
        workload.proxy,
        workload.peers,
    )
    try:
        if gateway is not None and workload.cost == "memory":
            with Running(gateway, place) as running:
                return measure(settings, Target(name, running, backend), workload, turn)
        if gateway is not None and name not in targets:
            targets[name] = Target(name, stack.enter_context(Running(gateway, place)), backend)
        if workload.beside is not None:
            return measure_beside(settings, targets[name], workload, workload.beside, turn)
        attempts = [measure(settings, targets[name], workload, turn)]
        while len(attempts) <= settings.retakes and attempts[-1].noisy:
            attempts.append(measure(settings, targets[name], workload, turn))
        return min(attempts, key=lambda each: each.details.get("others", 1.0))
    except BenchError as failure:
        if gateway is not None:
            targets.pop(name, None)
        return Measurement(workload.name, name, turn, None, {str(failure): 1})
