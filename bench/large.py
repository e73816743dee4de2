"""`python -m bench.large`: 500 routes and 500 backends, beside HAProxy.

Each route has a name, a certificate and a pool of its own, and each pool one backend.
HAProxy has the same certificates in a crt-list, a map from names to backends, and
verifies clients and servers alike. Measured are the check of the configuration, the
start, a reload of changed settings, and the memory of each process. Wall times depend
on what else the machine does, so CPU time is beside them.

Never: sends traffic; only one client per start and reload asks whether it serves.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import click
import psutil

from relay.demo.ca import Authority, Leaf, LeafSpec

PATIENCE_S = 120.0
WORKERS = 2
_HAPROXY = "/usr/sbin/haproxy"
_USER = "" if os.geteuid() else 'user = "root"\n'


class Cost(NamedTuple):
    """Wall and CPU seconds."""

    wall_s: float
    cpu_s: float

    def __str__(self) -> str:
        return f"{self.wall_s:.2f} s, {self.cpu_s:.2f} s CPU"


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(command: list[str]) -> Cost:
    """Run a command to its successful end."""
    started_at, before_s = time.monotonic(), _children_cpu_s()
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    if done.returncode:
        raise click.ClickException(f"{command}: {done.returncode}\n{done.stderr[-2000:]}")
    return Cost(time.monotonic() - started_at, _children_cpu_s() - before_s)


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    """Poll until the condition is true."""
    until_at = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > until_at:
            raise click.ClickException(f"waited {PATIENCE_S:g} s in vain for: {what}")
        time.sleep(0.005)


def tree(pid: int) -> list[psutil.Process]:
    """A process and its children."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, its children, and those that it has reaped."""
    total = 0.0
    for process in tree(pid):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
            if process.pid == pid:
                total += times.children_user + times.children_system
    return total


def private_mib(process: psutil.Process) -> float:
    """Memory that only this process has."""
    return float(process.memory_full_info().uss) / 2**20


