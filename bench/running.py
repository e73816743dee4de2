"""Starts and stops a gateway.

Never: leaves a process behind.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from bench.children import BenchError, pin
from bench.gateways import Gateway, Place, render_configuration

_ROOT = Path(__file__).resolve().parent.parent
_START_S = 15.0


class Running:
    """A running gateway; a context manager that stops it and all its children."""

    def __init__(self, gateway: Gateway, place: Place) -> None:
        program = gateway.program()
        if program is None:
            raise BenchError(f"{gateway.name} is not installed; install {gateway.package}")
        self.gateway = gateway
        self.directory = place.directory
        place.directory.mkdir(parents=True, exist_ok=True)
        # Gateways that drop their privileges must still reach their sockets here.
        place.directory.chmod(0o755)
        self.port = 0 if gateway.name == "relay" else _free_port()
        file = place.directory / gateway.template
        file.write_text(render_configuration(gateway, place, self.port))
        command = gateway.command(program, file)
        if "--concurrency" in command:
            command[command.index("--concurrency") + 1] = str(place.workers)
        self._log = (place.directory / "output.log").open("wb")
        # Set the CPUs before the start, so that all its processes and threads inherit
        # them.
        before = os.sched_getaffinity(0)
        pin(0, place.cpus)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                cwd=_ROOT,
                start_new_session=True,
            )
        finally:
            pin(0, before)
        try:
            self._await()
        except BaseException:
            self.stop()
            raise

    def pids(self) -> list[int]:
        """All processes of the gateway now."""
        try:
            root = psutil.Process(self._process.pid)
            return [root.pid, *(child.pid for child in root.children(recursive=True))]
        except psutil.NoSuchProcess:
            raise BenchError(
                f"{self.gateway.name} has ended; its output: {self._output()}"
            ) from None

    def _await(self) -> None:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise BenchError(
                    f"{self.gateway.name} did not start (exit status {self._process.returncode}); "
                    f"its output: {self._output()}"
                )
            if self.port == 0:
                self._read_endpoints()
            if self.port:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                        return
            time.sleep(0.02)
        raise BenchError(
            f"{self.gateway.name} did not accept on port {self.port} within {_START_S:.0f} s; "
            f"its output: {self._output()}"
        )

    def _read_endpoints(self) -> None:
        try:
            endpoints = json.loads((self.directory / "run" / "endpoints.json").read_text())
        except (OSError, ValueError):
            return
        self.port = int(endpoints["listeners"]["https"][0].rpartition(":")[2])

    def _output(self) -> str:
        self._log.flush()
        return (
            " / ".join(
                (self.directory / "output.log").read_text(errors="replace").split("\n")[-6:]
            ).strip()
            or "none"
        )

    def stop(self) -> None:
        """Stop it and its children: SIGTERM, and SIGKILL after two seconds."""
        try:
            family = [
                psutil.Process(self._process.pid),
                *psutil.Process(self._process.pid).children(recursive=True),
            ]
        except psutil.NoSuchProcess:
            family = []
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for process in family:
            if process.is_running():
                process.kill()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def raise_file_limit() -> int:
    """Raise the limit of open files to 65,536, or as far as allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (65_536, hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
        except (ValueError, OSError):
            continue
        return wanted
    return soft


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
