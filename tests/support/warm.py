"""Starts a relay without the second of CPU time that its imports take.

There is one `Starter` per test process. It has a process that has imported the relay
(`tests.support.warm_server`), and lets it fork a relay for each start or command. They
know no difference: each is a process of its own, with its own arguments, environment
and files.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]


class WarmProcess:
    """The part of subprocess.Popen that the tests use."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int, told: int, arguments: list[str]) -> None:
        self.pid = pid
        self.args = arguments
        self.returncode: int | None = None
        self._told = told

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            # Nothing comes if the server was killed, and its children run on.
            self.returncode = int(os.read(self._told, 64) or -signal.SIGKILL)
            os.close(self._told)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Starter:
    """A process that has imported the relay, and forks."""

    def __init__(self) -> None:
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.support.warm_server", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def start(
        self,
        module: str,
        arguments: list[str],
        *,
        cwd: Path | str,
        env: dict[str, str],
        out: IO[Any],
        err: IO[Any],
    ) -> WarmProcess:
        """Start `python -m MODULE ARGUMENTS` with nothing to read."""
        request = pickle.dumps((module, arguments, str(cwd), env))
        with Path(os.devnull).open("rb") as nothing:
            streams = [nothing.fileno(), out.fileno(), err.fileno()]
            socket.send_fds(self._sock, [request], streams)
        pid, fds, _, _ = socket.recv_fds(self._sock, 64, 1)
        assert pid, "the process that forks relays has ended"
        return WarmProcess(int(pid), fds[0], [module, *arguments])

    def run(
        self,
        module: str,
        arguments: list[str],
        *,
        cwd: Path | str,
        env: dict[str, str],
        timeout: float,
    ) -> subprocess.CompletedProcess[str]:
        """Run the module to its end. Raises subprocess.TimeoutExpired."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            process = self.start(module, arguments, cwd=cwd, env=env, out=out, err=err)
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(process.args, code, out.read(), err.read())


@cache
def starter() -> Starter:
    """The starter of this process."""
    return Starter()
