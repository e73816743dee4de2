"""Tells systemd about readiness, reloads and the watchdog: see sd_notify(3).

When the manager's socket is full, a message is sent again later: if READY=1 were lost,
systemd would end the start at its timeout. A message that is out of date by then is
dropped.

Never: fails or waits. The relay serves even if the service manager does not listen.
"""

from __future__ import annotations

import os
import socket
import time
from array import array
from collections.abc import MutableMapping, Sequence

RETRY_S = 0.1
LONGEST_RETRY_S = 10.0  # when the manager is gone
_KEEP_ALIVE = "WATCHDOG=1"
_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """Sends messages to $NOTIFY_SOCKET; without that variable it does nothing.

    Removes the variables from the environment, so that no child sends in the relay's
    name. They stay in `environment`, for the next version of the program.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        self.environment = {name: environment.pop(name, "") for name in _VARIABLES}
        address, watchdog_us, watchdog_pid = self.environment.values()
        self._socket: socket.socket | None = None
        # "@" is the zero byte of an abstract socket. Other kinds are for virtual
        # machines.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        if address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        ours = watchdog_pid in {"", str(os.getpid())}
        # Twice per interval, as sd_watchdog_enabled(3) recommends. Infinity means
        # never.
        self.watchdog_s = (
            int(watchdog_us) / 2e6
            if ours and watchdog_us.isdecimal() and int(watchdog_us) > 0
            else float("inf")
        )
        self._last_keep_alive_at = 0.0
        self._unsent: list[str] = []
        self._retry_s = RETRY_S
        self._retry_at = 0.0

    @property
    def present(self) -> bool:
        """Whether a service manager started this process."""
        return self._socket is not None

    def ready(self, status: str) -> None:
        """The relay serves; this also ends a reload."""
        # systemd must see RELOADING=1 first, if it was not sent yet.
        before = [one for one in self._unsent if one.startswith("RELOADING=1")]
        self._send(f"READY=1\nSTATUS={status}", before)

    def reloading(self) -> None:
        """A reload begins. The time tells this reload from earlier ones."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={now_us}\nSTATUS=reloading")

    def stopping(self, status: str, within_s: float = 0) -> None:
        """The relay drains or stops: let TimeoutStopSec= be at least this time."""
        extend = f"\nEXTEND_TIMEOUT_USEC={round(within_s * 1_000_000)}" if within_s else ""
        self._send(f"STOPPING=1\nSTATUS={status}{extend}")

    @property
    def watchdog_at(self) -> float:
        """When `watchdog` must be called next, CLOCK_MONOTONIC; infinity for never."""
        keep_alive_at = self._last_keep_alive_at + self.watchdog_s
        return min(keep_alive_at, self._retry_at) if self._unsent else keep_alive_at

    def watchdog(self, now: float) -> None:
        """Send a keep-alive when one is due, and unsent messages."""
        if now >= self._last_keep_alive_at + self.watchdog_s:
            self._last_keep_alive_at = now
            if _KEEP_ALIVE not in self._unsent:
                self._unsent.append(_KEEP_ALIVE)
            self._flush(now)
        elif self._unsent and now >= self._retry_at:
            self._flush(now)

    def _send(self, message: str, before: Sequence[str] = ()) -> None:
        """Send a state after the unsent messages in `before`; drop all others."""
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

    def send_files(self, message: str, fds: Sequence[int]) -> bool:
        """Send a message with open files. False if it must be sent again later."""
        if self._socket is None:
            return True
        try:
            # socket.send_fds ignores its address (CPython 3.11).
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
            self._socket.sendmsg([message.encode()], rights, 0, self._address)
        except OSError:  # its queue is full, or the manager is gone for now
            return False
        return True

    def close(self) -> None:
        """Close the socket, after a last try to send."""
        if self._socket is not None:
            self._flush(time.monotonic())
            self._socket.close()
            self._socket = None
