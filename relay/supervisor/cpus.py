"""How many CPUs this process may use: its affinity, and the quota of its cgroups.

A container with a quota of 2 CPUs sees all CPUs of the machine. One worker for each of
them would cost memory, and all of them would stand still when the quota is used up.

Never: raises an error for a cgroup that cannot be read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def usable_cpus() -> int:
    """The number of CPUs. A part of a CPU counts as a whole one."""
    try:
        affinity = len(os.sched_getaffinity(0))
    except OSError:  # a system call filter forbids it
        affinity = os.cpu_count() or 1
    return math.ceil(min(affinity, find_quota()))


def find_quota(own_cgroups: Path = _OWN_CGROUPS, mounted: Path = _CGROUPS) -> float:
    """The smallest quota of this process's cgroups in CPUs, infinity for none."""
    try:
        lines = own_cgroups.read_text().splitlines()
    except OSError:
        return math.inf
    quotas = [math.inf]
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not path:
            continue
        if not controllers:
            quotas += (_read_quota(at / "cpu.max") for at in _upwards(mounted, path))
        elif "cpu" in controllers.split(","):
            quotas += (_read_quota_v1(at) for at in _upwards(mounted / controllers, path))
            quotas += (_read_quota_v1(at) for at in _upwards(mounted / "cpu", path))
    return min(quotas)


def _upwards(mounted: Path, path: str) -> Iterator[Path]:
    """The cgroup and all above it.

    In a container, its own may be mounted at the top, whatever the path says.
    """
    here = mounted / path.lstrip("/")
    yield here
    while here not in (mounted, here.parent):
        here = here.parent
        yield here


def _read_quota(file: Path) -> float:
    """`cpu.max` of cgroup v2: quota and period in microseconds, or "max"."""
    try:
        quota_us, period_us = map(int, file.read_text().split())
    except (OSError, ValueError):  # not there, or "max"
        return math.inf
    return _cpus(quota_us, period_us)


def _read_quota_v1(directory: Path) -> float:
    """The two files of cgroup v1; a quota of -1 is no quota."""
    try:
        quota_us = int((directory / "cpu.cfs_quota_us").read_text())
        period_us = int((directory / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return math.inf
    return _cpus(quota_us, period_us)


def _cpus(quota_us: int, period_us: int) -> float:
    return quota_us / period_us if quota_us > 0 and period_us > 0 else math.inf
