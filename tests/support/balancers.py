"""Real balancers before the relay: HAProxy and nginx's stream module.

Each passes TCP connections on, with a PROXY header.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tests.support.gateway import wait_until
from tests.support.ports import held_port
from tests.support.programs import find

PATIENCE_S = 20
_STREAM = next(
    (
        path
        for path in (
            Path("/usr/lib/nginx/modules/ngx_stream_module.so"),
            Path("/usr/lib64/nginx/modules/ngx_stream_module.so"),
        )
        if path.exists()
    ),
    None,
)


def has_stream() -> bool:
    """Whether nginx is here with its stream module."""
    return find("nginx") is not None and _STREAM is not None


class Balancer:
    """A running balancer on a loopback port; a context manager."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._open = ExitStack()
        self.port: int = self._open.enter_context(held_port())
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """The program and its arguments."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        log = self._open.enter_context((self.directory / "log").open("wb"))
        self._process = process = subprocess.Popen(
            self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )

        def accepts() -> bool:
            assert process.poll() is None, (self.directory / "log").read_text()
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except ConnectionRefusedError:
                return False
            return True

        try:
            wait_until("the balancer accepts", accepts)
        except BaseException:
            process.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(PATIENCE_S)
        self._open.close()


class HaProxy(Balancer):
    """HAProxy in TCP mode; `server` is the address and the options of its server."""

    def __init__(self, directory: Path, server: str) -> None:
        super().__init__(directory)
        (directory / "haproxy.cfg").write_text(
            "global\n  maxconn 200\n"
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 30s\n"
            "  timeout server 30s\n"
            f"listen in\n  bind 127.0.0.1:{self.port}\n  server relay {server}\n"
        )

    def command(self) -> list[str]:
        """In the foreground."""
        return [find("haproxy") or "haproxy", "-db", "-f", str(self.directory / "haproxy.cfg")]


class NginxStream(Balancer):
    """nginx with `proxy_protocol on`: it sends version 1. `server`: one or several."""

    def __init__(self, directory: Path, server: str) -> None:
        super().__init__(directory)
        user = "user root;" if os.geteuid() == 0 else ""
        servers = " ".join(f"server {each};" for each in server.split())
        (directory / "nginx.conf").write_text(
            f"load_module {_STREAM};\n"
            f"daemon off; worker_processes 1; {user}\n"
            f"pid {directory}/nginx.pid; error_log {directory}/error.log;\n"
            "events { worker_connections 256; }\n"
            f"stream {{ upstream relays {{ {servers} }}"
            f" server {{ listen 127.0.0.1:{self.port}; proxy_pass relays;"
            " proxy_protocol on; } }\n"
        )

    def command(self) -> list[str]:
        """In the foreground."""
        file = str(self.directory / "nginx.conf")
        return [find("nginx") or "nginx", "-p", str(self.directory), "-c", file]
