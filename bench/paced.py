"""Traffic at a fixed rate: requests whose latency is measured, and new connections.

Never: waits for an answer before the next request is due. A delay by a slow gateway
counts as latency.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import time
from collections import deque

from OpenSSL import SSL

from bench.job import Job, Tally
from bench.modes import BulkDown, BulkUp, Connects, Idle, Probe, Requests
from bench.traffic import Conn, Traffic


class _Timer:
    """A periodic timerfd; epoll's own timeout has only milliseconds."""

    def __init__(self, rate: float) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.fd: int = self.libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        period = divmod(round(1e9 / rate), 1_000_000_000)
        spec = struct.pack("4l", *period, *period)
        if self.fd < 0 or self.libc.timerfd_settime(self.fd, 0, spec, None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd")
        self.period_s = 1 / rate

    def expirations(self) -> int:
        """How often it has expired since the last call."""
        try:
            return int.from_bytes(os.read(self.fd, 8), "little")
        except BlockingIOError:
            return 0


class Paced(Requests):
    """Requests at a fixed rate over keep-alive connections.

    Latency counts from when a request was due, not from when it was sent.
    """

    def __init__(self, job: Job, context: SSL.Context, epoll: select.epoll) -> None:
        super().__init__(job, context, epoll)
        self.free: deque[Conn] = deque()
        self.due: deque[float] = deque()
        self.timer: _Timer | None = None
        self.next_due_at = 0.0

    def on_unit(self, conn: Conn) -> None:
        """Record the latency; send the request that has waited longest, if any."""
        if self.timer is None:
            super().on_unit(conn)
            return
        self.tally.units += 1
        self.tally.latencies_us.append((time.monotonic() - conn.due_at) * 1e6)
        if self.due:
            conn.due_at = self.due.popleft()
            self.ask(conn)
        else:
            self.rest(conn)
            self.free.append(conn)

    def on_other(self, fd: int) -> None:
        """Send the requests that the timer says are due."""
        if self.timer is None or fd != self.timer.fd:
            return
        for _ in range(self.timer.expirations()):
            self.next_due_at += self.timer.period_s
            if not self.running:
                continue
            if self.free:
                conn = self.free.popleft()
                conn.due_at = self.next_due_at
                self.busy += 1
                conn.working = True
                self.ask(conn)
            else:
                self.due.append(self.next_due_at)

    def measure(self) -> None:
        """Keep the rate for the job's time, then finish what is still due."""
        self.tally = Tally(errors=self.tally.errors, negotiated=self.tally.negotiated)
        self.free.extend(self.conns.values())
        self.running = True
        started_at = self.next_due_at = time.monotonic()
        self.stop_at = started_at + self.job.seconds
        self.timer = _Timer(self.job.rate)
        self.epoll.register(self.timer.fd, select.EPOLLIN)
        self.run(lambda: not self.running and not self.busy and not self.due)
        self.epoll.unregister(self.timer.fd)
        os.close(self.timer.fd)
        self.tally.wall_s = time.monotonic() - started_at


class Flood(Connects):
    """New connections at a fixed rate, at most `connections` at the same time."""

    def __init__(self, job: Job, context: SSL.Context, epoll: select.epoll) -> None:
        super().__init__(job, context, epoll)
        self.timer: _Timer | None = None

    def next(self) -> None:
        """Leave it to the timer, once it runs."""
        if self.timer is None:
            super().next()

    def on_other(self, fd: int) -> None:
        """Open the connections that are due, up to the bound."""
        if self.timer is not None and fd == self.timer.fd:
            for _ in range(self.timer.expirations()):
                if self.running and len(self.conns) < self.job.connections:
                    self.open()

    def measure(self) -> None:
        """Keep the rate for the job's time."""
        self.timer = _Timer(self.job.rate)
        self.epoll.register(self.timer.fd, select.EPOLLIN)
        self.tally = Tally(errors=self.tally.errors, negotiated=self.tally.negotiated)
        self.running = True
        started_at = time.monotonic()
        self.stop_at = started_at + self.job.seconds
        self.run(lambda: not self.running and not self.conns)
        self.epoll.unregister(self.timer.fd)
        os.close(self.timer.fd)
        self.tally.wall_s = time.monotonic() - started_at


class Arrivals(Flood):
    """The same, timed from when a connection was due to its answer."""

    def warm_up(self) -> None:
        """Open a few, one after the other."""
        self.limit = self.job.warm_units
        self.next()
        self.run(lambda: not self.conns)

    def open(self) -> None:
        """Open one that is due now."""
        due_at = time.monotonic()
        super().open()
        next(reversed(self.conns.values())).due_at = due_at

    def on_unit(self, conn: Conn) -> None:
        """Record the latency."""
        if self.timer is not None:
            self.tally.latencies_us.append((time.monotonic() - conn.due_at) * 1e6)
        super().on_unit(conn)


class Lost(Flood):
    """Connections at a fixed rate that are never answered; failures are ignored."""

    def warm_up(self) -> None:
        """Do nothing: a connection would never be answered."""

    def fail(self, conn: Conn, why: str) -> None:  # noqa: ARG002  # any failure
        """Ignore the failure."""
        self.drop(conn)


MODES: dict[str, type[Traffic]] = {
    "requests": Requests,
    "bulk-down": BulkDown,
    "bulk-up": BulkUp,
    "connects": Connects,
    "idle": Idle,
    "paced": Paced,
    "flood": Flood,
    "arrivals": Arrivals,
    "lost": Lost,
    "probe": Probe,
}
