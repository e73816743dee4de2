"""A gateway's CPU time, private memory, context switches and system calls.

Each covers all processes and threads of the gateway.

Never: samples; every figure is a kernel counter, read before and after.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.children import BenchError

CPUS = os.cpu_count() or 1
_TICKED = re.compile(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Usage:
    """The counters of a process tree at one moment; CPU time by pid."""

    cpu_s: dict[int, float]
    switches: int


@dataclass(frozen=True, slots=True)
class Used:
    """The difference of two `Usage` values."""

    cpu_s: float
    switches: int


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, with ended threads, in ns resolution.

    The clock id is that of another process's CPU clock (clock_getcpuclockid(3)).
    /proc/PID/stat has a resolution of only 10 ms.
    """
    return time.clock_gettime((~pid << 3) | 2)


def read_usage(pids: Sequence[int]) -> Usage:
    """Read the counters of these processes, except those that have just ended."""
    cpu: dict[int, float] = {}
    switches = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            cpu[pid] = cpu_seconds(pid)
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            with contextlib.suppress(OSError):
                switches += sum(
                    int(line.split()[1])
                    for line in status.read_text().splitlines()
                    if "ctxt_switches" in line
                )
    return Usage(cpu, switches)


def difference(before: Usage, after: Usage) -> Used:
    """What was used in between. Raises BenchError when a process has ended."""
    lost = before.cpu_s.keys() - after.cpu_s.keys()
    if lost:
        raise BenchError(
            f"process {min(lost)} of the gateway ended during the measurement; see its output"
        )
    return Used(
        sum(after.cpu_s.values()) - sum(before.cpu_s.values()), after.switches - before.switches
    )


def busy_seconds(cpus: Iterable[int]) -> float:
    """Time these CPUs were not idle, stolen time included.

    From /proc/stat: all columns except idle and iowait.
    """
    ticks = 0
    wanted = {f"cpu{cpu}" for cpu in cpus}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in wanted:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def private_bytes(pids: Sequence[int]) -> int:
    """Private memory (USS) of these processes in bytes.

    Only root may read the USS of the relay's processes. For other users it is resident
    minus shared memory, which grows by the same amount.
    """
    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            try:
                total += int(process.memory_full_info().uss)
            except psutil.AccessDenied:
                memory = process.memory_info()
                total += int(memory.rss - memory.shared)
    return total


@contextlib.contextmanager
def counted_syscalls(pids: Sequence[int], directory: Path) -> Iterator[dict[str, int]]:
    """Count the system calls by name; filled at the end, empty without strace."""
    found: dict[str, int] = {}
    program = shutil.which("strace")
    if program is None:
        yield found
        return
    output = directory / "strace.txt"
    output.unlink(missing_ok=True)
    targets = [argument for pid in pids for argument in ("-p", str(pid))]
    with subprocess.Popen(
        [program, "-c", "-f", "-o", str(output), *targets], stderr=subprocess.PIPE
    ) as tracer:
        try:
            # strace prints "attached" once per process. After that it counts.
            if tracer.stderr is not None:
                for _ in pids:
                    tracer.stderr.readline()
            yield found
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait(10)
    if not output.exists():
        return  # only root may trace the relay
    found.update(
        (name, int(calls)) for calls, name in _TICKED.findall(output.read_text()) if name != "total"
    )
