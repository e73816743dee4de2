"""A fast stream between two plain ends is moved once per millisecond.

When a source sends more than 25 MB/s, epoll would report each few kilobytes of it, and
each report costs as much as moving them. So its socket is not watched for a while. A
timer looks at it, and moves all that has come at once. When less comes, the socket is
watched again.

The price is at most two milliseconds more for the bytes of such a stream.

Never: delays the first BURST_BYTES of a stream.
Next: `relay.worker.transfer.Transfer.between`
"""

from __future__ import annotations

from relay.errors import Side
from relay.worker import relaying
from relay.worker.connection import Connection
from relay.worker.session import RELAYING, Session

PERIOD_S = 0.001
BURST_S, BURST_BYTES = 0.02, 524_288  # it is fast if so many bytes come in this time
LEAST_BYTES = 32_768  # what a fast stream brings in PERIOD_S
_INFINITY = float("inf")


def note(session: Session, side: Side, source: Connection, size: int) -> None:
    """So many bytes have come at once. Begin to pace the source if it is fast."""
    now = session.worker.loop.now
    if now - source.burst_at > BURST_S:
        source.burst_at, source.burst = now, size
        return
    source.burst += size
    if source.burst >= BURST_BYTES and not source.paced:
        source.paced = True
        relaying.watch(session)
        session.worker.loop.schedule(_PacedStream(session, side, source))


class _PacedStream:
    """One source that is not watched; see `loop.Timed`."""

    __slots__ = ("_at", "_session", "_side", "_source", "timer_at")

    def __init__(self, session: Session, side: Side, source: Connection) -> None:
        self._session, self._side, self._source = session, side, source
        self._at = session.worker.loop.now + PERIOD_S
        self.timer_at = _INFINITY

    def due_at(self) -> float:
        return self._at

    def on_deadline(self) -> None:
        """Move what has come, and look again later if the stream is still fast."""
        session, source, loop = self._session, self._source, self._session.worker.loop
        size = LEAST_BYTES
        if self._is_open() and not self._sink_is_full():
            size = session.move(self._side)
        if not self._is_open():
            self._at = _INFINITY
        elif size >= LEAST_BYTES:
            self._at = loop.now + PERIOD_S
            loop.schedule(self)
        else:
            self._at = _INFINITY
            source.paced, source.burst = False, 0
            relaying.watch(session)

    def _is_open(self) -> bool:
        session, source = self._session, self._source
        in_use = source is session.inbound or source is session.outbound
        return session.state in RELAYING and in_use and not source.ended

    def _sink_is_full(self) -> bool:
        session = self._session
        sink = session.outbound if self._side is Side.INBOUND else session.inbound
        return sink is None or bool(sink.held)

    def step(self) -> None:
        """Do nothing: there is no handshake."""

    def on_bug(self) -> None:
        """Moving the bytes raised: close the session."""
        self._at = _INFINITY
        self._session.on_bug()
