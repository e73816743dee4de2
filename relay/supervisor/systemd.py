"""Telling systemd how we are: readiness, reloads, and the watchdog (the protocol of sd_notify(3)).

A manager that has no room for a message at the moment gets it later: a start that it does not hear
of is ended at its timeout. What it has not taken yet and is no longer true is not sent any more.

Never: fails or waits. A service manager that does not listen is no reason to stop relaying.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping, Sequence

RETRY_S = 0.1
LONGEST_RETRY_S = 10.0  # for a manager that is not there at all
_SIGN = "WATCHDOG=1"


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
        self.watchdog_s = (
            int(watchdog_us) / 2e6
            if ours and watchdog_us.isdecimal() and int(watchdog_us) > 0
            else float("inf")
        )
        self._last_sign_at = 0.0
        self._unsent: list[str] = []
        self._retry_s = RETRY_S
        self._retry_at = 0.0

    def ready(self, status: str) -> None:
        """We serve; also ends a reload."""
        # A manager that waits for RELOADING=1 must have it first.
        kept = [one for one in self._unsent if one.startswith("RELOADING=1")]
        self._send(f"READY=1\nSTATUS={status}", kept)

    def reloading(self) -> None:
        """A reload begins; systemd wants to know when, to order it against others."""
        self._send(
            f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}\nSTATUS=reloading"
        )

    def stopping(self, status: str) -> None:
        """We are on our way out."""
        self._send(f"STOPPING=1\nSTATUS={status}")

    @property
    def watchdog_at(self) -> float:
        """When `watchdog` has something to do next, CLOCK_MONOTONIC; infinity for never."""
        sign_at = self._last_sign_at + self.watchdog_s
        return min(sign_at, self._retry_at) if self._unsent else sign_at

    def watchdog(self, now: float) -> None:
        """The sign of life when one is due, and what the manager did not take before."""
        if now >= self._last_sign_at + self.watchdog_s:
            self._last_sign_at = now
            if _SIGN not in self._unsent:
                self._unsent.append(_SIGN)
            self._flush(now)
        elif self._unsent and now >= self._retry_at:
            self._flush(now)

    def _send(self, message: str, before: Sequence[str] = ()) -> None:
        """Send a state after those `before` it; others that were not sent are out of date."""
        self._unsent = [*before, message]
        self._flush(time.monotonic())

    def _flush(self, now: float) -> None:
        if self._socket is None:
            self._unsent.clear()
            return
        while self._unsent:
            try:
                self._socket.sendto(self._unsent[0].encode(), self._address)
            except BlockingIOError:
                self._retry_at = now + RETRY_S
                return
            except OSError:
                self._retry_at = now + self._retry_s
                self._retry_s = min(2 * self._retry_s, LONGEST_RETRY_S)
                return
            self._unsent.pop(0)
            self._retry_s = RETRY_S

    def close(self) -> None:
        """Let go of the socket, after a last try."""
        if self._socket is not None:
            self._flush(time.monotonic())
            self._socket.close()
            self._socket = None
