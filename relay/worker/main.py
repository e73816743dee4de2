"""A worker process, from fork to exit.

Signals: TERM drains, QUIT stops now, USR1 reopens the access log. INT and HUP are
ignored: the supervisor handles them. The lifeline is a pipe that the supervisor never
writes to. Its end of file means that the supervisor is gone, and the worker drains.

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
from functools import partial

from relay.core.address_set import AddressSet
from relay.core.kicks import Kick
from relay.core.token_bucket import TokenBuckets
from relay.logs import messages
from relay.sandbox.confinement import confine_worker
from relay.shared.client_rates import ClientRates
from relay.shared.connection_limit import OTHER_FDS, connections_that_fit
from relay.shared.scoreboard import (
    GENERATION,
    HEARTBEAT_MS,
    PHASE,
    PHASE_SERVING,
    PID,
    SLOT,
    UPDATE,
    Layout,
    Scoreboard,
    add_to,
    monotonic_ms,
)
from relay.shared.update_channel import UpdateReceiver
from relay.sockets import only_address
from relay.tls.after_fork import release_provider_keys, reload_provider_keys
from relay.tls.generation import Generation
from relay.tls.revocation.reports import ListReports
from relay.worker import driver, lingering_close
from relay.worker.client_rate import ClientRate
from relay.worker.closings import Closings
from relay.worker.drain import Drain
from relay.worker.examples import Examples
from relay.worker.expiry import Expiry
from relay.worker.listener import Acceptor
from relay.worker.listener_settings import Listener
from relay.worker.loop import IN, Loop
from relay.worker.patience import patience_by_pool
from relay.worker.probes import Probes
from relay.worker.quiet_ends import QuietEnds
from relay.worker.session import UPDATE_QUEUE
from relay.worker.tick import tick
from relay.worker.updates import Updates
from relay.worker.worker import Worker

# How many lingering closes are allowed if descriptors are few. Each keeps one.
_FEW_LINGERING_CLOSES = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What the supervisor hands to a worker.

    `listeners` has the name and the listening socket of each listener in the worker's
    slot.
    """

    slot: int
    row: int
    listeners: list[tuple[str, socket.socket]]
    generation: Generation
    scoreboard: Scoreboard
    layout: Layout
    lifeline_fd: int
    update_end: socket.socket  # of `relay.shared.update_channel`
    update: int  # the number of the last update, which is part of the generation
    reports: socket.socket  # of `relay.shared.list_reports`
    kicks: tuple[Kick, ...] = ()  # of `relay kick`, until now
    failures: socket.socket | None = None  # of `relay.shared.failure_reports`; a canary's
    rates: ClientRates | None = None  # if a listener has per_client_rate


def run_worker(spec: WorkerSpec) -> int:
    """Serve until asked to stop. Returns the exit code of the process."""
    # The supervisor sends ABRT to a worker that hangs: the traceback says where.
    faulthandler.enable()
    reload_provider_keys(spec.generation)
    worker = _make_worker(spec)
    buckets = spec.rates.of_slot(spec.slot) if spec.rates is not None else None
    listeners = _listeners(spec, buckets)
    acceptors = [
        Acceptor(worker, listeners[name], sock, driver.start) for name, sock in spec.listeners
    ]
    quiet_ends = QuietEnds(worker)
    drain_timeout_s = spec.generation.config.relay.drain_timeout_s
    drain = Drain(worker, acceptors, drain_timeout_s, quiet_ends)
    _Signals(worker, drain, spec)
    closings = Closings(worker.loop)
    receiver = UpdateReceiver(spec.update_end)
    Updates(worker, spec.generation, receiver, closings.add, drain.begin, acceptors)
    _announce(worker, spec)
    # Sessions are freed without the collector. The objects that exist now stay, and are
    # shared with the other workers.
    gc.collect()
    gc.freeze()
    gc.disable()
    worker.loop.run(partial(tick, worker, drain, quiet_ends, Expiry(worker, closings.add)))
    worker.log.close()
    release_provider_keys(spec.generation)
    return 0


