"""The counters of one worker; see `relay.shared.catalogue` for their meaning.

Each route has consecutive cells. A session keeps the first one of its route, so a
handshake is counted by one look-up and one addition.

Never: reads what another process has counted.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from relay.config.model import Config
from relay.errors import Reason, Side
from relay.shared.cell_layout import counter_offset
from relay.shared.entities import KICKED_SESSIONS
from relay.shared.label_values import (
    HANDSHAKE_BUCKETS_S,
    HANDSHAKE_OK,
    HANDSHAKE_RESUMED,
    NO_ROUTE,
    SESSION_BUCKETS_S,
)
from relay.shared.scoreboard import Cells, Layout

if TYPE_CHECKING:
    from relay.worker.session import Session

# From a histogram's first cell to its sum.
_HANDSHAKE_SUM = len(HANDSHAKE_BUCKETS_S) + 1
_SESSION_SUM = len(SESSION_BUCKETS_S) + 1
# From a route's first cell.
_CLOSED = {reason: counter_offset("relay_sessions_closed_total", reason.value) for reason in Reason}
_HANDSHAKES: dict[tuple[Side, Reason | None, bool], int] = {
    (side, reason, resumed): counter_offset("relay_handshakes_total", side.value, result)
    for side in Side
    for reason, resumed, result in (
        (None, False, HANDSHAKE_OK),
        (None, True, HANDSHAKE_RESUMED),
        *((reason, False, reason.value) for reason in Reason),
    )
}


class Counters:
    """The cells in which one worker counts."""

    def __init__(self, config: Config, layout: Layout, cells: Cells) -> None:
        self._cells = cells
        self.active = layout.cell("relay_connections_active")  # `Worker` counts in it
        self._log_dropped = layout.cell("relay_access_log_dropped_total")
        self._unjudged = layout.cell("relay_sessions_unjudged_total")
        self.kicked = layout.cell(KICKED_SESSIONS)  # `worker.updates` counts in it
        self._handshake_s = {
            side: layout.cell("relay_handshake_seconds", side.value, str(HANDSHAKE_BUCKETS_S[0]))
            for side in Side
        }
        self._inbound_s, self._outbound_s = (
            layout.cell("relay_session_seconds", side.value, str(SESSION_BUCKETS_S[0]))
            for side in (Side.INBOUND, Side.OUTBOUND)
        )
        self._routes = {
            (listener.name, label): layout.cell("relay_connections_total", listener.name, label)
            for listener in config.listener
            for label in (*(route.label for route in listener.route), NO_ROUTE)
        }

    def routed(self, listener: str, label: str) -> int:
        """A connection was given its route, whose first cell is returned."""
        first = self._routes[listener, label]
        self._cells[first] += 1
        return first

    def handshake(
        self,
        session: Session,
        side: Side,
        reason: Reason | None,
        *,
        resumed: bool = False,
        seconds: float | None = None,
    ) -> None:
        """A handshake has succeeded (reason None, with its seconds) or failed."""
        cells = self._cells
        first = session.route_cell or self._routes[session.listener.name, NO_ROUTE]
        cells[first + _HANDSHAKES[side, reason, resumed]] += 1
        if seconds is not None:
            first = self._handshake_s[side]
            cells[first + bisect_left(HANDSHAKE_BUCKETS_S, seconds)] += 1
            cells[first + _HANDSHAKE_SUM] += int(seconds * 1_000_000)

    def closed(self, session: Session, *, half_open: bool) -> None:
        """A session was closed, perhaps before its client was admitted."""
        cells = self._cells
        first, reason = session.route_cell, session.outcome.reason
        if not first:
            first = self.routed(session.listener.name, NO_ROUTE)
        if reason is not None:
            cells[first + _CLOSED[reason]] += 1
        if not half_open:
            seconds, first = session.duration_s, self._inbound_s
            cells[first + bisect_left(SESSION_BUCKETS_S, seconds)] += 1
            cells[first + _SESSION_SUM] += int(seconds * 1_000_000)
            if (seconds := session.outbound_s) >= 0:
                first = self._outbound_s
                cells[first + bisect_left(SESSION_BUCKETS_S, seconds)] += 1
                cells[first + _SESSION_SUM] += int(seconds * 1_000_000)

    def sessions_unjudged(self, sessions: int) -> None:
        """These sessions could not be judged again, and are closed."""
        self._cells[self._unjudged] += sessions

    def log_lines_dropped(self, lines: int) -> None:
        """The access log could not take these lines."""
        self._cells[self._log_dropped] += lines
