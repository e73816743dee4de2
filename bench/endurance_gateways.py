"""The gateways of `bench.endurance`, and what is done to them while clients come.

Relay is started with a store of file descriptors, as systemd has one, so that a restart
keeps its listening sockets.

Never: leaves a process behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from bench.children import BenchError
from bench.gateways import GATEWAYS, Place, render_configuration
from bench.passed_files import PASS
from bench.pki import BACKEND_NAME
from bench.running import Running
from relay.supervisor.control_client import ask

PATIENCE_S = 60.0
_ROOT = Path(__file__).resolve().parent.parent
_SECOND = f"""
[[pool.backends.backend]]
route = "worker2"
address = "127.0.0.1:{{port}}"
name = "{BACKEND_NAME}"

[pool.sticky]"""
_STOP_S = 45.0


Logged = dict[int, list[tuple[float, float, str]]]
"""By the client's port: when its sessions began and ended (Unix time), and why."""


class FdStore:
    """The part of systemd that keeps the sockets of a service over a restart."""

    def __init__(self, directory: Path) -> None:
        self.address = str(directory / "notify")
        self._stored: dict[str, int] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, fds, _, _ = socket.recv_fds(self._socket, 4096, 16)
                fields = dict(
                    line.split("=", 1) for line in data.decode().splitlines() if "=" in line
                )
                name = fields.get("FDNAME", "")
                if "FDSTOREREMOVE" in fields and name in self._stored:
                    os.close(self._stored.pop(name))
                for fd in fds:
                    if "FDSTORE" in fields and name not in self._stored:
                        # Away from the numbers that a start uses.
                        self._stored[name] = os.dup(fd) if fd > 200 else _far(fd)
                    os.close(fd)

    def wrap(self, command: list[str]) -> tuple[list[str], list[int]]:
        """The command that gets what is stored, and the descriptors to pass to it."""
        fds, names = list(self._stored.values()), ":".join(self._stored)
        numbers = ",".join(map(str, fds))
        return [sys.executable, "-c", PASS, numbers, names, *command], fds

    def close(self) -> None:
        """Close everything."""
        self._socket.close()
        for fd in self._stored.values():
            os.close(fd)


def _far(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 200)


