"""HAProxy and nginx, as `bench.endurance` reloads them beside the relay.

Never: leaves a process behind.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import psutil

from bench.endurance_excuses import Excuses
from bench.endurance_log import AccessLog
from bench.gateways import GATEWAYS, Place
from bench.running import Running


class OtherGateway:
    """HAProxy with a master process, or nginx; both reload by a signal."""

    def __init__(self, name: str, place: Place) -> None:
        gateway = GATEWAYS[name]
        if name == "haproxy":
            gateway = replace(
                gateway, command=lambda program, file: [program, "-W", "-db", "-f", str(file)]
            )
        self.name = name
        self.excuses = Excuses()
        self._running = Running(gateway, place)
        self.port = self._running.port
        self._signal = signal.SIGUSR2 if name == "haproxy" else signal.SIGHUP

    def reload(self) -> None:
        """As its manual says. There is no answer to wait for."""
        os.kill(self._running.pids()[0], self._signal)

    def processes(self) -> dict[str, list[psutil.Process]]:
        """All processes of it."""
        first, *others = self._running.pids()
        return {
            "supervisor": [psutil.Process(first)],
            "workers": [psutil.Process(pid) for pid in others if psutil.pid_exists(pid)],
        }

    def logged(self) -> AccessLog:
        """It writes no log here."""
        return AccessLog()

    def stop(self) -> None:
        """Stop it and its children."""
        self._running.stop()
