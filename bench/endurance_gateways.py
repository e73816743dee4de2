"""The gateways of `bench.endurance`, and what is done to them while clients come.

Relay is started with a store of file descriptors, as systemd has one, so that a restart
keeps its listening sockets.

Never: leaves a process behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from bench.children import BenchError
from bench.endurance_counts import Counts
from bench.endurance_excuses import Excuses, Kill
from bench.endurance_load import CLIENT, client_context
from bench.endurance_log import AccessLog, sum_of
from bench.endurance_ready import ReadyPoller
from bench.fd_store import FdStore
from bench.gateways import GATEWAYS, Place, render_configuration
from bench.other_gateways import OtherGateway
from bench.pki import BACKEND_NAME, GATEWAY_NAME
from relay.supervisor.control_client import ask

PATIENCE_S = 180.0  # a busy machine starts a program slowly
_ROOT = Path(__file__).resolve().parent.parent
_SECOND = f"""
[[pool.backends.backend]]
route = "worker2"
address = "127.0.0.1:{{port}}"
name = "{BACKEND_NAME}"

[pool.sticky]"""
_STOP_S = 45.0
_LEAVE_S = 20.0
_PROBE = "127.0.0.2"  # the harness connects from here
_ENDINGS = "crt", "key"
_NUMBER = re.compile(r"\d+(\.\d+)?")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class RelayGateway:
    """A relay with two workers on a fixed port."""

    name = "relay"

    def __init__(self, place: Place, second_port: int = 0, drain_s: float = 5.0) -> None:
        place.directory.mkdir(parents=True)
        place.directory.chmod(0o755)
        self.directory = place.directory
        self._config = place.directory / "relay.toml"
        self.port = _free_port()
        admin_port = _free_port()
        text = render_configuration(GATEWAYS["relay"], place, 0)
        text = text.replace('"127.0.0.1:0"]', f'"127.0.0.1:{self.port}"]')
        text = text.replace("[relay]\n", f"[relay]\ndrain_timeout_s = {drain_s}\n")
        text = text.replace('listen = "127.0.0.1:0"', f'listen = "127.0.0.1:{admin_port}"')
        if second_port:
            text = text.replace("[pool.sticky]", _SECOND.format(port=second_port))
        self.excuses = Excuses()
        self.ready = ReadyPoller("127.0.0.1", admin_port)
        self._pki = place.pki
        self._certificates = ["gateway", "gateway-2"]  # the one in use, and the next
        self._place_certificate()
        for ending in _ENDINGS:
            text = text.replace(f"/gateway.{ending}", "/in-use.pem")
        self._text, self._changes = text, 0
        self._write()
        self._own = 0  # handshakes of the harness itself
        self._store = FdStore(place.directory)
        self._log = (place.directory / "output.log").open("ab")
        self._start()
        self._helpers = len(self._others())

    def _write(self) -> None:
        """Another setting, which changes nothing that clients notice."""
        self._changes += 1
        self._config.write_text(
            self._text.replace("[relay]\n", f"[relay]\nwatch_s = {1 + self._changes / 1000}\n", 1)
        )

    def _place_certificate(self) -> None:
        """One file has the certificate and its key, so that it changes at once."""
        name, file = self._certificates[0], self._pki / "in-use.pem"
        spare = file.with_suffix(".new")
        spare.touch(0o600)
        spare.write_text("".join((self._pki / f"{name}.{end}").read_text() for end in _ENDINGS))
        spare.replace(file)

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
        with self.ready.pause:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(_STOP_S)
            self._start()

    def renew(self) -> None:
        """Replace certificate and key by others, and wait until a client sees it."""
        self._certificates.reverse()
        self._place_certificate()
        wanted = ssl.PEM_cert_to_DER_cert((self._pki / f"{self._certificates[0]}.crt").read_text())
        deadline = time.monotonic() + PATIENCE_S
        while self._shown() != wanted:
            if time.monotonic() > deadline:
                raise BenchError(f"the renewed certificate is not shown after {PATIENCE_S:g} s")
            time.sleep(0.2)

    def _shown(self) -> bytes | None:
        """The certificate that it shows to a client that comes now."""
        context = client_context(self._pki)
        with (
            socket.create_connection(
                ("127.0.0.1", self.port), PATIENCE_S, (_PROBE, 0)
            ) as connection,
            context.wrap_socket(connection, server_hostname=GATEWAY_NAME) as client,
        ):
            self._own += 1
            shown = client.getpeercert(binary_form=True)
            with contextlib.suppress(OSError):
                client.unwrap()
            return shown

    def kill(self) -> None:
        """SIGKILL for one worker, stopped first to know its clients."""
        worker = psutil.Process(random.choice(self._endpoints()["workers"])["pid"])
        worker.suspend()
        at = time.time()
        clients = frozenset(
            each.raddr.port
            for each in worker.net_connections("tcp")
            if each.raddr and each.raddr.ip == CLIENT and each.laddr.port == self.port
        )
        self.excuses.kills.append(Kill(at, clients))
        worker.kill()

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

    def counts(self) -> Counts:
        """What its counters say, without the handshakes of the harness."""
        with urllib.request.urlopen(f"http://{self._endpoints()['admin']}/metrics") as reply:
            lines = reply.read().decode().splitlines()
        inbound = 'side="inbound"'
        handshakes = sum(
            sum_of(lines, "relay_handshakes_total", inbound, f'result="{result}"')
            for result in ("ok", "resumed")
        )
        return Counts(
            handshakes - self._own,
            sum_of(lines, "relay_bytes_total", 'direction="to_backend"'),
            sum_of(lines, "relay_bytes_total", 'direction="from_backend"'),
        )

    def logged(self) -> AccessLog:
        """The sessions in the access log."""
        found = AccessLog()
        for line in (self.directory / "access.log").read_text().splitlines():
            found.add(line)
        return found

    def errors(self) -> list[str]:
        """Its error messages, the most frequent first."""
        found: Counter[str] = Counter()
        for line in (self.directory / "output.log").read_text().splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                found[f"not JSON: {line}"] += 1
                continue
            if record["level"] in {"error", "critical"}:
                found[_NUMBER.sub("N", record["message"])] += 1
        return [f"{count} x {text}"[:300] for text, count in found.most_common()]

    def left_over(self) -> list[str]:
        """Its processes that should have ended with the last client."""
        deadline = time.monotonic() + _LEAVE_S
        while len(others := self._others()) > self._helpers:
            if time.monotonic() > deadline:
                more = len(others) - self._helpers
                return [f"{more} more processes are left than after the start: {others}"]
            time.sleep(0.2)
        return []

    def _others(self) -> list[str]:
        """Its processes that are not serving workers."""
        serving = {each["pid"] for each in self._endpoints().get("workers", ())}
        found = []
        for each in psutil.Process(self._process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if each.pid not in serving:
                    found.append(f"{each.pid} {' '.join(each.cmdline())[-60:]}")
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


EndurableGateway = RelayGateway | OtherGateway
