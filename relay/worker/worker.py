"""What all sessions of a worker share: its loop, its pools, its counters, its limits.

Never: forks, reads the configuration file, handles a signal (that is
`relay.worker.main`), or moves a session (that is `relay.worker.driver`).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable

from relay.config.model import Timeouts
from relay.core.canary import Part
from relay.core.hello_cache import HelloCache
from relay.core.kicks import Kick, kept_out
from relay.logs.access_log import AccessLog
from relay.shared.scoreboard import Layout, Scoreboard
from relay.tls.generation import Generation
from relay.tls.revocation.reports import ListReports
from relay.tls.stepwise import Handshaker
from relay.worker.admission import Admission
from relay.worker.counters import Counters
from relay.worker.examples import Examples
from relay.worker.lingering_close import LingeringCloses
from relay.worker.log_record import SessionLog
from relay.worker.loop import Loop
from relay.worker.patience import general_patience
from relay.worker.pools import PoolState
from relay.worker.resource_usage import Usage
from relay.worker.session import Session
from relay.worker.transfer import Transfer


class Worker:
    """What every session of a worker shares."""

    def __init__(
        self,
        *,
        loop: Loop,
        slot: int,
        row: int,
        generation: Generation,
        scoreboard: Scoreboard,
        layout: Layout,
        max_connections: int,
        max_lingering_closes: int,
        reports: ListReports,
        kicks: Iterable[Kick] = (),
        examples: Examples | None = None,
    ) -> None:
        config = generation.config
        self.loop = loop
        self.scoreboard = scoreboard
        self.cells = scoreboard.row(row)
        self.counters = Counters(config, layout, self.cells)
        self.usage = Usage()
        # For sessions.
        self.sessions: set[Session] = set()
        self.numbers = itertools.count(1)
        self.busy: list[Session] = []  # too busy in this second to keep their exchanges
        self.outliving: set[Session] = set()  # they end at the next quiet moment
        self.stops_when_empty = False
        self.admission = Admission(config.limits, max_connections, loop)
        self.kicks = kept_out(kicks, loop.now)
        self.look_at_dates_at = float("inf")  # Unix time; of `relay.worker.expiry`
        self.lingering_closes = LingeringCloses(loop, max_lingering_closes)
        self.hellos = HelloCache()
        self.handshaker = Handshaker(config.limits.certificate_chain_bytes)
        self.pump = Transfer()
        self.reports = reports
        self.examples = examples
        self.patience_s = general_patience(config.timeouts)
        self.pools = {
            name: PoolState(
                name,
                pool,
                generation.backends(name),
                secret=generation.secrets.get(name, b""),
                layout=layout,
                scoreboard=scoreboard,
                slot=slot,
                trial_s=_trial_s(config.timeouts),
                max_connections=max_connections,
                pools=len(config.pool),
            )
            for name, pool in config.pool.items()
        }
        access_log = AccessLog(
            config.log.access,
            config.log.access_rotate_s,
            config.log.access_format,
            self.counters.log_lines_dropped,
        )
        self.log = SessionLog(access_log, loop, f"{os.getpid()}")

    def add(self, session: Session) -> None:
        """A client was accepted."""
        self.sessions.add(session)
        self.loop.live += 1
        self.cells[self.counters.active] += 1
        self.admission.enter(session)

    def remove(self, session: Session, *, half_open: bool) -> None:
        """A session was closed, perhaps in its handshake: count it and log it."""
        self.sessions.discard(session)
        if self.outliving:
            self.outliving.discard(session)
        self.loop.live -= 1
        self.cells[self.counters.active] -= 1
        self.counters.closed(session, half_open=half_open)
        self.admission.closed(session)
        if not (session.probe and self._is_unlogged_probe(session)):
            self.log.add(session)
        if self.examples is not None:
            self.examples.add(session, Part.CLIENT if half_open else Part.SESSION)
        if self.stops_when_empty and not self.sessions:
            self.loop.running = False

    def _is_unlogged_probe(self, session: Session) -> bool:
        """Count a probe. Returns whether it is not to be logged."""
        probes = session.listener.probes
        if probes is None or session.bytes_in:
            return False
        self.cells[probes.cell] += 1
        return not probes.logged(session.client_host)


def _trial_s(timeouts: Timeouts) -> float:
    """How long a session that tries a failed backend keeps other sessions from it.

    A second more than its connect and its handshake may take.
    """
    return timeouts.connect_s + min(timeouts.connect_s, timeouts.handshake_s) + 1
