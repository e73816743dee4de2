"""The load generator's event loop, and the life of its connections.

Never: blocks on a socket, or leaves a unit in flight when `measure` returns.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from OpenSSL import SSL
from OpenSSL._util import ffi, lib

from bench import tls, wire
from bench.job import Job, Tally

_STALL_S = 10.0
_MAX_ERRORS = 20

_read, _write, _buffer = lib.SSL_read, lib.SSL_write, tls.buffer


class StalledError(Exception):
    """No connection made progress for ten seconds, or too many failed."""


def _on_gone() -> None:
    raise tls.TlsError("the connection is closed")


class Conn:
    """One connection. `ready` is called when its socket is ready."""

    __slots__ = (
        "acc",
        "body_left",
        "body_offset",
        "due_at",
        "fd",
        "ready",
        "sock",
        "ssl",
        "up_left",
        "up_offset",
        "working",
    )

    def __init__(self, sock: socket.socket, ssl: Any) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.ssl = ssl
        self.ready: Callable[[Conn], None]
        self.acc = b""
        self.body_left = self.body_offset = 0
        self.up_left = self.up_offset = 0
        self.due_at = 0.0
        self.working = False


class Traffic:
    """The loop. A connection connects, does its handshake, then its units."""

    def __init__(self, job: Job, context: SSL.Context, epoll: select.epoll) -> None:
        self.job = job
        self.context = context
        self.epoll = epoll
        self.conns: dict[int, Conn] = {}
        self.tally = Tally()
        self.session: Any = None
        self.running = True
        self.server_name = job.server_name.encode()
        self.stop_at = 0.0
        request = (
            wire.render_request(f"/r/{job.size}", wire.BROWSER_REQUEST_BYTES, job.cookie)
            if job.cookie
            else wire.render_request(f"/r/{job.size}")
        )
        self.expect(
            request, wire.render_response(job.size) if job.size <= wire.PATTERN_PERIOD else b""
        )

    def expect(self, request: bytes, answer: bytes) -> None:
        """Set the request and its correct answer."""
        self.request = request
        self.expected = answer
        self.expected_body = answer[answer.find(b"\r\n\r\n") + 4 :]

    # The modes define these.
    def on_open(self, conn: Conn) -> None:
        """Called when the handshake is complete."""
        raise NotImplementedError

    def on_unit(self, conn: Conn) -> None:
        """Called when a unit is complete."""
        raise NotImplementedError

    def on_lost(self, conn: Conn) -> None:
        """Called when a connection has failed, after it was counted and closed."""

    def warm_up(self) -> None:
        """Everything before the measured part."""
        raise NotImplementedError

    def measure(self) -> None:
        """The measured part; fills the tally."""
        raise NotImplementedError

    # The loop.
    def run(self, finished: Callable[[], bool]) -> None:
        """Serve events until `finished`. Raises StalledError."""
        conns, poll, monotonic = self.conns, self.epoll.poll, time.monotonic
        quiet_since = monotonic()
        while not finished():
            events = poll(1.0)
            now = monotonic()
            if events:
                quiet_since = now
            elif now - quiet_since > _STALL_S:
                raise StalledError(
                    f"no progress for {_STALL_S:.0f} s with {len(conns)} connections open"
                )
            if self.stop_at and now >= self.stop_at:
                self.running = False
            for fd, _ in events:
                conn = conns.get(fd)
                if conn is None:
                    self.on_other(fd)
                    continue
                try:
                    conn.ready(conn)
                except (tls.TlsError, ValueError) as failure:
                    self.fail(conn, str(failure))

    def on_other(self, fd: int) -> None:
        """Handle an event of a timer, or of a connection closed in this batch."""

    def fail(self, conn: Conn, why: str) -> None:
        """Count an error and close the connection."""
        self.tally.errors[why] += 1
        self.drop(conn)
        if self.tally.errors.total() >= _MAX_ERRORS:
            raise StalledError(f"gave up after {_MAX_ERRORS} errors")
        self.on_lost(conn)

    def open(self) -> None:
        """Start one connection."""
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect_ex((self.job.address, self.job.port))
        conn = Conn(
            sock,
            tls.open_client_ssl(
                self.context, sock, self.server_name, self.session if self.job.resume else None
            ),
        )
        conn.ready = self.on_connected
        self.conns[conn.fd] = conn
        self.epoll.register(conn.fd, select.EPOLLOUT)

    def drop(self, conn: Conn) -> None:
        """Close a connection with close_notify."""
        if self.conns.pop(conn.fd, None) is conn:
            tls.close(conn.ssl, conn.sock)
            conn.ready = lambda _: _on_gone()

    def close(self) -> None:
        """Close everything."""
        for conn in list(self.conns.values()):
            self.drop(conn)
        self.epoll.close()

    # The life of a connection.
    def on_connected(self, conn: Conn) -> None:
        """Check that the connection is established, and start the handshake."""
        error = conn.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise tls.TlsError(f"connect: {os.strerror(error)}")
        conn.ready = self.on_handshake
        self.epoll.modify(conn.fd, select.EPOLLIN)
        self.on_handshake(conn)

    def on_handshake(self, conn: Conn) -> None:
        """Do a handshake step."""
        if tls.handshake(conn.ssl) != 1:
            return
        self.tally.handshakes += 1
        self.tally.resumed += lib.SSL_session_reused(conn.ssl)
        if self.tally.negotiated is None:
            self.tally.negotiated = asdict(tls.describe(conn.ssl))
        self.on_open(conn)

    def ask(self, conn: Conn) -> None:
        """Send the fixed request and wait for its answer."""
        conn.ready = self.on_answer
        n = _write(conn.ssl, self.request, len(self.request))
        if n <= 0:
            # A small request always fits when nothing else is in flight.
            tls.check_result(conn.ssl, n)
            raise tls.TlsError("the request could not be written")
        self.tally.bytes_out += n

    def on_answer(self, conn: Conn) -> None:
        """Read the fixed answer, in most cases as a whole."""
        n = _read(conn.ssl, _buffer, tls.BUFFER_BYTES)
        if n <= 0:
            self.want_read(conn, n)
            return
        data = ffi.buffer(_buffer, n)[:]
        self.tally.bytes_in += n
        if data == self.expected or self.complete(conn, data):
            self.on_unit(conn)

    def want_read(self, conn: Conn, result: int) -> None:
        """Nothing to read (a ticket came), or an end, which is an error."""
        if tls.check_result(conn.ssl, result) == tls.EOF:
            raise tls.TlsError("closed before the answer was complete")

    def complete(self, conn: Conn, data: bytes) -> bool:
        """Handle an answer in pieces, or with a head of the gateway's own."""
        conn.acc += data
        if self.job.exact:
            if not self.expected.startswith(conn.acc):
                raise tls.TlsError("wrong bytes in the answer")
            whole = len(conn.acc) == len(self.expected)
        else:
            head = wire.parse_head(conn.acc)
            if head is None:
                return False
            check_status(head)
            body = conn.acc[head.body_at :]
            if not self.expected_body.startswith(body) or head.length != len(self.expected_body):
                raise tls.TlsError("wrong bytes in the answer")
            whole = len(body) == head.length
        if whole:
            conn.acc = b""
        return whole


def check_status(head: wire.Head) -> None:
    """Raise TlsError when the status is not 200."""
    status = head.start.split(" ")[1]
    if status != "200":
        raise tls.TlsError(f"status {status}")
