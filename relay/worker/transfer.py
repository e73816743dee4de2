"""Moves bytes between two ends of which at least one has no TLS of ours.

`relay.tls.pump.Pump` moves them between two TLS connections, and its rules hold here
too: one budget per call, what the sink does not take is `held`, and the usual result is
the number of bytes. An end without `ssl` is plain: a backend on a unix socket, or both
ends of a passthrough connection.

Between two plain ends, bytes are copied with one read and one write. A source that
fills the buffer sends much, so the rest is spliced through a pipe, without a copy.
A short message costs less when it is copied: two system calls instead of four.

Never: touches a session, a counter or the clock; raises for what a peer does.
Next: `relay.worker.relaying.on_event`
"""

from __future__ import annotations

from os import splice

from relay.errors import Side
from relay.sockets import StreamSocket
from relay.tls import stream
from relay.tls.explain import Failure, explain_errno
from relay.tls.pump import (
    BUDGET_BYTES,
    BUFFER,
    BUFFER_BYTES,
    Pump,
    Sealed,
    Status,
    read,
    read_one,
    seal,
    write,
)
from relay.tls.raw import RECORD_BYTES, ffi
from relay.worker.connection import Connection
from relay.worker.pipes import Pipe, Piped, Pipes

COPY_BYTES = 32_768
SPLICE_BUDGET_BYTES = 8 * BUDGET_BYTES
_MOVE, _NONBLOCK = 1, 2  # SPLICE_F_* of linux/splice.h
_FLAGS = _MOVE | _NONBLOCK
_copied = memoryview(bytearray(COPY_BYTES))
_buffer = memoryview(ffi.buffer(BUFFER))
# Places for records: see `relay.tls.records`.
_PLACES = [_buffer[at : at + RECORD_BYTES] for at in range(0, BUFFER_BYTES, RECORD_BYTES)]


