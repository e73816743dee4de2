"""The demonstration's stage: certificates, three backends and a relay on loopback, and what a client does there.

`Stage` owns everything that must go away again: a temporary directory, the backends' processes, the relay's.

Never: touches anything outside its temporary directory and loopback.
"""

from __future__ import annotations

import http.client
import json
import os
import pwd
import select
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil

import relay
from relay.admin.metrics import parse_metrics
from relay.demo.ca import Authority, Leaf
from relay.errors import StartupError

PATIENCE_S = 20.0
WORKERS = ("worker1", "worker2", "worker3")
NAME, IMPOSTOR = "localhost", "impostor.localhost"
T = TypeVar("T")

_CONFIG = """\
[relay]
workers = 2
state_dir = "run"
drain_timeout_s = 2
{user}
[admin]
listen = "127.0.0.1:0"

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


class StepError(Exception):
    """A step could not see what it looked for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client got: the lines of the backend's answer by their first word, or in what words it was refused."""

    client: str
    lines: dict[str, str]
    refused: str = ""

    @property
    def backend(self) -> str:
        """The backend that answered, by its own word; empty when none did."""
        return self.lines.get("backend", "")


class Stage:
    """Everything the demonstration needs, gone when the context ends, however it ends."""

    def __init__(self, port: int) -> None:
        self._stack = ExitStack()
        self._port = port
        self._backends: dict[str, subprocess.Popen[bytes]] = {}
        self._ports: dict[str, int] = {}
        self.connections = 0

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
        # ignore_cleanup_errors: a worker that is still ending may write its last line.
        self.directory = Path(
            self._stack.enter_context(
                tempfile.TemporaryDirectory(prefix="relay-demo-", ignore_cleanup_errors=True)
            )
        )
        self._make_certificates()
        for name in (*WORKERS, "impostor"):
            self.start_backend(name)
        self._start_relay()

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
            # A good certificate of the right CA, for another name than its place has: only the check of the name can tell.
            "impostor": authority.server("coffee-machine.demo.test"),
        }
        for name, each in issued.items():
            each.write(self.directory / f"{name}.pem", self.directory / f"{name}.key")
            self._subjects[name] = each.certificate.subject.rfc4514_string()

    def start_backend(self, name: str) -> None:
        """Start a backend, again on the port it had before; returns when it listens."""
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
            or not select.select([process.stdout], [], [], PATIENCE_S)[0]
            or not (line := process.stdout.readline()).strip().isdigit()
        ):
            raise StartupError(
                f"the demonstration's backend {name} did not start",
                "see the lines above; is loopback there?",
            )
        self._ports[name] = int(line)

    def kill_backend(self, name: str) -> None:
        """End a backend as a crash would."""
        self._backends[name].kill()
        self._backends[name].wait()

    def revive(self) -> str:
        """Start the backends that were killed; their names."""
        dead = [name for name, process in self._backends.items() if process.poll() is not None]
        for name in dead:
            self.start_backend(name)
        return ", ".join(dead)

    def _start_relay(self) -> None:
        backends = "".join(
            f'\n[[pool.httpslb.backend]]\nroute = "{name}"\naddress = "127.0.0.1:{self._ports[name]}"\nname = "{name}.demo.test"\n'
            for name in WORKERS
        )
        # The relay does not run its workers as root unless told to.
        user = f'user = "{pwd.getpwuid(0).pw_name}"\n' if os.geteuid() == 0 else ""
        config = self.directory / "relay.toml"
        config.write_text(
            _CONFIG.format(
                user=user, port=self._port, backends=backends, impostor=self._ports["impostor"]
            )
        )
        self.relay = self._spawn(
            "relay", "start", "--config", str(config), stdout=subprocess.DEVNULL
        )
        endpoints = self.directory / "run" / "endpoints.json"
        deadline = time.monotonic() + PATIENCE_S
        while not endpoints.exists():
            if self.relay.poll() is not None or time.monotonic() > deadline:
                raise StartupError(
                    "the demonstration's relay did not start",
                    "its reason is in the lines above; another --port may help",
                )
            time.sleep(0.02)
        found: dict[str, Any] = json.loads(endpoints.read_text())
        self.port = int(found["listeners"]["https"][0].rpartition(":")[2])
        self.admin: str = found["admin"]

    def _spawn(
        self, module: str, *arguments: str, stdout: int = subprocess.PIPE
    ) -> subprocess.Popen[bytes]:
        package = str(Path(relay.__file__).parents[1])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))),
        }
        command = [sys.executable, "-m", module, *arguments]
        process = subprocess.Popen(
            command, cwd=self.directory, env=environment, stdin=subprocess.PIPE, stdout=stdout
        )
        self._stack.callback(_end, process)
        return process

    # What a client does.

    def ask(self, certificate: str = "", *, name: str = NAME, source: str = "127.0.0.1") -> Answer:
        """One request over a new connection, with the certificate of that name or none, from one of loopback's addresses."""
        context = ssl.create_default_context(cafile=str(self.directory / "ca.pem"))
        if certificate:
            context.load_cert_chain(
                self.directory / f"{certificate}.pem", self.directory / f"{certificate}.key"
            )
        self.connections += 1
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE_S, (source, 0)) as raw:
            client = f"{source}:{raw.getsockname()[1]}"
            try:
                # In TLS 1.3 the handshake seems to succeed for a client that is refused: it learns of it at its first read.
                with context.wrap_socket(raw, server_hostname=name) as tls:
                    connection = http.client.HTTPConnection(name)
                    connection.sock = tls
                    connection.request("GET", "/")
                    body = connection.getresponse().read().decode()
                    with suppress(OSError):
                        tls.unwrap()  # an end with close_notify; without it the relay would rightly call the session cut
            except ssl.SSLError as error:
                return Answer(client, {}, (error.reason or str(error)).replace("_", " ").lower())
            except (OSError, http.client.HTTPException) as error:
                return Answer(client, {}, str(error) or type(error).__name__)
        return Answer(
            client,
            {key: value for key, _, value in (line.partition(": ") for line in body.splitlines())},
        )

    # What the relay says.

    def logged(self, answer: Answer) -> dict[str, Any]:
        """The relay's access-log line about a connection."""
        return wait_until(
            f"the relay logs the connection of {answer.client}", lambda: self._find(answer.client)
        )

    def _find(self, client: str) -> dict[str, Any] | None:
        file = self.directory / "access.log"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        found: Iterator[dict[str, Any]] = (
            json.loads(line) for line in lines if line.endswith("\n")
        )
        return next((line for line in found if line["client"] == client), None)

    def metrics(self) -> Mapping[str, float]:
        """The relay's metrics now, by name and labels as Prometheus writes them."""
        with urllib.request.urlopen(f"http://{self.admin}/metrics", timeout=PATIENCE_S) as response:
            text = response.read().decode()
        return parse_metrics(text)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process gracefully, or else with everything it started."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(PATIENCE_S / 2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def wait_until(what: str, condition: Callable[[], T | None]) -> T:
    """The first true value of `condition`. Raises StepError when there is none in time."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise StepError(f"waited {PATIENCE_S:g} s in vain until {what}")
        time.sleep(0.02)
