"""The traffic of the workloads: requests, bulk transfers, new and idle connections.

Never: measures anything; it counts units.
"""

from __future__ import annotations

import select
import time

from OpenSSL import SSL
from OpenSSL._util import ffi, lib

from bench import tls, wire
from bench.job import Job, Tally
from bench.traffic import Conn, Traffic, check_status

_TURN_BYTES = 262_144
_read, _write, _buffer = lib.SSL_read, lib.SSL_write, tls.buffer
_pattern = ffi.from_buffer(wire.PATTERN)


class Requests(Traffic):
    """Keep-alive: each connection sends the next request after its answer."""

    def __init__(self, job: Job, context: SSL.Context, epoll: select.epoll) -> None:
        super().__init__(job, context, epoll)
        self.busy = 0
        self.limit = 0

    def on_open(self, conn: Conn) -> None:
        """Send the first request."""
        self.busy += 1
        conn.working = True
        self.begin(conn)

    def begin(self, conn: Conn) -> None:
        """Start one unit."""
        self.ask(conn)

    def rest(self, conn: Conn) -> None:
        """Mark the connection as not busy."""
        self.busy -= 1
        conn.working = False

    def on_unit(self, conn: Conn) -> None:
        """Start the next unit, unless the time or the number of units is reached."""
        tally = self.tally
        tally.units += 1
        if self.running and tally.units + self.busy <= self.limit:
            self.begin(conn)
        else:
            self.rest(conn)

    def on_lost(self, conn: Conn) -> None:
        """Count a failed connection as not busy."""
        if conn.working:
            self.rest(conn)

    def warm_up(self) -> None:
        """Open all connections and send a few requests on each."""
        self.running = False
        for _ in range(self.job.connections):
            self.open()
        self.run(
            lambda: (
                self.tally.handshakes + self.tally.errors.total() >= self.job.connections
                and not self.busy
            )
        )
        self.running = True
        self.limit = self.tally.units + self.job.connections * (self.job.warm_units - 1)
        self.begin_all()
        self.run(lambda: not self.busy)

    def begin_all(self) -> None:
        """Start a unit on every connection, within the limit."""
        for conn in list(self.conns.values())[: self.limit - self.tally.units]:
            self.busy += 1
            conn.working = True
            self.begin(conn)

    def measure(self) -> None:
        """Keep all connections busy for the job's time."""
        before, self.tally = self.tally, Tally()
        self.tally.negotiated, self.tally.errors = before.negotiated, before.errors
        self.tally.handshakes, self.tally.resumed = before.handshakes, before.resumed
        self.limit = self.job.units or 1 << 60
        self.running = True
        started_at = time.monotonic()
        self.stop_at = started_at + self.job.seconds
        self.begin_all()
        self.run(lambda: not self.busy)
        self.tally.wall_s = time.monotonic() - started_at


