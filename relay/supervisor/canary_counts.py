"""Counts what workers do while a canary runs, from their rows of the scoreboard.

Never: trusts a cell, because any process of the generation may have written it.
Next: `relay.core.canary.differences`
"""

from __future__ import annotations

from collections.abc import Iterable

from relay.core.canary import Counts, Part
from relay.errors import Reason, Side
from relay.shared.cell_layout import counter_offset
from relay.shared.column_sums import column_sums
from relay.shared.entities import ROUTE
from relay.shared.label_values import HANDSHAKE_OK, HANDSHAKE_RESUMED
from relay.supervisor.worker_process import WorkerProcess

# How sessions end that have no fault: by themselves, or because the relay wants it.
_NO_FAULT = frozenset(
    (
        Reason.FINISHED,
        Reason.DRAIN_TIMEOUT,
        Reason.DRAINED,
        Reason.MAX_SESSION,
        Reason.GENERATION_ENDED,
        Reason.DRAINING,
        Reason.KICKED,
    )
)
_GOOD = (HANDSHAKE_OK, HANDSHAKE_RESUMED)
_RESULTS = (*_GOOD, *(reason.value for reason in Reason))
_LARGEST = 1 << 48  # what a cell may add, so that sums stay exact


Values = dict[tuple[str, str], int]
"""By side and result of a handshake, or "closed" and the reason of a session."""
_CONNECTIONS = ("connections", "")
_OFFSETS: Values = {  # among the counters of a route
    _CONNECTIONS: counter_offset("relay_connections_total"),
    **{
        (side.value, result): counter_offset("relay_handshakes_total", side.value, result)
        for side in Side
        for result in _RESULTS
    },
    **{
        ("closed", reason.value): counter_offset("relay_sessions_closed_total", reason.value)
        for reason in Reason
    },
}


class WorkerCounts:
    """The counts of some workers since now, also of those that end meanwhile."""

    def __init__(self, processes: Iterable[WorkerProcess] = ()) -> None:
        self._before = {each.pid: self._read(each) for each in processes}
        self._last = dict(self._before)

    def read(self, processes: Iterable[WorkerProcess]) -> Counts:
        """The counts up to now. A worker that is new has begun with zeros."""
        self._last |= {each.pid: self._read(each) for each in processes}
        total: Values = {}
        for pid, values in self._last.items():
            before = self._before.get(pid, {})
            for key, value in values.items():
                added = value - before.get(key, 0)
                if added > 0:
                    total[key] = total.get(key, 0) + min(added, _LARGEST)
        return _counts(total)

    def _read(self, process: WorkerProcess) -> Values:
        layout, row = process.scoreboard.layout, process.scoreboard.row(process.row)
        (routes,) = (span for span in layout.counters if span.kind is ROUTE)
        sums = column_sums([row[routes.start : routes.stop].tobytes()], routes.width)
        return {key: sums[offset] for key, offset in _OFFSETS.items()}


def _counts(total: Values) -> Counts:
    clients = {result: total.get((Side.INBOUND, result), 0) for result in _RESULTS}
    backends = {result: total.get((Side.OUTBOUND, result), 0) for result in _RESULTS}
    failures: dict[tuple[Part, str], int] = {}
    refused = 0
    for reason in Reason:
        name = reason.value
        refused += clients[name]
        failures[Part.CLIENT, name] = clients[name]
        failures[Part.BACKEND, name] = backends[name]
        if reason not in _NO_FAULT:
            closed = total.get(("closed", name), 0)
            failures[Part.SESSION, name] = max(0, closed - clients[name])
    connections = total.get(_CONNECTIONS, 0)
    return Counts(
        {
            Part.CLIENT: sum(clients.values()),
            Part.BACKEND: sum(backends.values()),
            Part.SESSION: max(0, connections - refused),
        },
        {key: count for key, count in failures.items() if count},
    )
