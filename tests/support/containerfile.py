"""Executes the steps of a Containerfile without an engine, in plain directories.

The base image is this machine: its /usr and /etc, read-only, below each stage's own
files.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.gateway import ROOT
from tests.support.programs import find, program

FIRST_PROCESS = Path(__file__).with_name("first_process.py")
SYSTEM_PYTHON = "/usr/bin/python3"
BUILD_S = 300


def instructions(file: Path) -> list[tuple[str, str]]:
    """Each instruction with its arguments, without comments and continued lines."""
    text = re.sub(r"^\s*#.*\n", "", file.read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines) if name]


@dataclass
class Stage:
    """One stage of a build: its files and what it says about the process."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    directory: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)


def needs_a_container() -> str:
    """Why no container can be made here, "" if one can."""
    if os.geteuid() != 0:
        return "needs root, to mount and to change the user"
    tries = {
        "this machine allows no new namespaces": (
            [
                find("unshare") or "unshare",
                "--mount",
                "--pid",
                "--fork",
                "mount",
                "-t",
                "tmpfs",
                "t",
                "/mnt",
            ]
        ),
        f"{SYSTEM_PYTHON} is not Python 3.11 with venv": [
            SYSTEM_PYTHON,
            "-c",
            "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))",
        ],
    }
    for why, command in tries.items():
        try:
            done = subprocess.run(command, capture_output=True, timeout=20, check=False)
        except FileNotFoundError:
            return f"{command[0]} not installed"
        if done.returncode:
            return why
    return ""


def build(file: Path, place: Path) -> Stage:
    """Execute all steps; the last stage. Skips the test if a package cannot be had."""
    stages: dict[str, Stage] = {}
    stage = Stage(place)
    for name, rest in instructions(file):
        if name == "FROM":
            stage = Stage(place / str(len(stages)))
            stage.root.mkdir()
            stages[rest.partition(" AS ")[2] or "last"] = stage
        elif name == "ENV":
            stage.environment |= dict(each.split("=", 1) for each in shlex.split(rest))
        elif name == "WORKDIR":
            stage.directory = rest
            _inside(stage, rest).mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            _copy(stages, stage, shlex.split(rest))
        elif name == "RUN":
            _run(stage, ["/bin/sh", "-c", rest])
        elif name == "USER":
            stage.user = rest
        elif name in {"ENTRYPOINT", "CMD"}:
            setattr(stage, {"CMD": "command"}.get(name, "entrypoint"), json.loads(rest))
        elif name == "HEALTHCHECK":
            stage.health = json.loads(rest.partition(" CMD ")[2])
        else:
            assert name in {"ARG", "EXPOSE", "LABEL", "STOPSIGNAL"}, name
    return stage


def _inside(stage: Stage, path: str) -> Path:
    return stage.root / (Path(stage.directory) / path).relative_to("/")


def _copy(stages: dict[str, Stage], stage: Stage, arguments: list[str]) -> None:
    source = ROOT
    if arguments[0].startswith("--from="):
        source = stages[arguments.pop(0).removeprefix("--from=")].root
    *names, target = arguments
    for name in names:
        start = source / name.lstrip("/")
        end = _inside(stage, target)
        end = end / start.name if target.endswith("/") or target == "." else end
        if start.is_dir():
            shutil.copytree(start, end, symlinks=True, dirs_exist_ok=True)
        else:
            end.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(start, end)


def _run(stage: Stage, command: list[str]) -> None:
    outside = {
        name: value
        for name, value in os.environ.items()
        # A file of constraints is outside of the root.
        if (name.startswith("PIP_") and name != "PIP_CONSTRAINT") or name.lower().endswith("_proxy")
    }
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", **stage.environment, **outside}
    # The real build does not keep what it downloads; here it is not downloaded again.
    environment |= {"PIP_NO_CACHE_DIR": "0", "PIP_CACHE_DIR": "/cache"}
    cache = Path.home() / ".cache" / "pip"
    cache.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        in_root(
            stage.root,
            command,
            environment,
            directory=stage.directory,
            volumes={"/cache": str(cache), **_package_directories()},
        ),
        capture_output=True,
        text=True,
        timeout=BUILD_S,
        check=False,
    )
    if done.returncode and re.search("No matching distribution|Could not find", done.stderr):
        pytest.skip(f"pip finds no packages: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stdout + done.stderr


def _package_directories() -> dict[str, str]:
    """Directories of this machine from which pip is configured to take packages."""
    told = subprocess.run(
        [SYSTEM_PYTHON, "-m", "pip", "config", "list"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    ).stdout
    found = re.findall(r"(?:[' ]|file://)(/[\w./-]+)", told)
    return {path: path for path in found if Path(path).is_dir()}


def in_root(
    root: Path,
    command: list[str],
    environment: dict[str, str],
    *,
    directory: str = "/",
    user: str = "0:0",
    volumes: dict[str, str] | None = None,
    read_only: bool = False,
    forbidden: dict[str, int] | None = None,
) -> list[str]:
    """The command that runs another one as process 1 of a new container.

    `forbidden` has numbers of system calls and the error that they get.
    """
    wanted = {
        "root": str(root),
        "command": command,
        "environment": environment,
        "directory": directory,
        "user": user,
        "volumes": volumes or {},
        "read_only": read_only,
        "forbidden": forbidden or {},
    }
    apart = ("--pid", "--fork", "--kill-child", "--mount")
    return [program("unshare"), *apart, SYSTEM_PYTHON, "-I", str(FIRST_PROCESS), json.dumps(wanted)]