class BulkDown(Requests):
    """Streams of `size` bytes from the backend, one at a time per connection."""

    def __init__(self, job: Job, context: SSL.Context, epoll: select.epoll) -> None:
        super().__init__(job, context, epoll)
        self.expect(wire.render_request(f"/b/{job.size}/{job.record}"), b"")

    def on_answer(self, conn: Conn) -> None:
        """Read the head, then the stream; compare every byte."""
        for _ in range(_TURN_BYTES // self.job.record):
            n = _read(conn.ssl, _buffer, tls.BUFFER_BYTES)
            if n <= 0:
                self.want_read(conn, n)
                return
            data = ffi.buffer(_buffer, n)[:]
            self.tally.bytes_in += n
            if not conn.body_left:
                conn.acc += data
                head = wire.parse_head(conn.acc)
                if head is None:
                    continue
                check_status(head)
                if head.length != self.job.size:
                    raise tls.TlsError("wrong length of the stream")
                data, conn.acc = conn.acc[head.body_at :], b""
                conn.body_left, conn.body_offset = head.length, 0
            if data != wire.pattern_at(conn.body_offset, len(data)):
                raise tls.TlsError("wrong bytes in the stream")
            conn.body_offset += len(data)
            conn.body_left -= len(data)
            if not conn.body_left:
                self.on_unit(conn)
                return
            if n < self.job.record:
                return


class BulkUp(Requests):
    """Uploads of `size` bytes; the backend answers how many were correct."""

    def __init__(self, job: Job, context: SSL.Context, epoll: select.epoll) -> None:
        super().__init__(job, context, epoll)
        self.expect(wire.render_upload_head(job.size), wire.render_receipt(job.size))

    def begin(self, conn: Conn) -> None:
        """Send the head, then start the stream."""
        self.ask(conn)
        conn.up_left, conn.up_offset = self.job.size, 0
        conn.ready = self.on_room
        self.epoll.modify(conn.fd, select.EPOLLOUT)

    def on_room(self, conn: Conn) -> None:
        """Write more of the stream; at its end, wait for the receipt."""
        for _ in range(_TURN_BYTES // self.job.record):
            n = _write(
                conn.ssl,
                _pattern + conn.up_offset % wire.PATTERN_PERIOD,
                min(self.job.record, conn.up_left),
            )
            if n <= 0:
                if tls.check_result(conn.ssl, n) != tls.WANT_WRITE:
                    raise tls.TlsError("closed during an upload")
                return
            self.tally.bytes_out += n
            conn.up_left -= n
            conn.up_offset += n
            if not conn.up_left:
                conn.ready = self.on_answer
                self.epoll.modify(conn.fd, select.EPOLLIN)
                return


class Connects(Requests):
    """A unit is a new connection: handshake (full or resumed), one request, close."""

    def on_unit(self, conn: Conn) -> None:
        """Close it and open the next one."""
        if self.job.resume:
            self.session = tls.take_session(conn.ssl)
        elif lib.SSL_session_reused(conn.ssl):
            raise tls.TlsError("a session was resumed that was not offered")
        self.drop(conn)
        self.tally.units += 1
        self.rest(conn)
        self.next()

    def on_lost(self, conn: Conn) -> None:
        """Open the next one."""
        super().on_lost(conn)
        self.next()

    def next(self) -> None:
        """Open one more, unless the time or the number of units is reached."""
        if self.running and self.tally.units + len(self.conns) < self.limit:
            self.open()

    def warm_up(self) -> None:
        """Make some connections, so that the gateway can resume to the backend."""
        self.limit = max(self.job.connections, self.job.warm_units)
        self.next()
        self.run(lambda: not self.conns)

    def measure(self) -> None:
        """Keep `connections` of them in progress for the job's time."""
        self.tally = Tally(errors=self.tally.errors, negotiated=self.tally.negotiated)
        if self.job.resume:
            self.tally.negotiated = None
        self.limit = self.job.units or 1 << 60
        self.running = True
        started_at = time.monotonic()
        self.stop_at = started_at + self.job.seconds
        for _ in range(self.job.connections):
            self.next()
        self.run(lambda: not self.conns)
        self.tally.wall_s = time.monotonic() - started_at


class Idle(Requests):
    """Opens `connections` connections, one request on each, and keeps them open."""

    def warm_up(self) -> None:
        """Open and close one connection."""
        self.limit = 0
        self.open()
        self.run(lambda: bool(self.tally.units or self.tally.errors) and not self.busy)
        for conn in list(self.conns.values()):
            self.drop(conn)

    def on_unit(self, conn: Conn) -> None:
        """Keep this connection and open the next one."""
        self.tally.units += 1
        self.rest(conn)
        if len(self.conns) < self.limit:
            self.open()

    def measure(self) -> None:
        """Open them, 16 at a time."""
        self.tally = Tally(errors=self.tally.errors, negotiated=self.tally.negotiated)
        self.limit = self.job.connections
        started_at = time.monotonic()
        for _ in range(min(16, self.limit)):
            self.open()
        self.run(
            lambda: (
                len(self.conns) + self.tally.errors.total() >= self.limit
                and self.tally.units >= len(self.conns)
            )
        )
        self.tally.wall_s = time.monotonic() - started_at


class Probe(Connects):
    """`units` connections, one after the other; shows what is negotiated or refused."""

    def warm_up(self) -> None:
        """Do nothing: the first connection is the probe."""
