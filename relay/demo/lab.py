"""The demonstration's lab: certificates, backends and a relay on loopback.

Never: touches anything outside its directory and loopback.
"""

from __future__ import annotations

import json
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import psutil

import relay
from relay.demo import kept
from relay.demo.ca import Authority, Leaf
from relay.errors import StartupError

TIMEOUT_S = 20.0
WORKERS = ("worker1", "worker2", "worker3")
NAME, IMPOSTOR = "localhost", "impostor.localhost"

_CONFIG = """\
[relay]
workers = 2
state_dir = "run"
drain_timeout_s = 2
{user}
[admin]
listen = "{admin}"

[log]
level = "error"
access = "access.log"

[[listener]]
name = "https"
listen = ["127.0.0.1:{port}"]

[[listener.route]]
sni = ["localhost"]
pool = "httpslb"
certificate = "gateway.pem"
private_key = "gateway.key"
client_ca = "ca.pem"

[[listener.route]]
sni = ["impostor.localhost"]
pool = "impostors"
certificate = "gateway.pem"
private_key = "gateway.key"
client_ca = "ca.pem"

[pool.httpslb]
balance = "round_robin"
sticky = "source"
machine_certificate = "machine.pem"
machine_key = "machine.key"
backend_ca = "ca.pem"
{backends}
[pool.impostors]
machine_certificate = "machine.pem"
machine_key = "machine.key"
backend_ca = "ca.pem"

[[pool.impostors.backend]]
route = "impostor"
address = "127.0.0.1:{impostor}"
name = "payroll.demo.test"
"""
_BACKEND = """
[[pool.httpslb.backend]]
route = "{name}"
address = "127.0.0.1:{port}"
name = "{name}.demo.test"
"""


class Lab:
    """A context manager that removes all files and processes at its end.

    Inside it, `port` is the relay's, `admin` its admin address, `relay` its process.
    With `keep`, the files are in this directory, and `leave` lets them stay there.
    """

    def __init__(self, port: int, keep: Path | None = None) -> None:
        self._stack = ExitStack()
        self._port = port
        self._keep = keep
        self.keeps = False
        self._backends: dict[str, subprocess.Popen[bytes]] = {}
        self._ports: dict[str, int] = {}

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _open(self) -> None:
        if self._keep is not None:
            self.directory = kept.make_directory(self._keep)
            self._stack.callback(self._remove)
        else:
            # ignore_cleanup_errors: a worker that is ending may still write its last
            # line.
            self.directory = Path(
                self._stack.enter_context(
                    tempfile.TemporaryDirectory(prefix="relay-demo-", ignore_cleanup_errors=True)
                )
            )
        self._make_certificates()
        for name in (*WORKERS, "impostor"):
            self.start_backend(name)
        self._start_relay()

    def leave(self) -> None:
        """Let the files stay, with the ports that are in use now."""
        self._write_config(self.port, self.admin)
        kept.write_script(self.directory, self._ports, self._subjects)
        self.keeps = True

    def _remove(self) -> None:
        if not self.keeps:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _make_certificates(self) -> None:
        authority, foreign = Authority.root("Demo CA"), Authority.root("Somebody else's CA")
        authority.write(self.directory / "ca.pem")
        self._subjects: dict[str, str] = {}
        issued: dict[str, Leaf] = {
            "gateway": authority.server("demo gateway", dns=(NAME, IMPOSTOR), ip=("127.0.0.1",)),
            "machine": authority.client("demo gateway machine"),
            "client": authority.client("alice"),
            "foreign": foreign.client("mallory"),
            **{name: authority.server(f"{name}.demo.test") for name in WORKERS},
            # A valid certificate of the right CA with a wrong name: only the check of
            # the name can detect it.
            "impostor": authority.server("coffee-machine.demo.test"),
        }
        for name, each in issued.items():
            each.write(self.directory / f"{name}.pem", self.directory / f"{name}.key")
            self._subjects[name] = each.certificate.subject.rfc4514_string()

    def start_backend(self, name: str) -> None:
        """Start a backend, on its previous port if any; wait until it listens."""
        files = {"certificate": f"{name}.pem", "private-key": f"{name}.key", "client-ca": "ca.pem"}
        options = {
            "name": name,
            "subject": self._subjects[name],
            "port": str(self._ports.get(name, 0)),
            **files,
        }
        process = self._spawn(
            "relay.demo.backend",
            *(part for key, value in options.items() for part in (f"--{key}", value)),
        )
        self._backends[name] = process
        if (
            process.stdout is None
            or not select.select([process.stdout], [], [], TIMEOUT_S)[0]
            or not (line := process.stdout.readline()).strip().isdigit()
        ):
            raise StartupError(
                f"the demonstration's backend {name} did not start",
                "the reason is in the lines above",
            )
        self._ports[name] = int(line)

    def kill_backend(self, name: str) -> None:
        """Kill a backend, like a crash."""
        self._backends[name].kill()
        self._backends[name].wait()

    def restart_killed(self) -> str:
        """Start the killed backends again; returns their names."""
        dead = [name for name, process in self._backends.items() if process.poll() is not None]
        for name in dead:
            self.start_backend(name)
        return ", ".join(dead)

    def _start_relay(self) -> None:
        config = self._write_config(self._port, "127.0.0.1:0")
        self.relay = self._spawn(
            "relay", "start", "--config", str(config), stdout=subprocess.DEVNULL
        )
        endpoints = self.directory / "run" / "endpoints.json"
        deadline = time.monotonic() + TIMEOUT_S
        while not endpoints.exists():
            if self.relay.poll() is not None or time.monotonic() > deadline:
                raise StartupError(
                    "the demonstration's relay did not start",
                    "the reason is in the lines above; another --port may help",
                )
            time.sleep(0.02)
        found: dict[str, Any] = json.loads(endpoints.read_text())
        self.port = int(found["listeners"]["https"][0].rpartition(":")[2])
        self.admin: str = found["admin"]

    def _write_config(self, port: int, admin: str) -> Path:
        backends = "".join(_BACKEND.format(name=name, port=self._ports[name]) for name in WORKERS)
        # As root the relay starts only if `user` says so explicitly.
        user = f'user = "{pwd.getpwuid(0).pw_name}"\n' if os.geteuid() == 0 else ""
        config = self.directory / "relay.toml"
        config.write_text(
            _CONFIG.format(
                user=user,
                port=port,
                admin=admin,
                backends=backends,
                impostor=self._ports["impostor"],
            )
        )
        return config

    def _spawn(
        self, module: str, *arguments: str, stdout: int = subprocess.PIPE
    ) -> subprocess.Popen[bytes]:
        package = str(Path(relay.__file__).parents[1])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))),
        }
        command = [sys.executable, "-m", module, *arguments]
        # An exception inside Popen would leave a process that nobody ends.
        with _interrupts_delayed():
            process = subprocess.Popen(
                command, cwd=self.directory, env=environment, stdin=subprocess.PIPE, stdout=stdout
            )
            self._stack.callback(_end, process)
        return process


@contextmanager
def _interrupts_delayed() -> Iterator[None]:
    """Handle SIGINT and SIGTERM after the block; programs started in it do not wait."""
    arrived: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: arrived.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for late in arrived:
            signal.raise_signal(late)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process: gracefully, or by killing it and all its children."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(TIMEOUT_S / 2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