class RelayGateway:
    """A relay with two workers on a fixed port."""

    name = "relay"

    def __init__(self, place: Place, second_port: int = 0, drain_s: float = 5.0) -> None:
        place.directory.mkdir(parents=True)
        place.directory.chmod(0o755)
        self.directory = place.directory
        self._config = place.directory / "relay.toml"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        text = render_configuration(GATEWAYS["relay"], place, 0)
        text = text.replace('"127.0.0.1:0"]', f'"127.0.0.1:{self.port}"]')
        text = text.replace("[relay]\n", f"[relay]\ndrain_timeout_s = {drain_s}\n")
        if second_port:
            text = text.replace("[pool.sticky]", _SECOND.format(port=second_port))
        self._pki = place.pki
        self._text, self._changes = text, 0
        self._write()
        self._store = FdStore(place.directory)
        self._log = (place.directory / "output.log").open("ab")
        self._start()

    def _write(self) -> None:
        """Another setting, which changes nothing that clients notice."""
        self._changes += 1
        self._config.write_text(
            self._text.replace("[relay]\n", f"[relay]\nwatch_s = {1 + self._changes / 1000}\n", 1)
        )

    def _start(self) -> None:
        command, fds = self._store.wrap(
            [sys.executable, "-m", "relay", "start", "--config", str(self._config)]
        )
        self._process = subprocess.Popen(
            command,
            env={**os.environ, "NOTIFY_SOCKET": self._store.address},
            pass_fds=fds,
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        deadline = time.monotonic() + PATIENCE_S
        while self._endpoints().get("supervisor", {}).get("pid") != self._process.pid:
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = (self.directory / "output.log").read_text()[-1000:]
                raise BenchError(f"relay did not start; its output: {tail}")
            time.sleep(0.02)

    def _endpoints(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(
                (self.directory / "run" / "endpoints.json").read_text()
            )
        except (OSError, ValueError):
            return {}
        return found

    # What is done to it.

    def reload(self) -> None:
        """Load another setting."""
        self._write()
        self._ask("reload")

    def upgrade(self) -> None:
        """Replace the program by the installed one, which is the same."""
        self._ask("upgrade")

    def restart(self) -> None:
        """As `systemctl restart`: stop, wait for the end, start."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(_STOP_S)
        self._start()

    def renew(self) -> None:
        """Swap certificate and key of the gateway for others, in place."""
        for ending in ("key", "crt"):
            one, other = (self._pki / f"{name}.{ending}" for name in ("gateway", "gateway-2"))
            spare = self._pki / f"spare.{ending}"
            shutil.copy(one, spare)
            other.rename(one)
            spare.rename(other)

    def kill(self) -> None:
        """SIGKILL for one worker."""
        pids = [each["pid"] for each in self._endpoints()["workers"]]
        with contextlib.suppress(ProcessLookupError):
            os.kill(random.choice(pids), signal.SIGKILL)

    def _ask(self, command: str) -> None:
        reply = ask(self.directory / "run", command, PATIENCE_S)
        if reply.get("ok") is not True:
            raise BenchError(f"relay refused to {command}: {reply}")

    # What is seen of it.

    def processes(self) -> dict[str, list[psutil.Process]]:
        """The supervisor, and the serving workers."""
        workers = [each["pid"] for each in self._endpoints().get("workers", ())]
        found: dict[str, list[psutil.Process]] = {"supervisor": [], "workers": []}
        for role, pids in (("supervisor", [self._process.pid]), ("workers", workers)):
            for pid in pids:
                with contextlib.suppress(psutil.NoSuchProcess):
                    found[role].append(psutil.Process(pid))
        return found

    def handshakes(self) -> int:
        """How many handshakes with clients its counters say it has done."""
        with urllib.request.urlopen(f"http://{self._endpoints()['admin']}/metrics") as reply:
            text = reply.read().decode()
        return sum(
            int(float(line.rpartition(" ")[2]))
            for line in text.splitlines()
            if line.startswith("relay_handshakes_total{")
            and 'side="inbound"' in line
            and ('result="ok"' in line or 'result="resumed"' in line)
        )

    def logged(self) -> Logged:
        """The sessions in the access log."""
        found: Logged = {}
        for line in (self.directory / "access.log").read_text().splitlines():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                began_at = datetime.fromisoformat(record["time"]).timestamp()
                host, _, port_text = record["client"].rpartition(":")
                if host != "127.0.0.1":
                    continue  # a stranger, which may have the port of a client
                port = int(port_text)
                end_at = began_at + record["duration_s"]
                found.setdefault(port, []).append((began_at, end_at, record["reason"]))
        return found

    def stop(self) -> None:
        """Stop it now."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGQUIT)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        self._store.close()


class OtherGateway:
    """HAProxy with a master process, or nginx; both reload by a signal."""

    def __init__(self, name: str, place: Place) -> None:
        gateway = GATEWAYS[name]
        if name == "haproxy":
            gateway = replace(
                gateway, command=lambda program, file: [program, "-W", "-db", "-f", str(file)]
            )
        self.name = name
        self._running = Running(gateway, place)
        self.port = self._running.port
        self._signal = signal.SIGUSR2 if name == "haproxy" else signal.SIGHUP

    def reload(self) -> None:
        """As its manual says. There is no answer to wait for."""
        os.kill(self._running.pids()[0], self._signal)

    def processes(self) -> dict[str, list[psutil.Process]]:
        """All processes of it."""
        first, *others = self._running.pids()
        return {
            "supervisor": [psutil.Process(first)],
            "workers": [psutil.Process(pid) for pid in others if psutil.pid_exists(pid)],
        }

    def logged(self) -> Logged:
        """It writes no log here."""
        return {}

    def stop(self) -> None:
        """Stop it and its children."""
        self._running.stop()


EndurableGateway = RelayGateway | OtherGateway
