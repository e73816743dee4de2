"""The TLS backend behind every gateway.

It requires the machine certificate, answers as `wire` defines, and checks and counts
every byte. `python -m bench.backend` forks processes that share one port and one set of
ticket keys, and prints a JSON line with the port. Then it answers each line on stdin
with its counters. It ends when stdin ends, so it never outlives the harness.

Never: trusts what came through a gateway; every byte of an upload is compared.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from OpenSSL import SSL
from OpenSSL._util import ffi, lib

from bench import proxy_header, tls, wire
from bench.counters import (
    ABANDONED,
    AES_128,
    BYTES_IN,
    BYTES_OUT,
    CONNECTIONS,
    COUNTERS,
    ERRORS,
    FULL,
    HEADERS,
    OTHER_CIPHER,
    REQUESTS,
    RESUMED,
)
from bench.pki import Pki

_RECORDS_PER_TURN = 16
_WRITE_BYTES = 16_384
_TURN_BYTES = _RECORDS_PER_TURN * _WRITE_BYTES

_read, _write, _buffer = lib.SSL_read, lib.SSL_write, tls.buffer
_pattern = ffi.from_buffer(wire.PATTERN)


def _on_gone() -> None:
    raise tls.TlsError("the connection is closed")


class Session:
    """One connection from a gateway."""

    __slots__ = (
        "acc", "fd", "pending", "ready", "server", "sink_good", "sink_left", "sink_offset",
        "sock", "ssl", "stream_left", "stream_offset", "stream_record",
    )  # fmt: skip

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.server = server
        self.sock = sock
        self.fd = sock.fileno()
        self.ssl = tls.open_server_ssl(server.context, sock)
        self.acc = b""
        self.pending = b""
        self.sink_left = self.sink_offset = self.sink_good = 0
        self.stream_left = self.stream_offset = 0
        self.stream_record = _WRITE_BYTES
        self.ready: Callable[[], None] = self.on_header if server.proxy else self.on_handshake

    def on_header(self) -> None:
        """Read the PROXY header that comes first."""
        if proxy_header.consume(self.sock):
            self.server.counts[HEADERS] += 1
            self.ready = self.on_handshake
            self.on_handshake()

    def on_handshake(self) -> None:
        """Do a handshake step."""
        wanted = tls.handshake(self.ssl)
        if wanted == 1:
            counts = self.server.counts
            counts[RESUMED if lib.SSL_session_reused(self.ssl) else FULL] += 1
            counts[
                AES_128 if tls.describe(self.ssl).cipher == tls.SUITE.decode() else OTHER_CIPHER
            ] += 1
            self.ready = self.on_request
            self.on_request()

    def on_request(self) -> None:
        """Read requests, one at a time per connection."""
        for _ in range(_RECORDS_PER_TURN):
            n = _read(self.ssl, _buffer, tls.BUFFER_BYTES)
            if n <= 0:
                if tls.check_result(self.ssl, n) == tls.EOF:
                    self.server.drop(self)
                return
            data = ffi.buffer(_buffer, n)[:]
            self.server.counts[BYTES_IN] += n
            answer = self.server.answers.get(data)
            if answer is not None and not self.acc and not self.sink_left:
                self.server.counts[REQUESTS] += 1
                self.send(answer)
                return
            self.on_data(data)
            if self.ready != self.on_request or n < _WRITE_BYTES:
                return

    def on_data(self, data: bytes) -> None:
        """Handle heads and uploads in pieces of any size."""
        if self.sink_left:
            data = self.sink(data)
        self.acc += data
        while self.acc and not self.sink_left:
            head = wire.parse_head(self.acc)
            if head is None:
                return
            self.acc = self.acc[head.body_at :]
            self.server.counts[REQUESTS] += 1
            method, path, _ = head.start.split(" ")
            if method == "POST":
                self.sink_left, self.sink_offset, self.sink_good = head.length, 0, 0
                self.acc = self.sink(self.acc)
                continue
            kind, size, *record = path.strip("/").split("/")
            if kind == "b":
                self.send(wire.render_bulk_head(int(size)))
                self.stream_left, self.stream_offset = int(size), 0
                self.stream_record = int(record[0]) if record else _WRITE_BYTES
                if not self.pending:
                    self.on_stream()
            else:
                self.send(wire.render_response(int(size)))
            if self.ready != self.on_request and self.acc:
                raise tls.TlsError("a second request before the first was answered")

    def sink(self, data: bytes) -> bytes:
        """Check upload bytes, answer at their end; returns the bytes after them."""
        body, rest = data[: self.sink_left], data[self.sink_left :]
        for start in range(0, len(body), wire.PATTERN_PERIOD):
            piece = body[start : start + wire.PATTERN_PERIOD]
            if piece == wire.pattern_at(self.sink_offset + start, len(piece)):
                self.sink_good += len(piece)
        self.sink_offset += len(body)
        self.sink_left -= len(body)
        if not self.sink_left:
            self.send(wire.render_receipt(self.sink_good))
        return rest

    def send(self, data: bytes) -> None:
        """Write a small message, or keep it until there is room."""
        n = _write(self.ssl, data, len(data))
        if n > 0:
            self.server.counts[BYTES_OUT] += n
            return
        if tls.check_result(self.ssl, n) != tls.WANT_WRITE:
            raise tls.TlsError("a write failed")
        self.pending = data
        self.ready = self.on_writable
        self.server.epoll.modify(self.fd, select.EPOLLOUT)

    def on_stream(self) -> None:
        """Write the pattern until the socket is full or this turn's share is done."""
        for _ in range(_TURN_BYTES // self.stream_record):
            if not self.stream_left:
                break
            size = min(self.stream_record, self.stream_left)
            n = _write(self.ssl, _pattern + self.stream_offset % wire.PATTERN_PERIOD, size)
            if n <= 0:
                if tls.check_result(self.ssl, n) != tls.WANT_WRITE:
                    raise tls.TlsError("a write failed")
                break
            self.stream_left -= n
            self.stream_offset += n
            self.server.counts[BYTES_OUT] += n
        if self.stream_left and self.ready != self.on_writable:
            self.ready = self.on_writable
            self.server.epoll.modify(self.fd, select.EPOLLOUT)
        elif not self.stream_left and self.ready == self.on_writable:
            self.ready = self.on_request
            self.server.epoll.modify(self.fd, select.EPOLLIN)

    def on_writable(self) -> None:
        """There is room again: write the kept message, then the stream."""
        if self.pending:
            n = _write(self.ssl, self.pending, len(self.pending))
            if n <= 0:
                tls.check_result(self.ssl, n)
                return
            self.server.counts[BYTES_OUT] += n
            self.pending = b""
        self.on_stream()


class Server:
    """One serving process. `counts` is its row of the memory shared with the parent."""

    def __init__(
        self, context: SSL.Context, listening: socket.socket, counts: memoryview[int], proxy: bool
    ) -> None:
        self.context = context
        self.listening = listening
        self.counts = counts
        self.proxy = proxy
        self.epoll = select.epoll()
        self.sessions: dict[int, Session] = {}
        self.answers = {
            wire.render_request(f"/r/{size}"): wire.render_response(size) for size in (64, 4096)
        }

    def serve(self) -> None:
        """Serve until killed; a failed connection is counted and closed."""
        # Several processes share the socket. Wake only one per connection.
        self.epoll.register(self.listening, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        accepting = self.listening.fileno()
        while True:
            for fd, _ in self.epoll.poll():
                if fd == accepting:
                    self.accept()
                    continue
                session = self.sessions.get(fd)
                if session is None:
                    continue
                try:
                    session.ready()
                except tls.AbandonedError:
                    # Not an error: Envoy connects before its client's handshake is
                    # done, and closes when that handshake fails.
                    self.counts[ABANDONED] += 1
                    self.drop(session)
                except (tls.TlsError, ValueError):
                    self.counts[ERRORS] += 1
                    self.drop(session)

    def accept(self) -> None:
        """Accept up to 16 waiting connections."""
        for _ in range(16):
            try:
                sock, _ = self.listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            session = Session(self, sock)
            self.sessions[session.fd] = session
            self.counts[CONNECTIONS] += 1
            self.epoll.register(session.fd, select.EPOLLIN)

    def drop(self, session: Session) -> None:
        """Close a session; that removes its fd from epoll."""
        del self.sessions[session.fd]
        tls.close(session.ssl, session.sock)
        # The garbage collector is off: break the cycle through the bound method.
        session.ready = _on_gone


def main() -> None:
    """Serve with the settings in the first argument, a JSON object.

    Its keys: `pki` (directory), `processes`, `same_cipher`, `party` (of the
    certificate), `proxy` (a PROXY v2 header comes first).
    """
    job = json.loads(sys.argv[1])
    context = tls.open_server_context(
        Pki(Path(job["pki"])), same_cipher=job["same_cipher"], party=job["party"]
    )
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listening.setblocking(False)
    rows = int(job["processes"])
    shared = memoryview(mmap.mmap(-1, rows * len(COUNTERS) * 8)).cast("Q")
    children = []
    for row in range(rows):
        counts = shared[row * len(COUNTERS) : (row + 1) * len(COUNTERS)]
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            gc.freeze()
            gc.disable()
            Server(context, listening, counts, job["proxy"]).serve()
        children.append(pid)
    print(json.dumps({"port": listening.getsockname()[1], "pids": children}), flush=True)
    for _ in sys.stdin:
        cells = struct.unpack(f"{len(shared)}Q", shared)
        print(
            json.dumps({name: sum(cells[i :: len(COUNTERS)]) for i, name in enumerate(COUNTERS)}),
            flush=True,
        )
    for pid in children:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
