"""Measures regular clients beside strangers: their time to connect, and their latency.

Each measurement has two parts on the same gateway: a quiet one for comparison, and one
beside the strangers. The cost is the 99th percentile of connecting.

Never: counts a stranger's connection as a unit.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from bench import usage
from bench.children import Load
from bench.holes import HoleKind
from bench.job import Job
from bench.pki import GATEWAY_NAME, HOLE_NAME
from bench.strangers import Strangers, StrangersChild

_QUIET_S = 5.0
_LEAD_S = 3.0  # the strangers start this much earlier
_CONNECTS_PER_SECOND = 25.0
_REQUESTS_PER_SECOND = 500.0
_SESSIONS = 8
_EVERYONE = 10_000
_GIVE_UP_S = 60.0

MakeJob = Callable[..., Job]


@dataclass(frozen=True, slots=True)
class Beside:
    """The clients that connect beside the regular ones.

    They are strangers that send `hello`, or clients of a pool that does not answer
    (`hole`).
    """

    rate: float
    hello: str = ""
    keep: int = 0
    hole: HoleKind | Literal[""] = ""


@dataclass(frozen=True, slots=True)
class Part:
    """The result of one part. Latencies are in µs, sorted."""

    connects: list[float]
    requests: list[float]
    cpu_s: float
    wall_s: float
    errors: dict[str, int]
    negotiated: Any

    def facts(self, name: str) -> dict[str, float]:
        """Figures for the JSON and the table."""
        return {
            f"{name}_connect_p50_ms": _percentile(self.connects, 0.5) / 1e3,
            f"{name}_connect_p99_ms": _percentile(self.connects, 0.99) / 1e3,
            f"{name}_session_p50_ms": _percentile(self.requests, 0.5) / 1e3,
            f"{name}_session_p99_ms": _percentile(self.requests, 0.99) / 1e3,
            f"{name}_busy": self.cpu_s / self.wall_s,
            f"{name}_connects": len(self.connects),
        }


@dataclass(frozen=True, slots=True)
class Result:
    """Both parts, and how the strangers' connections ended."""

    quiet: Part
    beside: Part
    strangers: dict[str, int]

    @property
    def cost(self) -> float:
        """The 99th percentile of connecting, in ms."""
        return _percentile(self.beside.connects, 0.99) / 1e3


def run_beside(
    group: Beside,
    make_job: MakeJob,
    pids: Callable[[], list[int]],
    cpus: frozenset[int] | None,
    seconds: float,
) -> Result:
    """Measure both parts; the strangers have ended when it returns."""
    quiet_s = min(seconds, _QUIET_S)
    with contextlib.ExitStack() as stack:
        sessions, arrivals = (stack.enter_context(Load(cpus=cpus)) for _ in range(2))
        quiet = _part(make_job, sessions, arrivals, pids, quiet_s)
        crowd = _strangers(stack, group, make_job, cpus, _LEAD_S + seconds + _GIVE_UP_S)
        time.sleep(min(_LEAD_S, seconds))
        beside = _part(make_job, sessions, arrivals, pids, seconds)
        return Result(quiet, beside, crowd())


def _part(
    make_job: MakeJob, sessions: Load, arrivals: Load, pids: Callable[[], list[int]], seconds: float
) -> Part:
    sessions.prepare(
        make_job(mode="paced", rate=_REQUESTS_PER_SECOND, connections=_SESSIONS, seconds=seconds)
    )
    arrivals.prepare(
        make_job(
            mode="arrivals",
            rate=_CONNECTS_PER_SECOND,
            connections=_EVERYONE,
            warm_units=4,
            seconds=seconds,
        )
    )
    before = usage.read_usage(pids())
    began_at = time.monotonic()
    for load in (sessions, arrivals):
        load.go()
    asked, connected = (load.result(seconds + _GIVE_UP_S) for load in (sessions, arrivals))
    wall_s = time.monotonic() - began_at
    used = usage.difference(before, usage.read_usage(pids()))
    for load in (sessions, arrivals):
        load.finish()
    errors: dict[str, int] = {}
    for result in (asked, connected):
        for text, count in result["errors"].items():
            errors[text] = errors.get(text, 0) + count
    return Part(
        connected["latencies_us"],
        asked["latencies_us"],
        used.cpu_s,
        wall_s,
        errors,
        connected["negotiated"],
    )


def _strangers(
    stack: contextlib.ExitStack,
    group: Beside,
    make_job: MakeJob,
    cpus: frozenset[int] | None,
    seconds: float,
) -> Callable[[], dict[str, int]]:
    """Start them; returns the function that ends and counts them."""
    job = make_job(mode="lost", rate=group.rate, connections=_EVERYONE, seconds=seconds, nice=5)
    if group.hole:
        load = stack.enter_context(Load(cpus=cpus))
        load.prepare(replace(job, server_name=HOLE_NAME))
        load.go()
        return dict  # they end with the stack
    child = stack.enter_context(
        StrangersChild(
            Strangers(
                job.address, job.port, GATEWAY_NAME, group.hello, group.rate, seconds, group.keep
            ),
            cpus=cpus,
        )
    )
    child.go()
    return child.stop


def _percentile(values: list[float], part: float) -> float:
    """The percentile of sorted values; infinite when no client was served."""
    return values[min(len(values) - 1, int(len(values) * part))] if values else float("inf")
