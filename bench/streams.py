"""`python -m bench.streams`: every byte of many fast streams is compared.

Client and backend send to each other at once through a relay, in records of many sizes.
Both stop now and then, update their keys, with and without asking the relay for an
update of its own, and half-close when they have sent their part. It ends with 1 if a
byte is wrong, or a connection does not reach its end.

Never: measures the cost of a byte (`python -m bench` does).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import click

from bench.gateways import GATEWAYS, Place
from bench.libssl import Context
from bench.pki import GATEWAY_NAME, Pki, create_pki
from bench.running import Running
from bench.stream_peers import Peer

_GB = 1_000_000_000
_PROGRESS_S = 10.0


@dataclass
class _Totals:
    """Of both ends."""

    compared: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, compared: int, counts: Counter[str], errors: Counter[str]) -> None:
        self.compared += compared
        self.counts += counts
        self.errors += errors


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--gigabytes", type=float, default=100.0, show_default=True)
@click.option("--seconds", type=float, default=0.0, help="Begin no connection after this time.")
@click.option("--connections", type=int, default=16, show_default=True, help="At a time.")
@click.option("--megabytes", type=int, default=64, show_default=True, help="At most, per side.")
@click.option("--seed", type=int, default=1, show_default=True, help="The first connection.")
def main(gigabytes: float, seconds: float, connections: int, megabytes: int, seed: int) -> None:
    """Send many streams through a relay, and compare every byte."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the relay is stopped on the way
    until_at = time.monotonic() + seconds if seconds else float("inf")
    most = megabytes * 1_000_000
    with tempfile.TemporaryDirectory(prefix="streams-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "pki").mkdir(mode=0o755)
        pki = create_pki(directory / "pki")
        backend = _Backend(pki, most)
        try:
            place = Place(directory / "relay", directory / "pki", backend.port, peers="streams")
            with Running(GATEWAYS["relay"], place) as relay:
                context = Context(pki.pem("client"), pki.ca, server=False)
                load = _Load(relay.port, backend, int(gigabytes * _GB), until_at, seed)
                client = Peer(context, most=most, server_name=GATEWAY_NAME, report=load.report)
                began_at = time.monotonic()
                load.begin(client, connections)
                client.run()
                totals = _Totals()
                totals.add(client.compared, client.counts, client.errors)
                totals.add(*backend.stop())
            reasons = _reasons(place.directory / "access.log")
        finally:
            backend.end()
    _print(totals, reasons, time.monotonic() - began_at)
    if totals.errors or not totals.compared:
        sys.exit(1)


class _Backend:
    """The backend's process."""

    def __init__(self, pki: Pki, most: int) -> None:
        fork = multiprocessing.get_context("fork")
        self.compared: Any = fork.Value("q", 0)
        self._pipe, theirs = fork.Pipe()
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = listener.getsockname()[1]
        self._process = fork.Process(target=self._serve, args=(pki, most, listener, theirs))
        self._process.start()
        listener.close()

    def _serve(self, pki: Pki, most: int, listener: socket.socket, pipe: Pipe) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        parent = os.getppid()

        def report(peer: Peer) -> bool:
            self.compared.value = peer.compared
            return os.getppid() == parent and not pipe.poll()

        peer = Peer(Context(pki.pem("backend"), pki.ca, server=True), most=most, report=report)
        peer.listen(listener)
        peer.run()
        pipe.send((peer.compared, peer.counts, peer.errors))

    def stop(self) -> tuple[int, Counter[str], Counter[str]]:
        """Its numbers."""
        self._pipe.send("stop")
        numbers: tuple[int, Counter[str], Counter[str]] = self._pipe.recv()
        return numbers

    def end(self) -> None:
        """Leave no process behind."""
        self._process.join(3)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class _Load:
    """Opens connections, until all bytes are compared or the time is over."""

    def __init__(
        self, port: int, backend: _Backend, wanted: int, until_at: float, number: int
    ) -> None:
        self._port, self._backend, self._wanted = port, backend, wanted
        self._until_at, self._next = until_at, number
        self._progress_at = time.monotonic() + _PROGRESS_S
        self._client: Peer

    def begin(self, client: Peer, connections: int) -> None:
        """Open the first connections; each is followed by another one."""
        self._client = client
        client.on_done = self._open
        for _ in range(connections):
            self._open()

    def _compared(self) -> int:
        return int(self._client.compared + self._backend.compared.value)

    def _open(self) -> None:
        enough = self._compared() >= self._wanted or time.monotonic() >= self._until_at
        if not (enough or self._client.errors):
            self._client.open(self._port, self._next)
            self._next += 1

    def report(self, client: Peer) -> bool:
        """Show the progress. Whether to go on."""
        if time.monotonic() >= self._progress_at:
            self._progress_at += _PROGRESS_S
            print(f"{self._compared() / _GB:.1f} GB compared", flush=True)
        return bool(client.ends)


def _reasons(access_log: Path) -> Counter[str]:
    """How the relay says that sessions ended which did not end well."""
    records = [json.loads(line) for line in access_log.read_text().splitlines()]
    return Counter(
        f"{record['side']} {record['reason']}: {record['detail']}"
        for record in records
        if record["reason"] != "finished"
    )


def _print(totals: _Totals, reasons: Counter[str], seconds: float) -> None:
    parts = [f"{count} {what}" for what, count in sorted(totals.counts.items())]
    print(f"{totals.compared / _GB:.1f} GB compared in {seconds:.0f} s: {', '.join(parts)}")
    for error, count in totals.errors.items():
        print(f"ERROR ({count}): {error}")
    for reason, count in reasons.items() if totals.errors else ():
        print(f"the relay says ({count}): {reason}")


if __name__ == "__main__":
    main()
