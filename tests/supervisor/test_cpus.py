"""How many workers "auto" means: the CPUs, and the quota of the cgroups."""

from __future__ import annotations

import math
import os

import pytest

from relay.supervisor import cpus

# What /proc/self/cgroup says, the files below /sys/fs/cgroup, and the quota in CPUs.
CASES = {
    "a container with cgroup v2": ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
    "no quota": ("0::/\n", {"cpu.max": "max 100000"}, math.inf),
    "the root cgroup has no such file": ("0::/\n", {}, math.inf),
    "a unit of systemd": (
        "0::/system.slice/relay.service\n",
        {"system.slice/relay.service/cpu.max": "200000 100000"},
        2,
    ),
    "the slice has less": (
        "0::/a.slice/relay.service\n",
        {"a.slice/relay.service/cpu.max": "400000 100000", "a.slice/cpu.max": "300000 100000"},
        3,
    ),
    "a container with cgroup v1": (
        "4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n0::/\n",
        {"cpu,cpuacct/cpu.cfs_quota_us": "50000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
        0.5,
    ),
    "cgroup v1 without a quota": (
        "3:cpu:/\n",
        {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
        math.inf,
    ),
    "nonsense": ("no cgroup\n", {"cpu.max": "much"}, math.inf),
}


@pytest.mark.parametrize("case", CASES)
def test_the_quota_is_the_smallest_of_all_cgroups(case, tmp_path):
    own, files, quota = CASES[case]
    (tmp_path / "own").write_text(own)
    for name, content in files.items():
        file = tmp_path / "mounted" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content + "\n")
    assert cpus.find_quota(tmp_path / "own", tmp_path / "mounted") == quota


def test_at_least_one_cpu_is_usable_and_no_more_than_there_are():
    assert 1 <= cpus.usable_cpus() <= os.cpu_count()
