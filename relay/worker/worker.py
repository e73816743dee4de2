"""One worker's state: its loop, its counters, its sessions and their limits.

Never: forks, reads the configuration file, or handles a signal (that is `worker.main`).
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable

from relay.config.model import Timeouts
from relay.core.hello_cache import HelloCache
from relay.core.lifecycle import State
from relay.errors import Reason, Side
from relay.logs import messages
from relay.logs.access_log import AccessLog
from relay.shared.catalogue import (
    HANDSHAKE_BUCKETS_S,
    HANDSHAKE_OK,
    HANDSHAKE_RESUMED,
    NO_ROUTE,
)
from relay.shared.scoreboard import HEARTBEAT_MS, Layout, Scoreboard, monotonic_ms
from relay.sockets import Address, StreamSocket
from relay.tls.contexts import Generation
from relay.tls.pump import Pump
from relay.tls.stepwise import Handshaker
from relay.worker import first_request, inbound, intake, outbound, relaying
from relay.worker.admission import Admission
from relay.worker.lingering_close import LingeringCloses
from relay.worker.listener import Acceptor
from relay.worker.log_record import record_of
from relay.worker.loop import Loop
from relay.worker.pools import PoolState
from relay.worker.resource_usage import Usage
from relay.worker.session import STEP_QUEUES, Session


class Worker:
    """What every session of a worker shares."""

    def __init__(
        self,
        *,
        slot: int,
        row: int,
        generation: Generation,
        scoreboard: Scoreboard,
        layout: Layout,
        max_connections: int,
        max_lingering_closes: int,
    ) -> None:
        config = generation.config
        self.loop = Loop(on_tick=self._on_tick, step_queues=len(STEP_QUEUES))
        self.lingering_closes = LingeringCloses(self.loop, max_lingering_closes)
        self.hellos = HelloCache()
        self.pump = Pump()
        self.scoreboard = scoreboard
        self.handshaker = Handshaker(config.limits.certificate_chain_bytes)
        self.cells = scoreboard.row(row)
        self.pools = {
            name: PoolState(
                name,
                pool,
                generation.targets[name],
                secret=generation.secrets.get(name, b""),
                layout=layout,
                scoreboard=scoreboard,
                slot=slot,
                trial_s=_trial_s(config.timeouts),
                places=max_connections,
                pools=len(config.pool),
            )
            for name, pool in config.pool.items()
        }
        self.log = AccessLog(
            config.log.access,
            config.log.access_rotate_s,
            config.log.access_format,
            self._on_log_drop,
        )
        self.sessions: set[Session] = set()
        self.prefix = f"{os.getpid()}"
        self.patience_s = {
            State.INTAKE: config.timeouts.hello_s,
            State.INBOUND_TLS: config.timeouts.handshake_s,
            State.SNIFF: config.timeouts.sniff_s,
            State.CONNECT: config.timeouts.connect_s,
            State.OUTBOUND_TLS: config.timeouts.handshake_s,
            State.RELAY: config.timeouts.idle_s,
            State.HALF_CLOSED: config.timeouts.linger_s,
        }
        self.stages = {
            State.INTAKE: intake.step,
            State.INBOUND_TLS: inbound.step,
            State.SNIFF: first_request.step,
            State.CONNECT: outbound.step,
            State.OUTBOUND_TLS: outbound.step,
        }
        # Bound here, so that `session` need not import the modules that import it.
        self.relay_event = relaying.event
        self.relay_unusual = relaying.unusual
        self.relay_goodbye = relaying.say_goodbye
        self.first_reply = relaying.first_reply
        self.too_slow = {
            State.SNIFF: first_request.too_slow,
            State.CONNECT: outbound.too_slow,
            State.OUTBOUND_TLS: outbound.too_slow,
        }
        self.on_session_end: Callable[[], None] | None = None
        self.admission = Admission(config.limits, max_connections, self.sessions, self.loop)
        self.usage = Usage()
        self._number = 0
        self._ended: deque[Session] = deque()  # and not in the log yet
        self._cell_active = layout.cell("relay_connections_active")
        self._cell_dropped = layout.cell("relay_access_log_dropped_total")
        self._cells_closed = {
            reason: layout.cell("relay_sessions_closed_total", reason.value) for reason in Reason
        }
        self._cells_handshake: dict[tuple[Side, Reason | None, bool], int] = {}
        self._cell_seconds: dict[Side, int] = {}
        for side in Side:
            self._cells_handshake[side, None, False] = layout.cell(
                "relay_handshakes_total", side.value, HANDSHAKE_OK
            )
            self._cells_handshake[side, None, True] = layout.cell(
                "relay_handshakes_total", side.value, HANDSHAKE_RESUMED
            )
            for reason in Reason:
                self._cells_handshake[side, reason, False] = layout.cell(
                    "relay_handshakes_total", side.value, reason.value
                )
            self._cell_seconds[side] = layout.cell(
                "relay_handshake_seconds", side.value, str(HANDSHAKE_BUCKETS_S[0])
            )
        self._cells_routed = {
            (listener.name, label): layout.cell("relay_connections_total", listener.name, label)
            for listener in config.listener
            for label in (*(route.label for route in listener.route), NO_ROUTE)
        }

    # Sessions.

    def new_session(self, acceptor: Acceptor, sock: StreamSocket, address: Address) -> Session:
        """Enter a client who was just accepted."""
        self._number += 1
        session = Session(self, acceptor, sock, address, self._number)
        self.sessions.add(session)
        self.loop.live += 1
        self.cells[self._cell_active] += 1
        self.admission.enter(session)
        return session

    def session_closed(self, session: Session) -> None:
        """The last that is heard of a session."""
        self.sessions.discard(session)
        self.loop.live -= 1
        self.cells[self._cell_active] -= 1
        if session.route is None:
            self.cells[self._cells_routed[session.acceptor.name, NO_ROUTE]] += 1
        if session.reason is not None:
            self.cells[self._cells_closed[session.reason]] += 1
        self.admission.closed(session)
        if self.on_session_end is not None:
            self.on_session_end()

    # Counting.

    def count_routed(self, session: Session) -> None:
        """A connection was given its route."""
        if session.route is not None:
            self.cells[self._cells_routed[session.acceptor.name, session.route.label]] += 1

    def count_handshake(
        self,
        side: Side,
        reason: Reason | None,
        *,
        resumed: bool = False,
        seconds: float | None = None,
    ) -> None:
        """A handshake ended: well (reason None, with its seconds), or not."""
        cells = self.cells
        cells[self._cells_handshake[side, reason, resumed]] += 1
        if seconds is not None:
            first = self._cell_seconds[side]
            cells[first + bisect_left(HANDSHAKE_BUCKETS_S, seconds)] += 1
            cells[first + len(HANDSHAKE_BUCKETS_S) + 1] += int(seconds * 1_000_000)

    def log_session(self, session: Session) -> None:
        """One line in the access log; made and written together with others, when there is nothing more urgent to do."""
        if self.log.enabled:
            self._ended.append(session)
            self.loop.when_idle = self.flush_log

    def flush_log(self) -> None:
        """Make the lines of the sessions that have ended, and hand them over."""
        log, ended = self.log, self._ended
        while ended:
            log.write(log.render(record_of(ended.popleft())))
        log.flush(time.time())

    def _on_log_drop(self, lines: int) -> None:
        self.cells[self._cell_dropped] += lines

    def _on_tick(self) -> None:
        self.cells[HEARTBEAT_MS] = monotonic_ms()
        messages.flush()
        self.usage.write(self.cells)
        if self.on_session_end is not None:
            self.on_session_end()
        if self.log.pending or self._ended:
            self.flush_log()
        ended = self.scoreboard.forget_ended()
        for pool in self.pools.values():
            if ended:
                pool.see_workers()
            for member in pool.on_tick(self.loop.now):
                outbound.close_all(self.sessions, member)
        self.admission.on_tick()


def _trial_s(timeouts: Timeouts) -> float:
    """How long a session that tries a failed backend keeps others from it: a second more than it may wait."""
    return timeouts.connect_s + min(timeouts.connect_s, timeouts.handshake_s) + 1