class Files:
    """The certificates, and both configurations."""

    def __init__(self, directory: Path, count: int) -> None:
        self.directory, self.count = directory, count
        self.port, self.backend_port = _free_ports(2)
        authority = Authority.root("large CA")
        self.ca = authority.write(directory / "ca.pem")
        self.names = [f"app{number}.example.com" for number in range(count)]
        for name in self.names:
            self._write(f"{name}.pem", authority.issue(LeafSpec(name, dns=(name,))))
        self._write("machine.pem", authority.client("machine"))
        self._write("client.pem", authority.client("client"))
        self.relay, self.haproxy = directory / "relay.toml", directory / "haproxy.cfg"
        self.write_relay(30)
        self._write_haproxy()

    def _write(self, name: str, leaf: Leaf) -> None:
        leaf.write(self.directory / name)

    def write_relay(self, linger_s: int) -> None:
        """Another `linger_s` is a change of settings."""
        routes = "".join(
            f'[[listener.route]]\nsni = ["{name}"]\npool = "pool{number}"\n'
            f'certificate = "{name}.pem"\nprivate_key = "{name}.pem"\nclient_ca = "ca.pem"\n'
            for number, name in enumerate(self.names)
        )
        pools = "".join(
            f'[pool.pool{number}]\nmachine_certificate = "machine.pem"\n'
            f'machine_key = "machine.pem"\nbackend_ca = "ca.pem"\n'
            f'[[pool.pool{number}.backend]]\nroute = "w"\n'
            f'address = "127.0.0.1:{self.backend_port}"\nname = "{name}"\n'
            for number, name in enumerate(self.names)
        )
        self.relay.write_text(
            f'[relay]\nworkers = {WORKERS}\n{_USER}[admin]\nlisten = "127.0.0.1:0"\n'
            f'[log]\naccess = ""\n[timeouts]\nlinger_s = {linger_s}\n'
            f'[[listener]]\nname = "https"\nlisten = ["127.0.0.1:{self.port}"]\n{routes}{pools}'
        )

    def _write_haproxy(self) -> None:
        here = self.directory
        (here / "certificates.txt").write_text(
            "".join(f"{here}/{name}.pem {name}\n" for name in self.names)
        )
        (here / "routes.map").write_text(
            "".join(f"{name} pool{number}\n" for number, name in enumerate(self.names))
        )
        pools = "".join(
            f"backend pool{number}\n  server w 127.0.0.1:{self.backend_port} ssl verify required"
            f" ca-file {here}/ca.pem crt {here}/machine.pem verifyhost {name} sni str({name})\n"
            for number, name in enumerate(self.names)
        )
        self.haproxy.write_text(
            f"global\n  nbthread {WORKERS}\n  maxconn 4000\n"
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 300s\n"
            "  timeout server 300s\n"
            f"frontend https\n  bind 127.0.0.1:{self.port} ssl crt-list {here}/certificates.txt"
            f" ca-file {here}/ca.pem verify required strict-sni\n"
            f"  use_backend %[ssl_fc_sni,map({here}/routes.map)]\n{pools}"
        )

    def serves(self) -> bool:
        """Whether a client's handshake with the last route succeeds."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.load_cert_chain(self.directory / "client.pem")
        with contextlib.suppress(OSError):
            sock = socket.create_connection(("127.0.0.1", self.port), 5)
            with context.wrap_socket(sock, server_hostname=self.names[-1]):
                return True
        return False


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


@contextlib.contextmanager
def started(command: list[str], files: Files) -> Iterator[tuple[int, Cost]]:
    """A gateway that runs; its pid, and what it cost until it served."""
    with (files.directory / "gateway.log").open("ab") as log:
        started_at = time.monotonic()
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(f"{command[0]} to serve", files.serves)
            yield process.pid, Cost(time.monotonic() - started_at, cpu_s(process.pid))
        finally:
            with contextlib.suppress(psutil.Error):
                for each in reversed(tree(process.pid)):
                    each.send_signal(signal.SIGTERM)
            process.wait(30)


def measure_relay(files: Files) -> dict[str, str]:
    """Check, start, reload, memory, status and a scrape of relay."""
    relay = [sys.executable, "-m", "relay"]
    config = ["--config", str(files.relay)]
    found = {"check": str(run([*relay, "check", *config]))}
    with started([*relay, "start", *config], files) as (pid, cost):
        found["start"] = str(cost)
        endpoints = files.directory / "run" / "endpoints.json"
        wait_for("endpoints.json", endpoints.exists)
        found["reload of nothing"] = str(run([*relay, "reload", *config]))
        files.write_relay(31)
        before_s = cpu_s(pid)
        found["reload"] = str(run([*relay, "reload", *config]))
        found["reload, CPU of the relay"] = f"{cpu_s(pid) - before_s:.2f} s"
        found["status"] = str(run([*relay, "status", *config]))
        admin = json.loads(endpoints.read_text())["admin"]
        before_s, started_at = cpu_s(pid), time.monotonic()
        with urllib.request.urlopen(f"http://{admin}/metrics", timeout=PATIENCE_S) as reply:
            text = reply.read()
        took = Cost(time.monotonic() - started_at, cpu_s(pid) - before_s)
        lines = len(text.splitlines())
        found["scrape"] = f"{took}, {len(text) / 1e6:.1f} MB, {lines} lines"
        found |= _memory(pid)
    return found


def measure_haproxy(files: Files) -> dict[str, str]:
    """Check, start, reload and memory of HAProxy in master-worker mode."""
    haproxy = [_HAPROXY, "-f", str(files.haproxy)]
    found = {"check": str(run([*haproxy, "-c"]))}
    with started([*haproxy, "-W"], files) as (pid, cost):
        found["start"] = str(cost)
        workers = {each.pid for each in tree(pid)[1:]}
        before_s, started_at = cpu_s(pid), time.monotonic()
        os.kill(pid, signal.SIGUSR2)

        def replaced() -> bool:
            return bool({each.pid for each in tree(pid)[1:]} - workers) and files.serves()

        wait_for("HAProxy's new worker", replaced)
        found["reload"] = str(Cost(time.monotonic() - started_at, cpu_s(pid) - before_s))
        found |= _memory(pid)
    return found


def _memory(pid: int) -> dict[str, str]:
    processes = tree(pid)
    private = ", ".join(f"{private_mib(each):.0f}" for each in processes)
    shares = sum(each.memory_full_info().pss for each in processes) / 2**20
    return {"private MiB of each process": private, "all together (PSS)": f"{shares:.0f} MiB"}


@click.command()
@click.option("--count", type=click.IntRange(1, 5000), default=500, help="Routes and backends.")
def main(count: int) -> None:
    """Measure relay and HAProxy with many routes and backends."""
    with tempfile.TemporaryDirectory(prefix="relay-large-") as directory:
        files = Files(Path(directory), count)
        for name, measure in (("relay", measure_relay), ("haproxy", measure_haproxy)):
            if name == "haproxy" and not Path(_HAPROXY).exists():
                click.echo("haproxy: not installed")
                continue
            click.echo(f"{name}, {count} routes, {count} pools with one backend")
            for what, figure in measure(files).items():
                click.echo(f"  {what}: {figure}")


if __name__ == "__main__":
    main()