class Transfer(Pump):
    """The transfers of one worker. For two TLS ends they are those of `Pump`."""

    __slots__ = ("_errno", "pipes")

    def __init__(self) -> None:
        super().__init__()
        self.pipes = Pipes()
        self._errno = 0

    def between(self, source: Connection, sink: Connection) -> int:
        """Move what the source has, as `Pump.move` does. One end at least is plain."""
        if source.ssl is not None:
            return self._decrypt(source, sink)
        if sink.ssl is not None:
            return self._encrypt(source, sink)
        if source.bulk:
            return self._splice(source, sink, 0)
        # What `_receive` and `_send` do, without four calls for each short message.
        try:
            size = source.sock.recv_into(_copied)
        except OSError as error:
            return self._not_received(error)
        if not size:
            self.status = Status.ENDED
            return ~0
        data = _copied[:size]
        try:
            sent = sink.sock.send(data)
        except OSError as error:
            return self._not_sent(error, data, 0)
        if sent != size:
            self.status, self.held = Status.BLOCKED, bytes(data[sent:])
            return ~sent
        return size if size != COPY_BYTES else self._splice(source, sink, size)

    def take(self, source: Connection) -> bytes | int:
        """What the source has, at most one record, as `Pump.read` does."""
        if source.ssl is not None and not (source.held or source.shut or source.errno):
            return self.read(source.ssl)
        if source.ssl is not None:
            size = read_one(self, source)
        else:
            size = self._receive(source.sock, _PLACES[0])
        return bytes(_buffer[:size]) if size > 0 else size

    def put(self, sink: Connection, held: bytes | Piped | Sealed) -> int:
        """Write held bytes, as `Pump.push` does.

        A plain sink may take a part. Then `held` is the rest, and the result the
        complement of the part.
        """
        if isinstance(held, Piped):
            return self._unpipe(sink, held.pipe, held.size, 0)
        if isinstance(held, Sealed):
            return self._send_sealed(sink.sock, held)
        if sink.ssl is None:
            return self._send(sink.sock, memoryview(held), 0)
        return self.push(sink.ssl, held)

    def hold(self, sink: Connection) -> None:
        """Hold for the sink what it did not take: `held` or `undelivered`."""
        held = self.undelivered or self.held
        self.undelivered = self.held = b""
        if sink.ssl is not None:
            held, sink.pause = seal(sink, held) if isinstance(held, bytes) else held, 0
        sink.held = held

    def failure(self, end: Connection, side: Side) -> Failure:
        """Why this end failed. Call it before anything else reads or writes."""
        return stream.failure(side) if end.ssl is not None else explain_errno(side, self._errno)

    # One direction. Each returns what `between` does.

    def _encrypt(self, source: Connection, sink: Connection) -> int:
        moved, ssl = 0, sink.ssl
        while True:
            at = moved % BUFFER_BYTES
            size = self._receive(source.sock, _PLACES[at // RECORD_BYTES])
            if size <= 0:
                return moved if size == 0 else ~moved
            if write(ssl, BUFFER + at, size) != size:
                return self.not_taken(ssl, size, moved)
            moved += size
            if size != RECORD_BYTES or moved >= BUDGET_BYTES:
                return moved

    def _decrypt(self, source: Connection, sink: Connection) -> int:
        moved, ssl = 0, source.ssl
        while True:
            at = moved % BUFFER_BYTES
            if source.held or source.shut or source.errno:
                size = read_one(self, source, at)
                if size <= 0:
                    return moved if size == 0 else ~moved
            else:
                size = read(ssl, BUFFER + at, RECORD_BYTES)
                if size <= 0:
                    return self.not_read(ssl, size, moved)
            moved = self._send(sink.sock, _buffer[at : at + size], moved)
            if moved < 0 or size != RECORD_BYTES or moved >= BUDGET_BYTES:
                return moved

    # One system call.

    def _receive(self, sock: StreamSocket, buffer: memoryview) -> int:
        """The number of bytes read, 0 if there are none now, ~0 with a `status`."""
        try:
            size = sock.recv_into(buffer)
        except OSError as error:
            return self._not_received(error)
        if size:
            return size
        self.status = Status.ENDED
        return ~0

    def _not_received(self, error: OSError) -> int:
        """Nothing has come yet, or the source has failed."""
        if isinstance(error, BlockingIOError):
            return 0
        self.status, self._errno = Status.SOURCE_FAILED, error.errno or 0
        return ~0

    def _send(self, sock: StreamSocket, data: memoryview, moved: int) -> int:
        """`moved` and what the sink took now; the complement if that is not all."""
        try:
            size = sock.send(data)
        except OSError as error:
            return self._not_sent(error, data, moved)
        if size == len(data):
            return moved + size
        self.status, self.held = Status.BLOCKED, bytes(data[size:])
        return ~(moved + size)

    def _not_sent(self, error: OSError, data: memoryview, moved: int) -> int:
        """The sink has no room, or has failed."""
        self.held = bytes(data)
        if isinstance(error, BlockingIOError):
            self.status = Status.BLOCKED
        else:
            self.status, self._errno = Status.SINK_FAILED, error.errno or 0
        return ~moved

    def _send_sealed(self, sock: StreamSocket, held: Sealed) -> int:
        """Send records as they are. Their bytes count when all are sent."""
        if self._send(sock, memoryview(held.data), 0) >= 0:
            return held.size
        if self.status is Status.BLOCKED:
            self.held = Sealed(self.held, held.size)
        else:
            ffi.errno = self._errno  # where `failure` looks
        return ~0

    # Pipes.

    def _splice(self, source: Connection, sink: Connection, moved: int) -> int:
        """Move bytes through a pipe. Without one, the next call copies again."""
        pipe = self.pipes.take()
        source.bulk = pipe is not None
        if pipe is None:
            return moved
        until = moved + SPLICE_BUDGET_BYTES
        while True:
            size = self._fill(source, pipe)
            if size <= 0:
                self.pipes.give(pipe)
                return moved if size == 0 else ~moved
            moved = self._unpipe(sink, pipe, size, moved)
            if moved < 0:
                return moved
            if size < COPY_BYTES:
                source.bulk = False
                return moved
            if moved >= until:
                return moved
            pipe = self.pipes.take()
            if pipe is None:
                return moved

    def _fill(self, source: Connection, pipe: Pipe) -> int:
        """Read into a pipe, as `_receive` does into a buffer."""
        try:
            size = splice(source.fd, pipe.write_fd, pipe.size, flags=_FLAGS)
        except BlockingIOError:
            source.bulk = False
            return 0
        except OSError as error:
            self.status, self._errno = Status.SOURCE_FAILED, error.errno or 0
            return ~0
        if size:
            return size
        self.status = Status.ENDED
        return ~0

    def _unpipe(self, sink: Connection, pipe: Pipe, size: int, moved: int) -> int:
        """Write what a pipe has, as `_send` does, and give the empty pipe back."""
        try:
            while size:
                sent = splice(pipe.read_fd, sink.fd, size, flags=_FLAGS)
                size -= sent
                moved += sent
        except BlockingIOError:
            self.status, self.held = Status.BLOCKED, Piped(pipe, size)
            return ~moved
        except OSError as error:
            self.status, self._errno = Status.SINK_FAILED, error.errno or 0
            self.held = b""
            return ~moved
        self.pipes.give(pipe)
        return moved
