"""The part of systemd that keeps the sockets of a service over a restart.

Never: opens a socket of the service itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import threading
from pathlib import Path

from bench.passed_files import PASS


class FdStore:
    """The part of systemd that keeps the sockets of a service over a restart."""

    def __init__(self, directory: Path) -> None:
        self.address = str(directory / "notify")
        self._stored: dict[str, int] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, fds, _, _ = socket.recv_fds(self._socket, 4096, 16)
                fields = dict(
                    line.split("=", 1) for line in data.decode().splitlines() if "=" in line
                )
                name = fields.get("FDNAME", "")
                if "FDSTOREREMOVE" in fields and name in self._stored:
                    os.close(self._stored.pop(name))
                for fd in fds:
                    if "FDSTORE" in fields and name not in self._stored:
                        # Away from the numbers that a start uses.
                        self._stored[name] = os.dup(fd) if fd > 200 else _far(fd)
                    os.close(fd)

    def wrap(self, command: list[str]) -> tuple[list[str], list[int]]:
        """The command that gets what is stored, and the descriptors to pass to it."""
        fds, names = list(self._stored.values()), ":".join(self._stored)
        numbers = ",".join(map(str, fds))
        return [sys.executable, "-c", PASS, numbers, names, *command], fds

    def close(self) -> None:
        """Close everything."""
        self._socket.close()
        for fd in self._stored.values():
            os.close(fd)


def _far(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 200)
