"""An mTLS backend that sends back what it gets: `python -m bench.echo_backend PKI 0`.

It prints its port, which may be 0 before, and ends when stdin ends.

Never: outlives its harness.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import sys
from pathlib import Path


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, ssl.SSLError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def serve(pki: Path, port: int) -> None:
    """Serve until stdin ends."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(pki / "ca.crt"))
    context.load_cert_chain(pki / "backend.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    server = await asyncio.start_server(_echo, "127.0.0.1", port, ssl=context, backlog=1024)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    over = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), over.set)
    await over.wait()
    os._exit(0)  # its sessions end with it


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
