"""Looks the backends' host names up, again and again, and puts the answers where the workers read them.

A look-up may hang for as long as the resolver likes, so each that is under way has a thread of its own: a server that is silent holds
up no other name. These are the only threads that the relay has while it serves; all else happens in the checker's own. A look-up that
fails changes nothing: an old answer is better than none. It is said once, and so is its end.

Never: makes a worker wait.
Next: `relay.shared.addresses.Addresses`
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

from relay.core.health import JITTER
from relay.shared.addresses import Ip, cell_of, read_addresses, write_addresses
from relay.shared.entities import MAX_ADDRESSES
from relay.shared.scoreboard import Cells, Layout

# Threads are started when they are needed: names that are answered in milliseconds share a few.
THREADS = 256
# After a failure the next look-up comes this soon, if resolve_s is longer.
AGAIN_S = 5.0

log = logging.getLogger(__name__)

Resolve = Callable[[str], Sequence[Ip]]
"""All addresses of a host name. Raises OSError."""


def look_up(host: str) -> list[Ip]:
    """What the system's resolver says: /etc/hosts, DNS, whatever nsswitch.conf names; in its order, each once. Raises OSError."""
    found: dict[Ip, None] = {}
    for _, _, _, _, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
        found[str(address[0]).partition("%")[0], int(address[3]) if len(address) == 4 else 0] = None
    return list(found)


@dataclass(slots=True)
class Name:
    """What is known of one host name; instants are CLOCK_MONOTONIC seconds, 0 for never."""

    host: str
    interval_s: float
    first: int
    known: tuple[Ip, ...] = ()
    answered_at: float = 0.0
    error: str = ""


class Resolver:
    """Every host name of a configuration. `at` calls back at an instant; `fd` is readable when `on_ready` has something to do."""

    def __init__(
        self,
        hosts: Mapping[str, float],
        layout: Layout,
        shared: Cells,
        *,
        at: Callable[[float, Callable[[], None]], None],
        chance: Callable[[], float],
        resolve: Resolve = look_up,
        nowhere: Container[str] = (),
    ) -> None:
        """`nowhere`: names that had no address when the configuration was loaded."""
        self._names = {
            host: Name(host, interval_s, cell_of(layout, host))
            for host, interval_s in hosts.items()
        }
        self._shared = shared
        self._at = at
        self._chance = chance
        self._resolve = resolve
        self._nowhere = nowhere
        self._wanted: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[str, tuple[Ip, ...], str]] = queue.SimpleQueue()
        self._under_way = 0
        self._threads = 0
        self.fd, self._wake_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for name in self._names.values():
            name.known = read_addresses(shared, name.first) or ()  # of the checker before this one
            self._ask(name.host)

    @property
    def all(self) -> tuple[Name, ...]:
        """What is known of each."""
        return tuple(self._names.values())

    def _ask(self, host: str) -> None:
        """Have a name looked up, by a thread that has nothing to do or by a new one."""
        self._wanted.put(host)
        self._under_way += 1
        if self._threads < min(self._under_way, THREADS):
            name = f"resolver {self._threads}"
            # Where this user may have no more threads, names wait for those that there are.
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=self._work, name=name, daemon=True).start()
                self._threads += 1

    def _work(self) -> None:
        """What a thread does, for ever."""
        while True:
            host = self._wanted.get()
            found: tuple[Ip, ...] = ()
            try:
                found = tuple(self._resolve(host))[:MAX_ADDRESSES]
                error = "" if found else "it has no address"
            except OSError as problem:
                error = problem.strerror or str(problem)
            except Exception as problem:  # noqa: BLE001  a thread that dies would never be missed
                error = f"a bug: {problem!r}"
            self._answers.put((host, found, error))
            try:
                os.write(self._wake_fd, b"\0")
            except BlockingIOError:
                continue  # it is full, so it will be read

    def on_ready(self) -> None:
        """Take the answers that have come."""
        try:
            os.read(self.fd, 4096)
        except BlockingIOError:
            return
        while not self._answers.empty():
            host, found, error = self._answers.get()
            self._under_way -= 1
            self._take(self._names[host], found, error)

    def _take(self, name: Name, found: tuple[Ip, ...], error: str) -> None:
        now = time.monotonic()
        wait_s = name.interval_s * (1 + JITTER * (2 * self._chance() - 1))
        if error:
            wait_s = min(wait_s, AGAIN_S)
            if not name.error:
                log.warning(
                    "host %s: the name cannot be looked up: %s; %s; see whether the resolver of this machine answers: getent ahosts %s",
                    name.host,
                    error,
                    self._kept(name),
                    name.host,
                )
        else:
            if name.error:
                log.info("host %s: the name can be looked up again", name.host)
            # Resolvers turn the order of what they say at every question: only another set is news.
            if set(found) != set(name.known):
                was = f", it was {_shown(name.known)}" if name.known else ""
                log.info("host %s is at %s%s", name.host, _shown(found), was)
                name.known = found
                write_addresses(self._shared, name.first, found)
            name.answered_at = now
        name.error = error
        self._at(now + wait_s, lambda: self._ask(name.host))

    def _kept(self, name: Name) -> str:
        if name.known:
            return f"the last answer, {_shown(name.known)}, is kept"
        if name.host in self._nowhere:
            return "its backends have no address and are disabled"
        return "the address it had when the configuration was loaded is kept"


def _shown(addresses: Sequence[Ip]) -> str:
    return ", ".join(host for host, _ in addresses)
