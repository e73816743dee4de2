"""Many clients that never finish their handshake.

`python -m bench.strangers` reads a `Strangers` as JSON from stdin, prints a `ready`
line and waits for another line. It then makes connections until `seconds` are over or a
line comes or stdin ends. Then it prints a `done` line with counts.

Never: makes more than `most` connections; outlives its harness.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import socket
import struct
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass

from bench.children import Child
from bench.hellos import make_hello

# Several, so that a limit per client address does not help the gateway.
_SOURCES = [f"127.0.1.{number}" for number in range(1, 17)]
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: no TIME_WAIT on either side
_IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h
_TICK_S = 0.005
_SPARE_FILES = 200


@dataclass(frozen=True, slots=True)
class Strangers:
    """`rate` new ones a second; with `keep`, that many are open at the same time."""

    address: str
    port: int
    name: str
    hello: str
    rate: float
    seconds: float
    keep: int = 0
    most: int = 50_000


def hello_of(kind: str, name: str) -> bytes:
    """What they send: nothing, a hello, or one that gets a HelloRetryRequest."""
    if kind == "silent":
        return b""
    return make_hello(name, share=kind != "retry")


class Crowd:
    """The strangers' connections, in one epoll loop."""

    def __init__(self, job: Strangers) -> None:
        self._job = job
        self._hello = hello_of(job.hello, job.name)
        self._epoll = select.epoll()
        self._open: dict[int, socket.socket] = {}  # the oldest first
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._most_open = max(1, hard - _SPARE_FILES)
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        """Make connections until the time is over or stdin has something."""
        job = self._job
        began_at = time.monotonic()
        until_at = began_at + job.seconds
        self._epoll.register(sys.stdin.fileno(), select.EPOLLIN)
        due = 0.0
        last_at = began_at
        while (now := time.monotonic()) < until_at:
            due = min(due + (now - last_at) * job.rate, job.rate)
            last_at = now
            while due >= 1 and self.counts["opened"] < job.most:
                if job.keep and len(self._open) >= job.keep:
                    break
                due -= 1
                self._connect()
            for fd, mask in self._epoll.poll(_TICK_S):
                if fd == sys.stdin.fileno():
                    return
                self._on_event(fd, mask)

    def _connect(self) -> None:
        if len(self._open) >= self._most_open:
            # The gateway closes none, and this process has no more descriptors.
            self._drop(next(iter(self._open)), "given up")
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        sock.bind((_SOURCES[self.counts["opened"] % len(_SOURCES)], 0))
        self.counts["opened"] += 1
        sock.connect_ex((self._job.address, self._job.port))
        self._open[sock.fileno()] = sock
        self._epoll.register(sock.fileno(), select.EPOLLOUT)

    def _on_event(self, fd: int, mask: int) -> None:
        sock = self._open[fd]
        try:
            if mask & select.EPOLLOUT:
                self._epoll.modify(fd, select.EPOLLIN)
                if self._hello:
                    sock.send(self._hello)
            elif sock.recv(65536):
                self.counts["answered"] += 1
            else:
                self._drop(fd, "closed by the gateway")
        except OSError as error:
            self._drop(fd, error.strerror or "failed")

    def _drop(self, fd: int, why: str) -> None:
        self.counts[why] += 1
        self._open.pop(fd).close()

    def close(self) -> None:
        """Close all connections."""
        for sock in self._open.values():
            sock.close()
        self._open.clear()
        self._epoll.close()


class StrangersChild(Child):
    """The strangers' process, for the harness."""

    def __init__(self, job: Strangers, *, cpus: frozenset[int] | None = None) -> None:
        super().__init__("bench.strangers", cpus=cpus)
        self.tell(asdict(job))
        self.hear(60)

    def go(self) -> None:
        """Start the connections."""
        self.tell({})

    def stop(self) -> dict[str, int]:
        """End them; returns how many there were, by how they ended."""
        with contextlib.suppress(BrokenPipeError):  # its time is over
            self.tell({})
        counts: dict[str, int] = self.hear(30)["counts"]
        return counts


def main() -> None:
    """Run one job."""
    job = Strangers(**json.loads(sys.stdin.readline()))
    os.nice(5)
    crowd = Crowd(job)
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps({"event": "ready"}), flush=True)
        if not sys.stdin.readline():
            return
        crowd.run()
        print(json.dumps({"event": "done", "counts": dict(crowd.counts)}), flush=True)
        crowd.close()


if __name__ == "__main__":
    main()