def _listeners(spec: WorkerSpec, buckets: TokenBuckets | None) -> dict[str, Listener]:
    """What a session needs of each [[listener]], by its name."""
    generation, config = spec.generation, spec.generation.config
    return {
        each.name: Listener(
            each.name,
            generation.routes[each.name],
            patience_by_pool(config, each),
            AddressSet(each.accept_proxy.from_) if each.accept_proxy is not None else None,
            each.max_session_s,
            any(route.starttls for route in each.route),
            ClientRate(each, index, buckets)
            if buckets is not None and each.per_client_rate
            else None,
            Probes(each, spec.layout.cell("relay_probes_total", each.name)),
            (each.per_client_prefix_v4, each.per_client_prefix_v6),
            only_address([sock for name, sock in spec.listeners if name == each.name]),
        )
        for index, each in enumerate(config.listener)
    }


def _make_worker(spec: WorkerSpec) -> Worker:
    connections = spec.generation.config.limits.connections
    max_connections, max_lingering_closes = _raise_fd_limit(connections)
    return Worker(
        loop=Loop(UPDATE_QUEUE + 1),
        slot=spec.slot,
        row=spec.row,
        generation=spec.generation,
        scoreboard=spec.scoreboard,
        layout=spec.layout,
        max_connections=max_connections,
        reports=ListReports(spec.reports),
        max_lingering_closes=max_lingering_closes,
        kicks=spec.kicks,
        examples=Examples(spec.failures) if spec.failures is not None else None,
    )


def _announce(worker: Worker, spec: WorkerSpec) -> None:
    """Give up privileges, and tell the supervisor that this worker serves."""
    cells = worker.cells
    dropped = spec.layout.cell("relay_messages_dropped_total")
    messages.count_dropped(lambda lines: add_to(cells, dropped, lines))
    cells[PID] = os.getpid()
    cells[SLOT] = spec.slot
    cells[GENERATION] = spec.generation.number
    cells[HEARTBEAT_MS] = monotonic_ms()
    cells[UPDATE] = spec.update
    worker.usage.write(cells)
    confine_worker(spec.generation.config.log.access)
    cells[PHASE] = PHASE_SERVING


class _Signals:
    """Signals and the lifeline, as events of the loop."""

    def __init__(self, worker: Worker, drain: Drain, spec: WorkerSpec) -> None:
        self._worker = worker
        self._drain = drain
        self._lifeline_fd = spec.lifeline_fd
        self._read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # Before the handlers: a signal that comes without it would be lost.
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1):
            signal.signal(number, _ignore)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        worker.loop.add(self._read_fd, IN, self._on_signal)
        worker.loop.add(spec.lifeline_fd, IN, self._on_lifeline)

    def _on_signal(self, mask: int) -> None:  # noqa: ARG002 (a pipe)
        for number in os.read(self._read_fd, 64):
            if number == signal.SIGTERM:
                self._drain.begin("SIGTERM")
            elif number == signal.SIGQUIT:
                self._drain.stop()
            elif number == signal.SIGUSR1:
                self._worker.log.reopen()

    def _on_lifeline(self, mask: int) -> None:  # noqa: ARG002 (a pipe)
        self._worker.loop.forget(self._lifeline_fd, lambda: os.close(self._lifeline_fd))
        self._drain.begin("the supervisor is gone", supervised=False)


def _ignore(_number: int, _frame: object) -> None:
    """Do nothing: the number of the signal is read from the wake-up descriptor."""


def _raise_fd_limit(connections: int) -> tuple[int, int]:
    """Raise the limit of open files as far as allowed.

    Returns how many connections it allows, at most what is configured, and how many
    lingering closes besides.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * connections + OTHER_FDS + lingering_close.MOST
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    allowed = connections_that_fit(soft)
    if allowed < connections:
        log.warning(
            "limits.connections is %d, but %d open files allow only %d; raise LimitNOFILE to %d",
            connections,
            soft,
            allowed,
            needed,
        )
    lingering_closes = lingering_close.MOST if soft >= needed else _FEW_LINGERING_CLOSES
    return min(allowed, connections), lingering_closes
