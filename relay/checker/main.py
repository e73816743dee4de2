"""The checker process, from fork to exit: a loop over sockets, instants, answers of the resolver, and the wish that it end.

It is forked like a worker, for it needs the contexts with the machine certificates; one per generation, none when there is nothing to check.

Signals: TERM and QUIT end it at once, INT, HUP and USR1 are the supervisor's business. The lifeline is a pipe that the supervisor never
writes to: its end of file means that the supervisor is gone, and then there is nobody to check for.

Never: touches a client's connection, or a cell that is a worker's or the supervisor's.
Next: `relay.checker.monitor.Monitor`
"""

from __future__ import annotations

import faulthandler
import heapq
import itertools
import logging
import os
import random
import selectors
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from relay.checker.check import plan_of
from relay.checker.health_file import HealthFile, render_report
from relay.checker.monitor import Around, Monitor
from relay.checker.resolver import Resolve, Resolver, look_up
from relay.logs import messages
from relay.sandbox.confinement import confine_checker
from relay.shared.entities import (
    CHECKED_BACKEND,
    HOST,
    Entities,
    hosts_of,
)
from relay.shared.failed_backends import FailedBackends
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
from relay.tls.contexts import Generation

BEAT_S = 1.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CheckerSpec:
    """What the supervisor hands to the checker."""

    row: int
    generation: Generation
    scoreboard: Scoreboard
    layout: Layout
    lifeline_fd: int
    report: HealthFile


def is_needed(entities: Entities) -> bool:
    """Whether a configuration with these entities gives a checker something to do."""
    return bool(entities[CHECKED_BACKEND.name] or entities[HOST.name])


def run_checker(spec: CheckerSpec, resolve: Resolve = look_up) -> int:
    """Check until told to end; the process's exit code."""
    faulthandler.enable()
    confine_checker(spec.report.directory_fd)
    Checker(spec, resolve).run()
    return 0


class Checker:
    """Everything in the process."""

    def __init__(self, spec: CheckerSpec, resolve: Resolve) -> None:
        config = spec.generation.config
        self._number = spec.generation.number
        self._cells = spec.scoreboard.row(spec.row)
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._entry = itertools.count()
        self._running = True
        self._listen_to_supervisor(spec.lifeline_fd)
        self._report = spec.report
        shared = spec.scoreboard.row(SHARED_ROW)
        around = Around(
            self._selector,
            self.at,
            random.random,
            self._on_change,
            spec.layout,
            shared,
            self._cells,
        )
        self._watches: list[Monitor] = []
        for name, pool in config.pool.items():
            if pool.health is not None:
                targets = spec.generation.targets[name]
                plan = plan_of(pool, pool.health, config, name)
                outage = FailedBackends(
                    shared, spec.layout, [(each.pool, each.route) for each in targets]
                )
                self._watches += [
                    Monitor(around, each, pool.health, plan, outage) for each in targets
                ]
        self._report.inherit(self._watches)
        nowhere = [host for host, found in spec.generation.addresses.items() if not found]
        self._names = Resolver(
            hosts_of(config),
            spec.layout,
            shared,
            at=self.at,
            chance=random.random,
            resolve=resolve,
            nowhere=nowhere,
        )
        self._selector.register(self._names.fd, selectors.EVENT_READ, self._on_answers)
        dropped = spec.layout.cell("relay_messages_dropped_total")
        messages.count_dropped(lambda lines: add_to(self._cells, dropped, lines))
        self._cells[PID], self._cells[SLOT], self._cells[GENERATION] = (
            os.getpid(),
            CHECKER_SLOT,
            self._number,
        )

    def _listen_to_supervisor(self, lifeline_fd: int) -> None:
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (signal.SIGTERM, signal.SIGQUIT):
            signal.signal(number, _noted)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        # SIGCHLD's handler of the supervisor is ours since fork, and we have no children.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.register(read_fd, selectors.EVENT_READ, self._end)
        self._selector.register(lifeline_fd, selectors.EVENT_READ, self._end)

    def _end(self) -> None:
        self._running = False

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Call back at an instant of CLOCK_MONOTONIC."""
        heapq.heappush(self._timers, (when, next(self._entry), call))

    def _on_change(self) -> None:
        self._report.stale = True

    def _on_answers(self) -> None:
        self._names.on_ready()
        self._report.stale = True

    def run(self) -> None:
        """Until told to end."""
        beat_at = 0.0
        self._cells[PHASE] = PHASE_SERVING
        while self._running:
            now = time.monotonic()
            if now >= beat_at:
                self._cells[HEARTBEAT_MS] = monotonic_ms()
                messages.flush()
                beat_at = now + BEAT_S
            if now >= self._report.due_at:
                self._report.write(render_report(self._number, self._watches, self._names.all))
            wake_at = min(
                beat_at, self._report.due_at, self._timers[0][0] if self._timers else beat_at
            )
            for key, _ in self._selector.select(max(0.0, wake_at - now)):
                key.data()  # closes nobody else's socket, so all of the batch is current
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()


def _noted(_number: int, _frame: object) -> None:
    """The wake-up descriptor has the number."""
