"""Foreign programs as clients and backends.

They are curl, openssl s_client, and an nginx in a directory of its own.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.support.gateway import wait_until
from tests.support.pki import Files, Pki
from tests.support.ports import held_port

PATIENCE_S = 20
NAME = "app.example.com"


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip the test where one of the programs is not installed, and say which."""
    missing = [program for program in programs if find(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{' and '.join(missing)} not installed")


looks_into_processes = pytest.mark.skipif(
    os.geteuid() != 0, reason="looks into processes that only root may see"
)


def find(name: str) -> str | None:
    """The path of a program, or None.

    Servers are in /usr/sbin, which the PATH of an ordinary user may lack.
    """
    return shutil.which(
        name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin"))
    )


def program(name: str) -> str:
    """The path of a foreign program.

    Skips the test when the program is not installed.
    """
    path = find(name)
    if path is None:
        pytest.skip(f"{name} not installed")
    return path


def run(
    name: str, *arguments: str | Path, said: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a foreign program to its end, with `said` on stdin.

    Skips the test when the program is not installed.
    """
    return subprocess.run(
        [program(name), *arguments],
        input=said,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def output_of(name: str, *arguments: str | Path, env: dict[str, str] | None = None) -> str:
    """What a foreign program prints; fails the test when the program does."""
    done = run(name, *arguments, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def curl(
    pki: Pki,
    port: int,
    *paths: str,
    files: Files | None = None,
    name: str = NAME,
    options: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    """Ask for `paths`, in this order, over as few connections as curl likes."""
    shown = files or pki.client
    urls = [f"https://{name}:{port}{path}" for path in paths]
    identity = ("--cacert", str(pki.ca), "--cert", str(shown.certificate), "--key", str(shown.key))
    return run(
        "curl",
        "--silent",
        "--show-error",
        "--noproxy",
        "*",
        "--max-time",
        str(PATIENCE_S),
        "--resolve",
        f"{name}:{port}:127.0.0.1",
        *identity,
        *options,
        *urls,
    )


def s_client(
    pki: Pki, port: int, *options: str, files: Files | None, name: str = NAME, said: str = "hello"
) -> tuple[bool, str]:
    """Connect, send a line, wait for its echo, and end.

    Returns whether the echo came, and everything that s_client printed.
    """
    identity = () if files is None else ("-cert", str(files.certificate), "-key", str(files.key))
    server_name = ("-servername", name) if name else ("-noservername",)
    command = [
        program("openssl"),
        "s_client",
        "-connect",
        f"127.0.0.1:{port}",
        "-CAfile",
        str(pki.ca),
        *server_name,
        *identity,
        *options,
    ]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdin is not None
    assert process.stdout is not None
    printed, deadline, word, sent = b"", time.monotonic() + PATIENCE_S, said.encode() + b"\n", False
    while True:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        more = os.read(process.stdout.fileno(), 65536) if ready else b""
        printed += more
        echoed = b"---\n" in printed and b"\n" + word in printed
        if not sent and b"Verify return code" in printed:
            sent = True
            with contextlib.suppress(BrokenPipeError):
                os.write(process.stdin.fileno(), word)
        if not more or echoed:
            break
    if echoed:
        process.stdin.close()
        printed += process.stdout.read()
    else:
        process.stdin.close()
        process.kill()
    process.stdout.close()
    process.wait(PATIENCE_S)
    return echoed, printed.decode(errors="replace")


class Nginx:
    """A mutual-TLS HTTP/1.1 and HTTP/2 backend.

    It answers with its name, the path, the HTTP version, and the subject of the client
    certificate.
    """

    def __init__(
        self,
        directory: Path,
        pki: Pki,
        *,
        client_ca: Path | None = None,
        files: Files | None = None,
    ) -> None:
        self.directory = directory
        self._client_ca = client_ca or pki.ca
        self._files = files or pki.backend
        self._open = ExitStack()
        self.port = self._open.enter_context(held_port())
        self.address = f"127.0.0.1:{self.port}"
        (directory / "nginx.conf").write_text(self._configuration())
        self._process: subprocess.Popen[bytes] | None = None

    def _configuration(self) -> str:
        at = self.directory
        temporary = "".join(
            f"{kind}_temp_path {at}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;" if os.geteuid() == 0 else ""  # only root may read keys and directory
        return f"""
daemon off; master_process on; worker_processes 1; {user}
pid {at}/nginx.pid; error_log {at}/error.log info;
events {{ worker_connections 256; }}
http {{
  access_log off; {temporary}
  server {{
    listen 127.0.0.1:{self.port} ssl http2;
    ssl_certificate {self._files.certificate}; ssl_certificate_key {self._files.key};
    ssl_client_certificate {self._client_ca}; ssl_verify_client on; ssl_protocols TLSv1.2 TLSv1.3;
    default_type text/plain;
    location /slow/ {{ alias {at}/; limit_rate 75k; }}
    location / {{ return 200 "nginx $request_uri $server_protocol $ssl_client_s_dn\\n"; }}
  }}
}}
"""

    def log(self) -> str:
        """Its error log."""
        file = self.directory / "error.log"
        return file.read_text() if file.exists() else ""

    def __enter__(self) -> Self:
        self._process = process = subprocess.Popen(
            [program("nginx"), "-p", str(self.directory), "-c", str(self.directory / "nginx.conf")],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def accepts() -> bool:
            assert process.poll() is None, self.log()
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except ConnectionRefusedError:
                return False
            return True

        try:
            wait_until("nginx accepts", accepts, detail=self.log)
        except BaseException:
            process.kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        if error is not None:
            print(self.log())
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(PATIENCE_S)
        self._open.close()
