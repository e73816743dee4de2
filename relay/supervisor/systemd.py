"""Telling systemd how we are: readiness, reloads, and the watchdog (the protocol of sd_notify(3)).

Never: fails. A service manager that does not listen is no reason to stop relaying.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping


class Notifier:
    """Sends to $NOTIFY_SOCKET, and does nothing without one. Takes the variables out of the environment, so that no child speaks for us."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        address = environment.pop("NOTIFY_SOCKET", "")
        watchdog_us = environment.pop("WATCHDOG_USEC", "")
        watchdog_pid = environment.pop("WATCHDOG_PID", "")
        self._socket: socket.socket | None = None
        # "@" stands for the zero byte of an abstract socket; other kinds (vsock) are for virtual machines.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        if address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        ours = watchdog_pid in {"", str(os.getpid())}
        # Twice per interval, as sd_watchdog_enabled(3) recommends. Infinity: no watchdog.
        self.watchdog_s = int(watchdog_us) / 2e6 if ours and watchdog_us.isdecimal() and int(watchdog_us) > 0 else float("inf")
        self._last_sign_at = 0.0

    def ready(self, status: str) -> None:
        """We serve; also ends a reload."""
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """A reload begins; systemd wants to know when, to order it against others."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}\nSTATUS=reloading")

    def stopping(self, status: str) -> None:
        """We are on our way out."""
        self._send(f"STOPPING=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={status}")

    @property
    def watchdog_at(self) -> float:
        """When the next sign of life is due, CLOCK_MONOTONIC; infinity without a watchdog."""
        return self._last_sign_at + self.watchdog_s

    def watchdog(self, now: float) -> None:
        """The sign of life, when one is due."""
        if now >= self.watchdog_at:
            self._last_sign_at = now
            self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError:
            return

    def close(self) -> None:
        """Let go of the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
