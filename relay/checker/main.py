"""The checker process, from fork to exit.

Its loop waits for sockets, timers, answers of the resolver, and the signal to end. It
is forked like a worker, because it needs the TLS contexts with the machine
certificates. Each generation has one checker, or none if there is nothing to check.

TERM and QUIT end it at once, HUP makes it fetch revocation lists at once; it ignores
INT and USR1. The lifeline is a pipe that
the supervisor never writes to: end of file means that the supervisor is gone, and the
checker ends too.

Never: touches a client's connection, or a cell that a worker or the supervisor writes.
Next: `relay.checker.monitor.Monitor`
"""

from __future__ import annotations

import faulthandler
import heapq
import itertools
import logging
import os
import pickle
import random
import selectors
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from relay.checker.check import check_settings
from relay.checker.crl_lists import CrlLists
from relay.checker.health_file import HealthFile, render_health
from relay.checker.host_lookup import Resolve
from relay.checker.lookup import look_up
from relay.checker.monitor import CheckerContext, Monitor
from relay.checker.resolver import Resolver
from relay.config.model import Config
from relay.logs import messages
from relay.sandbox.confinement import confine_checker
from relay.shared.entities import (
    CHECKED_BACKEND,
    HEALTH_VERSION,
    HOST,
    Entities,
    fetches_lists,
    hosts_of,
)
from relay.shared.failed_backends import FailedBackends
from relay.shared.label_values import LOOK_UP_RESULTS
from relay.shared.scoreboard import (
    CHECKER_SLOT,
    GENERATION,
    HEARTBEAT_MS,
    PHASE,
    PHASE_SERVING,
    PID,
    SHARED_ROW,
    SLOT,
    Layout,
    Scoreboard,
    add_to,
    monotonic_ms,
)
from relay.shared.state_cells import bump
from relay.shared.update_channel import UpdateReceiver
from relay.tls.after_fork import release_provider_keys, reload_provider_keys
from relay.tls.generation import Generation
from relay.tls.renewal import Renewal, map_sets, renew
from relay.tls.revocation.reports import ListReports

BEAT_S = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CheckerSpec:
    """What the supervisor gives the checker."""

    row: int
    generation: Generation
    scoreboard: Scoreboard
    layout: Layout
    lifeline_fd: int
    health_file: HealthFile
    update_end: socket.socket  # of `relay.shared.update_channel`
    reports: socket.socket  # the readable end of `relay.shared.list_reports`
    report_end: socket.socket  # the other one: the checker sees certificates, too


def is_needed(config: Config, entities: Entities) -> bool:
    """Whether this configuration, with these entities, needs a checker."""
    return bool(entities[CHECKED_BACKEND.name] or entities[HOST.name] or fetches_lists(config))


def run_checker(spec: CheckerSpec, resolve: Resolve = look_up) -> int:
    """Check until asked to end. Returns the exit code of the process."""
    faulthandler.enable()
    reload_provider_keys(spec.generation)
    confine_checker(spec.health_file.directory_fd)
    Checker(spec, resolve).run()
    release_provider_keys(spec.generation)
    return 0


