"""`python -m bench.renewals`: renews a certificate many times under load, and counts.

Long transfers and new handshakes go through a relay while its certificate is renewed,
again and again. It prints how many were lost, how soon clients saw each certificate,
and how memory and open files grew. It ends with 1 if anything was lost.

Never: measures the cost of a session (`python -m bench` does).
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import secrets
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import click
import psutil

from relay.demo.ca import Authority, LeafSpec
from relay.supervisor.control_client import ask

NAME = "app.example.com"
PATIENCE_S = 30.0
RECORD_BYTES = 4096
PAUSE_S = 0.02  # between two records of a long transfer

CONFIG = """
[relay]
workers = 2
watch_s = {watch_s}
state_dir = "run"
user = "{user}"
[admin]
listen = ""
[log]
access = ""
[[listener]]
name = "https"
listen = ["127.0.0.1:0"]
[[listener.route]]
sni = ["{name}"]
pool = "main"
certificate = "gateway.pem"
private_key = "gateway.key"
client_ca = "ca.pem"
[pool.main]
machine_certificate = "machine.pem"
machine_key = "machine.key"
backend_ca = "ca.pem"
[[pool.main.backend]]
route = "w1"
address = "127.0.0.1:{port}"
name = "{name}"
"""


@dataclass
class Result:
    """What was seen."""

    transfers: int = 0
    bytes_echoed: int = 0
    handshakes: int = 0
    failures: list[str] = field(default_factory=list)
    seen_after_s: list[float] = field(default_factory=list)


class Pki:
    """The files of the relay, of its backend and of its clients, in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority.root("Renewal CA")
        self.authority.write(directory / "ca.pem")
        self.issue("machine", purposes=("client",))
        self.issue("client", purposes=("client",))
        self.issue("backend", dns=(NAME,), purposes=("server",))
        self.renew()

    def issue(self, name: str, **spec: object) -> int:
        """Write a certificate and its key, each in one step. Returns the serial."""
        leaf = self.authority.issue(LeafSpec(name, **spec))  # type: ignore[arg-type]
        new, key = self.directory / f"{name}.pem.new", self.directory / f"{name}.key.new"
        leaf.write(new, key)
        key.rename(self.directory / f"{name}.key")
        new.rename(self.directory / f"{name}.pem")
        return leaf.certificate.serial_number

    def renew(self) -> int:
        """Another certificate of the relay."""
        return self.issue("gateway", dns=(NAME,), purposes=("server",))

    def context(self, purpose: ssl.Purpose, name: str) -> ssl.SSLContext:
        """For the clients, and for the backend."""
        context = ssl.create_default_context(purpose, cafile=str(self.directory / "ca.pem"))
        context.load_cert_chain(self.directory / f"{name}.pem", self.directory / f"{name}.key")
        context.verify_mode = ssl.CERT_REQUIRED
        return context


def run_backend(pki: Pki, announce: Callable[[int], None]) -> None:
    """Echo until the process is ended."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except (OSError, ssl.SSLError):
            pass
        writer.close()

    async def serve() -> None:
        context = pki.context(ssl.Purpose.CLIENT_AUTH, "backend")
        server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=context, backlog=512)
        announce(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


class Load:
    """Long transfers, and handshakes one after the other."""

    def __init__(self, pki: Pki, port: int, result: Result) -> None:
        self.context = pki.context(ssl.Purpose.SERVER_AUTH, "client")
        self.port = port
        self.result = result
        self.stopped = False

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A client that has done its handshake."""
        return await asyncio.wait_for(
            asyncio.open_connection("127.0.0.1", self.port, ssl=self.context, server_hostname=NAME),
            PATIENCE_S,
        )

    async def serial(self) -> int:
        """The certificate that a new client sees."""
        _, writer = await self.connect()
        peer = writer.get_extra_info("ssl_object").getpeercert()
        writer.close()
        return int(peer["serialNumber"], 16)

    async def transfer(self, ready: asyncio.Semaphore) -> None:
        """Send bytes and compare what comes back, until stopped."""
        try:
            reader, writer = await self.connect()
            ready.release()
            while not self.stopped:
                sent = secrets.token_bytes(RECORD_BYTES)
                writer.write(sent)
                if await asyncio.wait_for(reader.readexactly(RECORD_BYTES), PATIENCE_S) != sent:
                    self.result.failures.append("a transfer got other bytes than it sent")
                self.result.bytes_echoed += RECORD_BYTES
                await asyncio.sleep(PAUSE_S)
            writer.close()
            self.result.transfers += 1
        except (OSError, EOFError, TimeoutError) as error:
            self.result.failures.append(f"a transfer ended: {error!r}")

    async def handshakes(self) -> None:
        """One client after the other, until stopped."""
        while not self.stopped:
            try:
                reader, writer = await self.connect()
                writer.write(b"hello")
                if await asyncio.wait_for(reader.readexactly(5), PATIENCE_S) != b"hello":
                    self.result.failures.append("a short session got other bytes than it sent")
                writer.close()
                self.result.handshakes += 1
            except (OSError, EOFError, TimeoutError) as error:
                self.result.failures.append(f"a handshake failed: {error!r}")


