"""Looks the names of backends up repeatedly, and stores the answers for the workers.

A look-up may take as long as the name servers like, so each running look-up has a
thread. A server that does not answer delays no other name. These are the only threads
that the relay has while it serves; everything else runs in the checker's main thread.

An answer is used for its TTL, at least MIN_S and at most `resolve_s`. The system's
resolver tells no TTL, so a host name is looked up every `resolve_s`.

When a look-up fails, the last answer stays in use. The failure is logged once, and so
is its end. If the servers deny for GONE_AFTER_S that the name exists, it has no address
any more, and its backends get no new sessions. The same holds at once for a service
whose answer is empty.

Never: makes a worker wait.
Next: `relay.shared.addresses.Addresses`
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from relay.checker.host_lookup import Found, NoSuchNameError, Resolve
from relay.checker.lookup import look_up
from relay.config.backend_address import SERVICE_PREFIX, is_service
from relay.core.health import JITTER
from relay.shared.addresses import (
    Located,
    cell_of,
    format_endpoint,
    is_gone,
    read_addresses,
    write_addresses,
    write_failing,
    write_gone,
)
from relay.shared.entities import MAX_ADDRESSES
from relay.shared.label_values import LOOK_UP_FAILED, LOOK_UP_NOTHING, LOOK_UP_OK
from relay.shared.scoreboard import Cells, Layout

# At most. Threads start on demand: names that are answered in milliseconds share a few.
THREADS = 256
# The next look-up after a failure comes at latest after this time.
AGAIN_S = 5.0
# An answer with a smaller TTL is used this long, or resolve_s if that is less.
MIN_S = 1.0
# A name that the servers deny for this time has no address any more. It may be a
# mistake that is soon corrected. HAProxy waits as long (`hold nx`).
GONE_AFTER_S = 30.0
MOST_SHOWN = 12  # addresses in a message

log = logging.getLogger(__name__)


@dataclass(slots=True)
class HostName:
    """What is known of one name. Instants are CLOCK_MONOTONIC, 0 for never.

    `name` is a host name or "srv:NAME"; `first` is its first cell; `error` is why the
    last look-up gave no address; `denied_at` is since when the servers deny the name.
    """

    name: str
    interval_s: float
    first: int
    known: tuple[Located, ...] = ()
    answered_at: float = 0.0
    error: str = ""
    denied_at: float = 0.0
    gone: bool = False
    left_out: str = ""

    def __str__(self) -> str:
        if is_service(self.name):
            return f"service {self.name.removeprefix(SERVICE_PREFIX)}"
        return f"host {self.name}"

    @property
    def question(self) -> str:
        """The command that shows what the resolver of this machine answers."""
        if is_service(self.name):
            return f"dig {self.name.removeprefix(SERVICE_PREFIX)} SRV"
        return f"getent ahosts {self.name}"


class _Answer(NamedTuple):
    """The result of one look-up. `denied`: the servers say that there is no address."""

    name: str
    found: Found = Found()
    error: str = ""
    denied: bool = False


class Resolver:
    """All names of a configuration.

    `at` calls back at an instant. `fd` is readable when `on_ready` is to be called.
    `count` counts a result, `on_gone` is called when a name has lost its addresses, or
    has some again.
    """

    def __init__(
        self,
        names: Mapping[str, float],
        layout: Layout,
        shared: Cells,
        *,
        at: Callable[[float, Callable[[], None]], None],
        chance: Callable[[], float],
        resolve: Resolve = look_up,
        unresolved: Container[str] = (),
        count: Callable[[str], None] = lambda _: None,
        on_gone: Callable[[], None] = lambda: None,
    ) -> None:
        """`unresolved`: names that had no address when the configuration was loaded."""
        self._names = {
            name: HostName(name, interval_s, cell_of(layout, name))
            for name, interval_s in names.items()
        }
        self._shared = shared
        self._at = at
        self._chance = chance
        self._resolve = resolve
        self._unresolved = unresolved
        self._count = count
        self._on_gone = on_gone
        self._wanted: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        self._running = 0
        self._threads = 0
        self.fd, self._wake_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for name in self._names.values():
            # What the checker before this one stored.
            name.known = read_addresses(shared, name.first) or ()
            name.gone = is_gone(shared, name.first)
            self._start_look_up(name.name)

    @property
    def all(self) -> tuple[HostName, ...]:
        """What is known of each name."""
        return tuple(self._names.values())

    def _start_look_up(self, name: str) -> None:
        """Give the name to an idle thread, or to a new one."""
        self._wanted.put(name)
        self._running += 1
        if self._threads < min(self._running, THREADS):
            thread = f"resolver {self._threads}"
            # If this user may not have more threads, the name waits for an existing
            # one.
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=self._work, name=thread, daemon=True).start()
                self._threads += 1

    def _work(self) -> None:
        """The main function of a thread, which never ends."""
        while True:
            self._answers.put(self._ask(self._wanted.get()))
            try:
                os.write(self._wake_fd, b"\0")
            except BlockingIOError:
                continue  # the pipe is full, so the main thread will wake

    def _ask(self, name: str) -> _Answer:
        try:
            found = self._resolve(name)
        except NoSuchNameError as problem:
            return _Answer(name, error=problem.strerror or str(problem), denied=True)
        except OSError as problem:
            return _Answer(name, error=problem.strerror or str(problem))
        except Exception as problem:  # noqa: BLE001  the end of a thread would go unnoticed
            return _Answer(name, error=f"a bug: {problem!r}")
        if not found.located and not found.nothing:
            return _Answer(name, error="it has no address")
        return _Answer(name, found)

    def on_ready(self) -> None:
        """Process the answers that have arrived."""
        try:
            os.read(self.fd, 4096)
        except BlockingIOError:
            return
        while not self._answers.empty():
            answer = self._answers.get()
            self._running -= 1
            self._process(self._names[answer.name], answer)

    def _process(self, name: HostName, answer: _Answer) -> None:
        now, found = time.monotonic(), answer.found
        keep_s = min(name.interval_s, max(found.ttl_s, MIN_S))
        if not answer.denied:
            name.denied_at = 0.0
        if answer.error:
            keep_s = min(keep_s, AGAIN_S)
            self._on_failure(name, answer, now)
        elif found.nothing:
            keep_s = min(keep_s, AGAIN_S)
            self._count(LOOK_UP_NOTHING)
            self._lose(name, found.nothing)
        else:
            self._on_found(name, found, now)
        write_failing(self._shared, name.first, failing=bool(answer.error))
        wait_s = keep_s * (1 + JITTER * (2 * self._chance() - 1))
        self._at(now + wait_s, lambda: self._start_look_up(name.name))

    def _on_found(self, name: HostName, found: Found, now: float) -> None:
        self._count(LOOK_UP_OK)
        located = _choose(found.located, name.known)
        if name.error and not name.gone:
            log.info("%s: the name can be looked up again", name)
        # Resolvers rotate the order of the addresses, so only another set is a change.
        if name.gone or set(located) != set(name.known):
            was = f", it was {join(name.known)}" if name.known else ""
            log.info("%s is at %s%s", name, join(located), was)
            name.known = located
            write_addresses(self._shared, name.first, located)
            self._on_gone()
        if found.left_out and found.left_out != name.left_out:
            log.warning("%s: left out of its answer: %s", name, found.left_out)
        name.left_out, name.error, name.gone, name.answered_at = found.left_out, "", False, now

    def _on_failure(self, name: HostName, answer: _Answer, now: float) -> None:
        self._count(LOOK_UP_FAILED)
        if answer.denied and not name.gone and self._has_address(name):
            name.denied_at = name.denied_at or now
            if now - name.denied_at >= GONE_AFTER_S:
                self._lose(name, f"{answer.error}, for {GONE_AFTER_S:g} s")
                return
        if not name.error:
            log.warning(
                "%s: the name cannot be looked up: %s; %s; "
                "see whether the resolver of this machine answers: %s",
                name,
                answer.error,
                self._consequence(name, denied=answer.denied),
                name.question,
            )
        name.error = answer.error

    def _lose(self, name: HostName, why: str) -> None:
        """The name has no address any more."""
        if not name.gone:
            log.warning(
                "%s has no address any more: %s; its backends get no new sessions until it has"
                " one, and running sessions go on; compare: %s",
                name,
                why,
                name.question,
            )
            name.known, name.gone = (), True
            write_gone(self._shared, name.first)
            self._on_gone()
        name.error = why

    def _has_address(self, name: HostName) -> bool:
        return bool(name.known) or name.name not in self._unresolved

    def _consequence(self, name: HostName, *, denied: bool) -> str:
        """What a failed look-up means for the backends of this name."""
        kept = f"is kept for {GONE_AFTER_S:g} s" if denied else "is kept"
        if name.gone:
            return "its backends have no address and get no new sessions"
        if name.known:
            return f"the last answer, {join(name.known)}, {kept}"
        if name.name in self._unresolved:
            return "its backends have no address and are disabled"
        return f"the address it had when the configuration was loaded {kept}"


def _choose(located: Sequence[Located], known: Sequence[Located]) -> tuple[Located, ...]:
    """At most MAX_ADDRESSES addresses: those that are known already come first.

    A server that rotates a long answer would give other addresses every time.
    """
    if len(located) <= MAX_ADDRESSES:
        return tuple(located)
    before = set(known)
    return tuple(sorted(located, key=lambda each: (each not in before, each))[:MAX_ADDRESSES])


def join(located: Sequence[Located]) -> str:
    """The first addresses for a message; of a service with priority and weight."""
    more = f" and {len(located) - MOST_SHOWN} more" if len(located) > MOST_SHOWN else ""
    return ", ".join(_shown(each) for each in located[:MOST_SHOWN]) + more


def _shown(one: Located) -> str:
    shown = format_endpoint(one)
    return f"{shown} (priority {one.priority}, weight {one.weight})" if one.port else shown
