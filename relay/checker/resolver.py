"""Looks the backends' host names up repeatedly, and stores the answers for the workers.

A look-up may take as long as the system's resolver likes, so each running look-up has a
thread. A server that does not answer delays no other name. These are the only threads
that the relay has while it serves; everything else runs in the checker's main thread.

When a look-up fails, the last answer stays in use. The failure is logged once, and so
is its end.

Never: makes a worker wait.
Next: `relay.shared.addresses.Addresses`
"""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401  getaddrinfo needs it, and would load it too late
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from relay.core.health import JITTER
from relay.shared.addresses import Ip, cell_of, read_addresses, write_addresses
from relay.shared.entities import MAX_ADDRESSES
from relay.shared.scoreboard import Cells, Layout

# At most. Threads start on demand: names that are answered in milliseconds share a few.
THREADS = 256
# The next look-up after a failure comes at latest after this time.
AGAIN_S = 5.0

log = logging.getLogger(__name__)

Resolve = Callable[[str], Sequence[Ip]]
"""All addresses of a host name. Raises OSError."""


def look_up(host: str) -> list[Ip]:
    """The answer of the system's resolver: /etc/hosts, DNS, and so on.

    In its order, each address once. Raises OSError.
    """
    found: dict[Ip, None] = {}
    for _, _, _, _, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
        found[str(address[0]).partition("%")[0], int(address[3]) if len(address) == 4 else 0] = None
    return list(found)


@dataclass(slots=True)
class HostName:
    """What is known of one host name. Instants are CLOCK_MONOTONIC, 0 for never.

    `first` is its first cell; `error` is why the last look-up failed.
    """

    host: str
    interval_s: float
    first: int
    known: tuple[Ip, ...] = ()
    answered_at: float = 0.0
    error: str = ""


class _Answer(NamedTuple):
    """The result of one look-up."""

    host: str
    addresses: tuple[Ip, ...]
    error: str


class Resolver:
    """All host names of a configuration.

    `at` calls back at an instant. `fd` is readable when `on_ready` is to be called.
    """

    def __init__(
        self,
        hosts: Mapping[str, float],
        layout: Layout,
        shared: Cells,
        *,
        at: Callable[[float, Callable[[], None]], None],
        chance: Callable[[], float],
        resolve: Resolve = look_up,
        unresolved: Container[str] = (),
    ) -> None:
        """`unresolved`: names that had no address when the configuration was loaded."""
        self._names = {
            host: HostName(host, interval_s, cell_of(layout, host))
            for host, interval_s in hosts.items()
        }
        self._shared = shared
        self._at = at
        self._chance = chance
        self._resolve = resolve
        self._unresolved = unresolved
        self._wanted: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        self._running = 0
        self._threads = 0
        self.fd, self._wake_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for name in self._names.values():
            # The answer that the checker before this one stored.
            name.known = read_addresses(shared, name.first) or ()
            self._start_look_up(name.host)

    @property
    def all(self) -> tuple[HostName, ...]:
        """What is known of each name."""
        return tuple(self._names.values())

    def _start_look_up(self, host: str) -> None:
        """Give the name to an idle thread, or to a new one."""
        self._wanted.put(host)
        self._running += 1
        if self._threads < min(self._running, THREADS):
            name = f"resolver {self._threads}"
            # If this user may not have more threads, the name waits for an existing
            # one.
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=self._work, name=name, daemon=True).start()
                self._threads += 1

    def _work(self) -> None:
        """The main function of a thread, which never ends."""
        while True:
            host = self._wanted.get()
            found: tuple[Ip, ...] = ()
            try:
                found = tuple(self._resolve(host))[:MAX_ADDRESSES]
                error = "" if found else "it has no address"
            except OSError as problem:
                error = problem.strerror or str(problem)
            except Exception as problem:  # noqa: BLE001  the end of a thread would go unnoticed
                error = f"a bug: {problem!r}"
            self._answers.put(_Answer(host, found, error))
            try:
                os.write(self._wake_fd, b"\0")
            except BlockingIOError:
                continue  # the pipe is full, so the main thread will wake

    def on_ready(self) -> None:
        """Process the answers that have arrived."""
        try:
            os.read(self.fd, 4096)
        except BlockingIOError:
            return
        while not self._answers.empty():
            answer = self._answers.get()
            self._running -= 1
            self._process(self._names[answer.host], answer.addresses, answer.error)

    def _process(self, name: HostName, found: tuple[Ip, ...], error: str) -> None:
        now = time.monotonic()
        wait_s = name.interval_s * (1 + JITTER * (2 * self._chance() - 1))
        if error:
            wait_s = min(wait_s, AGAIN_S)
            if not name.error:
                log.warning(
                    "host %s: the name cannot be looked up: %s; %s; "
                    "see whether the resolver of this machine answers: getent ahosts %s",
                    name.host,
                    error,
                    self._consequence(name),
                    name.host,
                )
        else:
            if name.error:
                log.info("host %s: the name can be looked up again", name.host)
            # Resolvers rotate the order of the addresses, so only another set is a
            # change.
            if set(found) != set(name.known):
                was = f", it was {_join(name.known)}" if name.known else ""
                log.info("host %s is at %s%s", name.host, _join(found), was)
                name.known = found
                write_addresses(self._shared, name.first, found)
            name.answered_at = now
        name.error = error
        self._at(now + wait_s, lambda: self._start_look_up(name.host))

    def _consequence(self, name: HostName) -> str:
        """What a failed look-up means for the backends of this name."""
        if name.known:
            return f"the last answer, {_join(name.known)}, is kept"
        if name.host in self._unresolved:
            return "its backends have no address and are disabled"
        return "the address it had when the configuration was loaded is kept"


def _join(addresses: Sequence[Ip]) -> str:
    return ", ".join(host for host, _ in addresses)