def usage(family: dict[str, psutil.Process]) -> dict[str, tuple[int, int]]:
    """KiB of memory of its own, and open files, of each process."""
    return {
        name: (process.memory_full_info().uss // 1024, process.num_fds())
        for name, process in family.items()
    }


async def measure(
    pki: Pki, port: int, family: dict[str, psutil.Process], renewals: int, transfers: int
) -> tuple[Result, list[dict[str, tuple[int, int]]]]:
    """Renew again and again. Returns the usage at a tenth, at a half and at the end."""
    result = Result()
    load, ready, tasks = Load(pki, port, result), asyncio.Semaphore(0), []
    for _ in range(transfers):
        tasks.append(asyncio.create_task(load.transfer(ready)))
        await asyncio.wait_for(ready.acquire(), PATIENCE_S)
    tasks.append(asyncio.create_task(load.handshakes()))
    seen = []
    for number in range(1, renewals + 1):
        serial, since = pki.renew(), time.monotonic()
        while await load.serial() != serial:
            if time.monotonic() - since > PATIENCE_S:
                result.failures.append("a renewed certificate was not seen")
                break
            await asyncio.sleep(0.02)
        result.seen_after_s.append(time.monotonic() - since)
        if number in (renewals // 10, renewals // 2, renewals):
            seen.append(usage(family))
            print(f"{number} renewals: {seen[-1]}, failures: {len(result.failures)}", flush=True)
    load.stopped = True
    await asyncio.gather(*tasks)
    return result, seen


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--renewals", default=1000, show_default=True)
@click.option("--transfers", default=100, show_default=True)
@click.option("--watch-s", default=0.2, show_default=True, help="relay.watch_s")
def main(renewals: int, transfers: int, watch_s: float) -> None:
    """Renew a certificate many times under load."""
    with tempfile.TemporaryDirectory(prefix="relay-renewals-") as name:
        directory = Path(name)
        pki = Pki(directory)
        receive, send = multiprocessing.Pipe(duplex=False)
        backend = multiprocessing.get_context("fork").Process(
            target=run_backend, args=(pki, send.send), daemon=True
        )
        backend.start()
        user = psutil.Process().username()
        text = CONFIG.format(watch_s=watch_s, user=user, name=NAME, port=receive.recv())
        (directory / "relay.toml").write_text(text)
        command = [sys.executable, "-m", "relay", "start", "--config", "relay.toml"]
        with (directory / "log").open("wb") as log:
            relay = subprocess.Popen(command, cwd=directory, stdout=log, stderr=log)
        try:
            status = _wait_for_status(directory / "run", relay)
            port = int(status["listeners"]["https"][0].rpartition(":")[2])
            family = {"supervisor": psutil.Process(relay.pid)} | {
                f"worker {each['slot']}": psutil.Process(each["pid"]) for each in status["workers"]
            }
            result, seen = asyncio.run(measure(pki, port, family, renewals, transfers))
            after = ask(directory / "run", "status", PATIENCE_S)
        finally:
            relay.send_signal(signal.SIGQUIT)
            relay.wait(PATIENCE_S)
            backend.kill()
        _report(result, seen, watch_s)
        same = [each["pid"] for each in after["workers"]] == [
            each["pid"] for each in status["workers"]
        ]
        print(f"the same processes and generation {after['generation']}: {same}")
        if result.failures or not same:
            print((directory / "log").read_text()[-4000:])
            print("\n".join(result.failures[:20]))
            sys.exit(1)


def _wait_for_status(state_dir: Path, relay: subprocess.Popen[bytes]) -> dict[str, Any]:
    until = time.monotonic() + PATIENCE_S
    while True:
        if (state_dir / "endpoints.json").exists():
            return ask(state_dir, "status", PATIENCE_S)
        if relay.poll() is not None or time.monotonic() > until:
            raise click.ClickException("the relay did not start")
        time.sleep(0.05)


def _report(result: Result, seen: list[dict[str, tuple[int, int]]], watch_s: float) -> None:
    after = sorted(result.seen_after_s)
    print(
        f"{len(after)} renewals; {result.transfers} transfers ended as they should, after"
        f" {result.bytes_echoed >> 20} MiB; {result.handshakes} short sessions;"
        f" lost or changed: {len(result.failures)}"
    )
    print(
        f"seen by a new client after {median(after):.2f} s (median), {after[-1]:.2f} s (longest);"
        f" 2 x watch_s + 1 s is {2 * watch_s + 1:.2f} s"
    )
    for name in seen[0]:
        steps = ", ".join(f"{one[name][0]} KiB and {one[name][1]} files" for one in seen)
        print(f"{name}: {steps} (at a tenth, at a half, at the end)")


if __name__ == "__main__":
    os.environ.pop("RELAY_CONFIG", None)
    main()
