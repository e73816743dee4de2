"""Sends the corpus of 5,121 hellos through relay, nginx and HAProxy, and counts.

Each gateway routes by the server name without TLS of its own, with the same routes and
the same time for a hello. A backend answers the first bytes with its pool's letter, so
the client knows where it has come, and keeps all bytes, so a change would be seen.

The corpus belongs to the tests. It says where each stream has to go, or that no server
could read its hello.

Never: measures time.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

# By name: the type checker does not check the tests.
_tests: Any = importlib.import_module("tests.support.corpus")

AT_ONCE = 128
HELLO_S = 3  # that a gateway waits for the rest of a hello
PATIENCE_S = 12.0
POOLS = tuple(_tests.ROUTES)
_LETTERS = {pool: pool[0].encode() for pool in POOLS}
_POOLS = {letter: pool for pool, letter in _LETTERS.items()}
# The row of each outcome in the table.
OUTCOMES = (
    "routed right",
    "malformed, refused",
    "malformed, passed on",
    "refused, wrongly",
    "misrouted",
    "changed",
    "hung",
)
RIGHT, MALFORMED, PASSED_ON, REFUSED_WRONG, MISROUTED, CHANGED, HUNG = OUTCOMES

_RELAY = """[relay]
workers = 1
state_dir = "{dir}/run"
{user}
[admin]
listen = ""
[log]
access = ""
level = "error"
[timeouts]
hello_s = {hello_s}
[[listener]]
name = "https"
listen = ["127.0.0.1:{port}"]
[[listener.route]]
sni = ["app.example.com"]
mode = "passthrough"
pool = "app"
[[listener.route]]
sni = ["*.wild.example.com"]
mode = "passthrough"
pool = "wild"
[[listener.route]]
mode = "passthrough"
pool = "rest"
"""
_NGINX = """daemon off;
pid {dir}/nginx.pid;
error_log {dir}/error.log crit;
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
events {{ worker_connections 4096; }}
stream {{
    map $ssl_preread_server_name $pool {{
        "~*^app\\.example\\.com\\.?$" 127.0.0.1:{app};
        "~*^[^.]+\\.wild\\.example\\.com\\.?$" 127.0.0.1:{wild};
        default 127.0.0.1:{rest};
    }}
    server {{
        listen 127.0.0.1:{port};
        ssl_preread on;
        preread_timeout {hello_s}s;
        preread_buffer_size 64k;
        proxy_half_close on;
        proxy_pass $pool;
    }}
}}
"""
_HAPROXY = """global
    tune.bufsize 131072
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend gateway
    bind 127.0.0.1:{port}
    tcp-request inspect-delay {hello_s}s
    tcp-request content accept if {{ req.ssl_hello_type 1 }}
    tcp-request content reject
    use_backend app if {{ req.ssl_sni -i -m reg ^app\\.example\\.com\\.?$ }}
    use_backend wild if {{ req.ssl_sni -i -m reg ^[^.]+\\.wild\\.example\\.com\\.?$ }}
    default_backend rest
"""


class Stream(Protocol):
    """What a client sends, and the pool that has to get it; "" if none."""

    parts: tuple[bytes, ...]
    pool: str


class Backends:
    """One server per pool. `got` has what came to each, by the bytes."""

    def __init__(self) -> None:
        self.got: set[tuple[str, bytes]] = set()
        self.ports: dict[str, int] = {}

    async def start(self) -> None:
        """Listen."""
        for pool in POOLS:
            server = await asyncio.start_server(self._serve(pool), "127.0.0.1", 0, backlog=512)
            self.ports[pool] = server.sockets[0].getsockname()[1]

    def _serve(self, pool: str) -> Callable[..., Awaitable[None]]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            data = b""
            with contextlib.suppress(OSError):
                data = await reader.read(1 << 17)
                writer.write(_LETTERS[pool])
                while piece := await reader.read(1 << 17):
                    data += piece
            self.got.add((pool, data))
            writer.close()

        return serve


async def send(port: int, stream: Stream, got: set[tuple[str, bytes]]) -> str:
    """Send one stream, and say how it ended."""
    answer = b""
    try:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.suppress(OSError):
                for part in stream.parts:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0.005)
                answer = await reader.read(1)
                if answer in _POOLS:
                    writer.write_eof()
                    await reader.read()
            writer.close()
    except TimeoutError:
        return HUNG
    pool = _POOLS.get(answer)
    if pool is None:
        return MALFORMED if stream.pool == _tests.REFUSED else REFUSED_WRONG
    if stream.pool == _tests.REFUSED:
        return PASSED_ON
    if pool != stream.pool:
        return MISROUTED
    return RIGHT if (pool, b"".join(stream.parts)) in got else CHANGED


async def run(port: int, backends: Backends) -> Counter[str]:
    """Send the whole corpus."""
    found: Counter[str] = Counter()
    places = asyncio.Semaphore(AT_ONCE)

    async def one(stream: Stream) -> None:
        async with places:
            found[await send(port, stream, backends.got)] += 1

    await asyncio.gather(*(one(stream) for stream in _tests.corpus()))
    return found


def _start(gateway: str, place: Path, values: dict[str, object]) -> subprocess.Popen[bytes]:
    text = {"relay": _RELAY, "nginx": _NGINX, "haproxy": _HAPROXY}[gateway].format(**values)
    for pool in POOLS:
        address = f"127.0.0.1:{values[pool]}"
        if gateway == "relay":
            text += f'[[pool.{pool}.backend]]\nroute = "b"\naddress = "{address}"\n'
        elif gateway == "haproxy":
            text += f"backend {pool}\n    server b {address}\n"
    file = place / f"{gateway}.conf"
    file.write_text(text)
    command = {
        "relay": [sys.executable, "-m", "relay", "start", "--config", str(file)],
        "nginx": ["nginx", "-p", str(place), "-c", str(file)],
        "haproxy": ["haproxy", "-q", "-f", str(file)],
    }[gateway]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def _wait_for(port: int) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return


async def measure(gateway: str) -> Counter[str]:
    """The outcomes of one gateway."""
    backends = Backends()
    await backends.start()
    with tempfile.TemporaryDirectory() as place:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        user = 'user = "root"' if os.geteuid() == 0 else ""
        values = {"dir": place, "user": user, "port": port, "hello_s": HELLO_S, **backends.ports}
        process = _start(gateway, Path(place), values)
        try:
            await asyncio.to_thread(_wait_for, port)
            return await run(port, backends)
        finally:
            process.terminate()
            process.wait(30)


def main() -> None:
    """Print one table."""
    names = sys.argv[1:] or ["relay", "nginx", "haproxy"]
    results = {name: asyncio.run(measure(name)) for name in names}
    print(f"{'':20}", *(f"{name:>9}" for name in names))
    for outcome in OUTCOMES:
        print(f"{outcome:20}", *(f"{results[name][outcome]:9,}" for name in names))
