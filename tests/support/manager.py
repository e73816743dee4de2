"""A service manager with a store of file descriptors, as systemd is one.

It has a real notification socket, keeps the descriptors that a service sends, and
passes them to the next start.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import threading

from bench.passed_files import PASS

PATIENCE_S = 90.0


class Manager:
    """The manager of one service; a context manager."""

    def __init__(self, directory):
        self.address = str(directory / "notify")
        self.stored: dict[str, int] = {}
        self.messages = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        with contextlib.suppress(OSError):
            while True:
                data, fds, _, _ = socket.recv_fds(self._socket, 4096, 16)
                if data == b"END=1":
                    return
                self._take(data.decode(), fds)

    def _take(self, message, fds):
        fields = dict(line.split("=", 1) for line in message.splitlines())
        name = fields.get("FDNAME", "")
        if "FDSTORE" in fields:
            [fd] = fds
            if name in self.stored:  # the same socket again; systemd compares them
                os.close(fd)
                return
            # Away from the small numbers, to which they are moved for the service.
            self.stored[name] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 200)
            os.close(fd)
        elif "FDSTOREREMOVE" in fields and name in self.stored:
            os.close(self.stored.pop(name))
        self.messages.append(fields)

    def launch(self, gateway, more=()):
        """Start the service with what is stored; `more` are names and descriptors."""
        passed = [*more, *self.stored.items()]
        for _, fd in passed:
            os.set_inheritable(fd, True)
        numbers = ",".join(str(fd) for _, fd in passed)
        names = ":".join(name for name, _ in passed)
        try:
            gateway.launch(
                sys.executable, "-c", PASS, numbers, names, pass_fds=[fd for _, fd in passed]
            )
        finally:
            for _, fd in passed:
                os.set_inheritable(fd, False)

    def start(self, gateway, more=()):
        """Start it, and wait until it accepts."""
        self.launch(gateway, more)
        gateway.wait_until_it_accepts(PATIENCE_S)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"END=1", self.address)
        self._thread.join(20)
        self._socket.close()
        for fd in self.stored.values():
            os.close(fd)