class Checker:
    """The process's loop, with its monitors and its resolver."""

    def __init__(self, spec: CheckerSpec, resolve: Resolve) -> None:
        self._number = spec.generation.number
        self._cells = spec.scoreboard.row(spec.row)
        self._shared = spec.scoreboard.row(SHARED_ROW)
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._entry = itertools.count()
        self._running = True
        self._health_file = spec.health_file
        self._listen_to_supervisor(spec.lifeline_fd)
        self._generation = spec.generation
        self._updates = UpdateReceiver(spec.update_end)
        self._selector.register(self._updates.fd, selectors.EVENT_READ, self._on_update)
        self._monitors = self._make_monitors(spec)
        self._health_file.inherit(self._monitors)
        self._resolver = self._make_resolver(spec, resolve)
        self._selector.register(self._resolver.fd, selectors.EVENT_READ, self._on_answers)
        self._lists = CrlLists(
            spec.generation,
            spec.health_file.directory_fd,
            spec.reports,
            spec.layout,
            self._shared,
            self._cells,
            self._on_change,
        )
        self._lists.register(self._selector)
        dropped = spec.layout.cell("relay_messages_dropped_total")
        messages.count_dropped(lambda lines: add_to(self._cells, dropped, lines))
        self._cells[PID] = os.getpid()
        self._cells[SLOT] = CHECKER_SLOT
        self._cells[GENERATION] = self._number

    def _make_monitors(self, spec: CheckerSpec) -> list[Monitor]:
        config = spec.generation.config
        context = CheckerContext(
            self._selector,
            self.at,
            random.random,
            self._on_change,
            spec.layout,
            self._shared,
            self._cells,
        )
        monitors: list[Monitor] = []
        for name, pool in config.pool.items():
            if pool.health is not None:
                targets = spec.generation.backends(name)
                settings = check_settings(
                    pool, pool.health, config, name, ListReports(spec.report_end)
                )
                failed_backends = FailedBackends(
                    self._shared, spec.layout, [(each.pool, each.route) for each in targets]
                )
                monitors += [
                    Monitor(context, each, pool.health, settings, failed_backends)
                    for each in targets
                ]
        return monitors

    def _make_resolver(self, spec: CheckerSpec, resolve: Resolve) -> Resolver:
        layout, cells, shared = spec.layout, self._cells, self._shared
        results = {
            result: layout.cell("relay_name_lookups_total", result) for result in LOOK_UP_RESULTS
        }
        version = layout.cell(HEALTH_VERSION)
        return Resolver(
            hosts_of(spec.generation.config),
            spec.layout,
            self._shared,
            at=self.at,
            chance=random.random,
            resolve=resolve,
            unresolved=[name for name, found in spec.generation.addresses.items() if not found],
            count=lambda result: add_to(cells, results[result], 1),
            on_gone=lambda: bump(shared, version),
        )

    def _listen_to_supervisor(self, lifeline_fd: int) -> None:
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
            signal.signal(number, _wake)
        for number in (signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        # The fork copied the supervisor's handler, and the checker has no children.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.register(read_fd, selectors.EVENT_READ, lambda: self._on_signal(read_fd))
        self._selector.register(lifeline_fd, selectors.EVENT_READ, self._end)

    def _on_update(self) -> None:
        """Apply what the supervisor has sent.

        If that fails, the checker ends, and the next one inherits the new state.
        """
        for update in self._updates.receive():
            message = pickle.loads(update.data)  # noqa: S301 (from the supervisor)
            if isinstance(message, Renewal):
                renew(self._generation, message, map_sets(message, update.files))
                if message.cas:
                    self._lists.renewed()
            for fd in update.files:
                os.close(fd)
        if self._updates.ended:
            self._end()

    def _on_signal(self, fd: int) -> None:
        if set(os.read(fd, 64)) - {signal.SIGHUP}:
            self._end()
        self._lists.fetch_now()

    def _end(self) -> None:
        self._running = False

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Call back at an instant of CLOCK_MONOTONIC."""
        heapq.heappush(self._timers, (when, next(self._entry), call))

    def _on_change(self) -> None:
        self._health_file.stale = True

    def _on_answers(self) -> None:
        self._resolver.on_ready()
        self._health_file.stale = True

    def run(self) -> None:
        """Run until told to end."""
        beat_at = 0.0
        self._cells[PHASE] = PHASE_SERVING
        while self._running:
            now = time.monotonic()
            if now >= beat_at:
                self._cells[HEARTBEAT_MS] = monotonic_ms()
                messages.flush()
                beat_at = now + BEAT_S
                self._lists.tick()
            if now >= self._health_file.due_at:
                contents = render_health(
                    self._number, self._monitors, self._resolver.all, self._lists.entries()
                )
                self._health_file.write(contents)
            wake_at = min(
                beat_at, self._health_file.due_at, self._timers[0][0] if self._timers else beat_at
            )
            for key, _ in self._selector.select(max(0.0, wake_at - now)):
                key.data()  # it closes its own socket only, so the other keys stay valid
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()


def _wake(_number: int, _frame: object) -> None:
    """Do nothing: the wake-up descriptor receives the signal's number."""
