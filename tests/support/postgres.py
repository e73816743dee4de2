"""A real PostgreSQL server that requires client certificates, and its clients."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from tests.support.gateway import wait_until
from tests.support.pki import Files, Pki
from tests.support.ports import held_port
from tests.support.programs import find

PATIENCE_S = 30
USER = "alice"
HBA = "hostssl all all 127.0.0.0/8 trust clientcert=verify-ca\n"


def _tool(name: str) -> str | None:
    """A server's program: Debian does not put it into PATH."""
    found = [*Path("/usr/lib/postgresql").glob(f"*/bin/{name}")]
    return str(max(found)) if found else find(name)


needs_postgres = pytest.mark.skipif(
    _tool("postgres") is None or _tool("initdb") is None or find("psql") is None,
    reason="postgresql not installed",
)


class Postgres:
    """A running server. `tls` turns TLS on."""

    def __init__(self, pki: Pki, *, files: Files | None = None, tls: bool = True) -> None:
        self._open = ExitStack()
        self.directory = Path(self._open.enter_context(tempfile.TemporaryDirectory()))
        self.port = self._open.enter_context(held_port())
        self.address = f"127.0.0.1:{self.port}"
        # It refuses to run as root.
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            entry = pwd.getpwnam("postgres")
            self._as = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
            os.chown(self.directory, entry.pw_uid, entry.pw_gid)
        data, shown = self.directory / "data", files or pki.backend
        self._run("initdb", "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync")
        for name, file in (("crt", shown.certificate), ("key", shown.key), ("ca", pki.ca)):
            copy = data / f"server.{name}"
            shutil.copy(file, copy)
            copy.chmod(0o600)
            if self._as:
                os.chown(copy, self._as["user"], self._as["group"])
        (data / "pg_hba.conf").write_text(HBA if tls else "host all all 127.0.0.0/8 trust\n")
        self._command = [
            _tool("postgres") or "postgres",
            *("-D", str(data), "-h", "127.0.0.1", "-p", str(self.port), "-F", "-k", ""),
            *("-c", f"ssl={'on' if tls else 'off'}", "-c", "ssl_cert_file=server.crt"),
            *("-c", "ssl_key_file=server.key", "-c", "ssl_ca_file=server.ca"),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def _run(self, name: str, *arguments: str | Path) -> None:
        done = subprocess.run(
            [_tool(name) or name, *arguments],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            cwd=self.directory,
            **self._as,
        )
        assert done.returncode == 0, done.stderr

    def log(self) -> str:
        """What it has said."""
        return (self.directory / "log").read_text()

    def __enter__(self) -> Self:
        with (self.directory / "log").open("wb") as log:
            self._process = process = subprocess.Popen(
                self._command, stderr=log, stdout=log, cwd=self.directory, **self._as
            )

        def ready() -> bool:
            assert process.poll() is None, self.log()
            return "ready to accept connections" in self.log()

        wait_until("PostgreSQL accepts", ready, detail=self.log)
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(PATIENCE_S)
        self._open.close()


class OldServer:
    """Answers SSLRequest with these bytes; after "S" it does TLS, and echoes."""

    def __init__(self, pki: Pki, answer: bytes) -> None:
        self._answer = answer
        self._context = context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki.backend.certificate, pki.backend.key)
        context.load_verify_locations(pki.ca)
        context.verify_mode = ssl.CERT_REQUIRED
        self.heard: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock, contextlib.suppress(OSError):
                sock.settimeout(PATIENCE_S)
                self.heard.append(sock.recv(100))
                sock.sendall(self._answer)
                if self._answer == b"S":
                    with self._context.wrap_socket(sock, server_side=True) as tls:
                        while data := tls.recv(65536):
                            tls.sendall(data)


def settings(pki: Pki, port: int, files: Files | None = None, **more: str) -> dict[str, str]:
    """What a libpq client connects with, by libpq's names."""
    shown = files or pki.client
    return {
        "host": "app.example.com",
        "hostaddr": "127.0.0.1",
        "port": str(port),
        "user": USER,
        "dbname": "postgres",
        "connect_timeout": "10",
        "sslmode": "verify-full",
        "sslrootcert": str(pki.ca),
        "sslcert": str(shown.certificate),
        "sslkey": str(shown.key),
        **more,
    }


def psql(command: str, **how: str) -> subprocess.CompletedProcess[str]:
    """Run a command in psql."""
    line = " ".join(f"{key}='{value}'" for key, value in how.items())
    return subprocess.run(
        [find("psql") or "psql", "-X", "-A", "-t", "-d", line, "-c", command],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def raw(port: int, data: bytes) -> socket.socket:
    """A client that sends bytes without TLS."""
    sock = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    sock.sendall(data)
    return sock


def answer_to(sock: socket.socket) -> bytes:
    """Everything that comes until the other side closes."""
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := sock.recv(4096):
            answer += chunk
    return answer
