"""What the workers have counted in the last minute, for `relay status`.

Every ten seconds it adds up all rows and totals by series, without the routes, and
keeps the sums of a minute. 500 routes take 3 ms for each worker in which they are used.

Never: trusts a cell, because any process of the generation may have written it. Such a
process makes these figures wrong, and nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from relay.errors import Reason, Side
from relay.shared.cell_layout import counter_offset
from relay.shared.column_sums import column_sums
from relay.shared.entities import RELAY, ROUTE, SUPERVISOR, Kind
from relay.shared.label_values import HANDSHAKE_OK, HANDSHAKE_RESUMED
from relay.shared.status_facts import LastMinute
from relay.supervisor.scoreboards import Scoreboards

EVERY_S = 10.0
_WINDOW_S = 60.0
_HOUR_S = 3600.0
_MOST = 1 << 48  # what a series may add, so that sums stay exact

# How sessions end that need nobody's attention.
_ORDINARY = frozenset(
    (
        Reason.FINISHED,
        Reason.TRUNCATED,
        Reason.IDLE_TIMEOUT,
        Reason.LINGER_TIMEOUT,
        Reason.MAX_SESSION,
        Reason.DRAIN_TIMEOUT,
        Reason.DRAINED,
        Reason.GENERATION_ENDED,
        Reason.DRAINING,
        Reason.KICKED,
    )
)
_CLIENTS = counter_offset("relay_connections_total")
_OK = counter_offset("relay_handshakes_total", Side.INBOUND.value, HANDSHAKE_OK)
_RESUMED = counter_offset("relay_handshakes_total", Side.INBOUND.value, HANDSHAKE_RESUMED)
_REFUSED, _FAILED = (
    {
        reason: counter_offset("relay_handshakes_total", side.value, reason.value)
        for reason in Reason
    }
    for side in (Side.INBOUND, Side.OUTBOUND)
)
_CLOSED = {reason: counter_offset("relay_sessions_closed_total", reason.value) for reason in Reason}
_DROPPED = counter_offset("relay_access_log_dropped_total")
_RESTARTS = counter_offset("relay_worker_restarts_total")


class _Sample(NamedTuple):
    """The sums at one time, each by the offset of its series."""

    at: float
    routes: list[int]
    dropped: int


class RecentCounts:
    """The counts of the last minute, over all workers that lived in it."""

    def __init__(self, scoreboards: Scoreboards) -> None:
        self._scoreboards = scoreboards
        self._samples: deque[_Sample] = deque()
        self._restarts: deque[tuple[float, int]] = deque()
        self._next_at = 0.0

    def step(self, now: float) -> None:
        """Take a sample, when it is time."""
        if now >= self._next_at:
            self._next_at = now + EVERY_S
            self._samples.append(self._sample(now))
            while len(self._samples) > 1 and self._samples[1].at <= now - _WINDOW_S:
                self._samples.popleft()
            if not self._restarts or now >= self._restarts[-1][0] + _WINDOW_S:
                self._restarts.append((now, self._restarts_so_far()))
                while len(self._restarts) > 1 and self._restarts[1][0] <= now - _HOUR_S:
                    self._restarts.popleft()

    def facts(self, now: float) -> LastMinute:
        """What has been counted since about a minute ago."""
        last = self._sample(now)
        first = next(
            (each for each in reversed(self._samples) if each.at <= now - _WINDOW_S),
            self._samples[0] if self._samples else last,
        )
        added = [
            min(max(0, after - before), _MOST)
            for before, after in zip(first.routes, last.routes, strict=True)
        ]
        refused = _by_reason(added, _REFUSED)
        probes = refused.pop(Reason.PEER_GONE.value, 0)
        ended = {
            reason: count - added[_REFUSED[Reason(reason)]]
            for reason, count in _by_reason(added, _CLOSED).items()
        }
        restarts_before = self._restarts[0][1] if self._restarts else 0
        return {
            "seconds": round(now - first.at, 1),
            "clients": added[_CLIENTS],
            "admitted": added[_OK] + added[_RESUMED],
            "resumed": added[_RESUMED],
            "probes": probes,
            "refused": refused,
            "backend_failures": _by_reason(added, _FAILED),
            "ended": {
                reason: count
                for reason, count in ended.items()
                if count > 0 and reason not in _ORDINARY
            },
            "log_lines_dropped": max(0, last.dropped - first.dropped),
            "restarts": self._restarts_so_far() - restarts_before,
        }

    def _sample(self, now: float) -> _Sample:
        return _Sample(now, self._sums(ROUTE), self._sums(RELAY)[_DROPPED])

    def _restarts_so_far(self) -> int:
        return self._scoreboards.totals.of(SUPERVISOR)[_RESTARTS]

    def _sums(self, kind: Kind) -> list[int]:
        """Each series of a kind, over its entities, rows and totals."""
        return column_sums(self._all_cells(kind), len(kind.counters))

    def _all_cells(self, kind: Kind) -> Iterator[bytes]:
        yield self._scoreboards.totals.of(kind).tobytes()
        for board in self._scoreboards.boards():
            spans = [span for span in board.layout.counters if span.kind is kind]
            for row in board.leased_rows():
                yield from (board.row(row)[span.start : span.stop].tobytes() for span in spans)


def _by_reason(added: Sequence[int], offsets: dict[Reason, int]) -> dict[str, int]:
    return {reason.value: added[offset] for reason, offset in offsets.items() if added[offset]}
