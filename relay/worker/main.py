"""A worker process, from fork to exit.

Signals: TERM drains, QUIT stops now, USR1 reopens the access log, INT and HUP are the supervisor's business. The lifeline is a pipe
that the supervisor never writes to: its end of file means that the supervisor is gone, and the worker drains.

Never: returns to the supervisor's code.
Next: `relay.worker.listener.Acceptor`
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import resource
import signal
import socket
from dataclasses import dataclass

from relay.logs import messages
from relay.sandbox.confinement import confine_worker
from relay.shared.scoreboard import (
    GENERATION,
    HEARTBEAT_MS,
    PHASE,
    PHASE_SERVING,
    PID,
    SLOT,
    Layout,
    Scoreboard,
    add_to,
    monotonic_ms,
)
from relay.tls.contexts import Generation
from relay.worker import lingering_close
from relay.worker.drain import Drain
from relay.worker.listener import Acceptor
from relay.worker.loop import IN
from relay.worker.worker import Worker

# Descriptors a worker has besides two per session: listening sockets, epoll, logs, pipes.
_OTHER_FDS = 128
# Where files are few, refused clients that still read take half of those at most.
_FEW_PARTINGS = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What the supervisor hands to a worker; `listeners` are (listener name, its listening socket) of the worker's slot."""

    slot: int
    row: int
    listeners: list[tuple[str, socket.socket]]
    generation: Generation
    scoreboard: Scoreboard
    layout: Layout
    lifeline_fd: int


def run_worker(spec: WorkerSpec) -> int:
    """Serve until told to stop; the process's exit code."""
    faulthandler.enable()  # the supervisor sends ABRT to a worker that hangs: the traceback says where
    config = spec.generation.config
    max_connections, max_lingering_closes = _raise_fd_limit(config.limits.connections)
    worker = Worker(
        slot=spec.slot,
        row=spec.row,
        generation=spec.generation,
        scoreboard=spec.scoreboard,
        layout=spec.layout,
        max_connections=max_connections,
        max_lingering_closes=max_lingering_closes,
    )
    acceptors = [
        Acceptor(worker, name, sock, spec.generation.routes[name]) for name, sock in spec.listeners
    ]
    drain = Drain(worker, acceptors, config.relay.drain_timeout_s)
    worker.on_session_end = drain.check
    _Signals(worker, drain, spec)
    cells = worker.cells
    dropped = spec.layout.cell("relay_messages_dropped_total")
    messages.count_dropped(lambda lines: add_to(cells, dropped, lines))
    cells[PID], cells[SLOT], cells[GENERATION], cells[HEARTBEAT_MS] = (
        os.getpid(),
        spec.slot,
        spec.generation.number,
        monotonic_ms(),
    )
    worker.usage.write(cells)
    confine_worker(config.log.access)
    cells[PHASE] = PHASE_SERVING
    # Sessions free themselves without the collector; what is here now stays, and is shared with the other workers.
    gc.collect()
    gc.freeze()
    gc.disable()
    worker.loop.run()
    worker.flush_log()
    worker.log.close()
    return 0


class _Signals:
    """Signals and the lifeline as events of the loop."""

    def __init__(self, worker: Worker, drain: Drain, spec: WorkerSpec) -> None:
        self._worker = worker
        self._drain = drain
        self._lifeline_fd = spec.lifeline_fd
        self._read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(
            write_fd, warn_on_full_buffer=False
        )  # first: a signal that is handled without it is lost
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1):
            signal.signal(number, _noted)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        worker.loop.add(self._read_fd, IN, self._on_signal)
        worker.loop.add(spec.lifeline_fd, IN, self._on_lifeline)

    def _on_signal(self, mask: int) -> None:  # noqa: ARG002 (a pipe)
        for number in os.read(self._read_fd, 64):
            if number == signal.SIGTERM:
                self._drain.begin("told to")
            elif number == signal.SIGQUIT:
                self._drain.stop()
            elif number == signal.SIGUSR1:
                self._worker.log.reopen()

    def _on_lifeline(self, mask: int) -> None:  # noqa: ARG002 (a pipe)
        self._worker.loop.forget(self._lifeline_fd, lambda: os.close(self._lifeline_fd))
        self._drain.begin("the supervisor is gone")


def _noted(_number: int, _frame: object) -> None:
    """The wake-up descriptor has the number; nothing is done between two arbitrary instructions."""


def _raise_fd_limit(connections: int) -> tuple[int, int]:
    """Raise the limit of open files as far as it goes.

    Returns how many connections it allows, at most what is configured, and how many refused
    clients may be waited for besides.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * connections + _OTHER_FDS + lingering_close.MOST
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    allowed = max(1, (soft - _OTHER_FDS) // 2)
    if allowed < connections:
        log.warning(
            "limits.connections is %d, but %d open files allow only %d; raise LimitNOFILE to %d",
            connections,
            soft,
            allowed,
            needed,
        )
    return min(allowed, connections), lingering_close.MOST if soft >= needed else _FEW_PARTINGS
