"""The distributions, built once: the source, and from that the wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.gateway import ROOT

PATIENCE_S = 120


def run(*command, cwd, said=None, **environment):
    """Run a program to its end, `said` on stdin; fail with its output if it fails."""
    done = subprocess.run(
        [str(each) for each in command],
        cwd=cwd,
        env={**os.environ, "NO_COLOR": "1", **environment},
        input=said,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(kind, tree, to):
    """Build a distribution of a source tree, with the backend that pip would use."""
    program = f"import hatchling.build as b; print(b.build_{kind}({str(to)!r}))"
    return to / run(sys.executable, "-c", program, cwd=tree).splitlines()[-1]


@dataclass
class Distributions:
    source: Path
    unpacked: Path
    wheel: Path
    # The wheel as installed, and a run of its command.
    installed: Path

    def relay(self, *arguments, cwd="/"):
        module = ("-P", "-m", "relay")
        return run(sys.executable, *module, *arguments, cwd=cwd, PYTHONPATH=str(self.installed))


@pytest.fixture(scope="session")
def distributions(tmp_path_factory):
    at = tmp_path_factory.mktemp("distributions")
    source = build("sdist", ROOT, at)
    with tarfile.open(source) as archive:
        archive.extractall(at, filter="data")
    unpacked = at / source.name.removesuffix(".tar.gz")
    wheel = build("wheel", unpacked, at)
    # Dependencies are those of the tests' own environment.
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, "--target", at / "installed", wheel, cwd=at)
    return Distributions(source, unpacked, wheel, at / "installed")
