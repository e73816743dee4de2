"""The harness's child processes, load generators and backend; they exchange JSON lines.

Never: leaves one behind. Each ends when its stdin ends, or is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.job import Job

_ROOT = Path(__file__).resolve().parent.parent


class BenchError(Exception):
    """The harness cannot continue; the message says what to do."""


def pin(pid: int, cpus: Iterable[int] | None) -> None:
    """Keep a process and its future children on these CPUs; None: on all."""
    if cpus is not None:
        os.sched_setaffinity(pid, cpus)


class Child:
    """A `python -m bench.…` process."""

    def __init__(
        self, module: str, arguments: Iterable[str] = (), *, cpus: frozenset[int] | None = None
    ) -> None:
        self.module = module
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self.pid = self._process.pid
        pin(self.pid, cpus)
        self._unread = b""

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send one line."""
        if self._process.stdin is None:
            raise BenchError(f"{self.module} has no stdin")
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def hear(self, timeout_s: float) -> dict[str, Any]:
        """Wait for one line."""
        if self._process.stdout is None:
            raise BenchError(f"{self.module} has no stdout")
        fd = self._process.stdout.fileno()
        poll = select.poll()  # select takes no descriptor above 1023
        poll.register(fd, select.POLLIN)
        while b"\n" not in self._unread:
            if not poll.poll(1000 * timeout_s):
                raise BenchError(
                    f"{self.module} (process {self.pid}) did not answer for {timeout_s:.0f} s; "
                    "run it by hand to see why"
                )
            chunk = os.read(fd, 1 << 20)
            if not chunk:
                raise BenchError(f"{self.module} (process {self.pid}) ended; its message is above")
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # it has ended
                    pipe.close()
        try:
            self._process.wait(3)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Backend(Child):
    """The backend's processes behind one port."""

    def __init__(
        self,
        pki: Path,
        *,
        processes: int = 1,
        same_cipher: bool = True,
        party: str = "backend",
        proxy: bool = False,
        cpus: frozenset[int] | None = None,
    ) -> None:
        job = {
            "pki": str(pki),
            "processes": processes,
            "same_cipher": same_cipher,
            "party": party,
            "proxy": proxy,
        }
        super().__init__("bench.backend", [json.dumps(job)], cpus=cpus)
        hello = self.hear(10)
        self.port: int = hello["port"]
        for pid in hello["pids"]:
            pin(pid, cpus)

    def counters(self) -> dict[str, int]:
        """The backend's counters since its start."""
        self.tell({})
        return self.hear(5)


class Load(Child):
    """One load generator."""

    def __init__(self, *, cpus: frozenset[int] | None = None) -> None:
        super().__init__("bench.load", cpus=cpus)

    def prepare(self, job: Job, timeout_s: float = 60.0) -> dict[str, int]:
        """Send a job and wait until it has warmed up; returns the errors so far."""
        self.tell(asdict(job))
        errors: dict[str, int] = self._event("ready", "done", timeout_s)["errors"]
        return errors

    def go(self) -> None:
        """Start the measured part."""
        self.tell({})

    def result(self, timeout_s: float) -> dict[str, Any]:
        """Wait for the end of the measured part."""
        return self._event("done", "done", timeout_s)

    def finish(self, *, holding: bool = False) -> None:
        """Make it close its connections; `holding`: it keeps them open until told."""
        if holding:
            self.tell({})
        self._event("closed", "closed", 30)

    def _event(self, wanted: str, other: str, timeout_s: float) -> dict[str, Any]:
        answer = self.hear(timeout_s)
        if answer["event"] == wanted:
            return answer
        if answer["event"] == other:
            raise BenchError(f"the load generator failed before it began: {answer['errors']}")
        raise BenchError(f"the load generator sent {answer['event']} instead of {wanted}")
