"""A fast stream between two plain ends is moved every one to four milliseconds.

When a source sends more than 25 MB/s, epoll would report each few kilobytes of it, and
each report costs as much as moving them. So its socket is not watched for a while. A
timer looks at it, and moves all that has come at once. When less comes, the socket is
watched again.

A look that brings much costs less per byte, so a stream that brings less than
MUCH_BYTES is looked at half as often, as long as a look then brings more. It does not
if the window of the source is full.

The price is at most five milliseconds more for the bytes of such a stream.

Never: delays the first BURST_BYTES of a stream.
Next: `relay.worker.transfer.Transfer.between`
"""

from __future__ import annotations

from relay.errors import Side
from relay.worker import relaying
from relay.worker.connection import Connection
from relay.worker.session import RELAYING, Session

PERIOD_S, MOST_PERIOD_S = 0.001, 0.004
BURST_S, BURST_BYTES = 0.02, 524_288  # it is fast if so many bytes come in this time
LEAST_BYTES = 32_768  # what a fast stream brings in a look
SLOW_LOOKS = 2  # so many that bring less, one after the other, end it
MUCH_BYTES = 262_144
MEASURED_LOOKS = 8  # a period is judged by the mean of so many
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

    __slots__ = ("_at", "_period", "_session", "_side", "_slow_looks", "_source", "timer_at")

    def __init__(self, session: Session, side: Side, source: Connection) -> None:
        self._session, self._side, self._source = session, side, source
        self._period = _Period()
        self._slow_looks = 0
        self._at = session.worker.loop.now + self._period.seconds
        self.timer_at = _INFINITY

    def due_at(self) -> float:
        return self._at

    def on_deadline(self) -> None:
        """Move what has come, and look again later if the stream is still fast."""
        session, source, loop = self._session, self._source, self._session.worker.loop
        if self._is_open() and not self._sink_is_full():
            source.bulk = True  # even if the last look found the end of what had come
            size = session.move(self._side)
            self._slow_looks = 0 if size >= LEAST_BYTES else self._slow_looks + 1
            self._period.note(size)
        if not self._is_open():
            self._at = _INFINITY
        elif self._slow_looks < SLOW_LOOKS:
            self._at = loop.now + self._period.seconds
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
        return sink is None or bool(sink.held) or self._source.wants_write

    def step(self) -> None:
        """Do nothing: there is no handshake."""

    def on_bug(self) -> None:
        """Moving the bytes raised: close the session."""
        self._at = _INFINITY
        self._session.on_bug()


class _Period:
    """How long to wait between two looks."""

    __slots__ = ("_brought", "_looks", "_mean", "_settled", "seconds")

    def __init__(self) -> None:
        self.seconds = PERIOD_S
        self._looks = self._brought = 0
        self._mean = 0.0  # of a look with the period before, 0 for the first
        self._settled = False

    def note(self, size: int) -> None:
        """A look has brought so many bytes."""
        self._looks += 1
        self._brought += size
        if self._settled or self._looks < MEASURED_LOOKS:
            return
        mean, before = self._brought / self._looks, self._mean
        self._looks, self._brought, self._mean = 0, 0, mean
        if mean < 1.5 * before:
            self.seconds /= 2
            self._settled = True
        elif mean < MUCH_BYTES and self.seconds < MOST_PERIOD_S:
            self.seconds *= 2
        else:
            self._settled = True
