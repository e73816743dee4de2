"""The hot path: moves bytes from one TLS connection to the other.

There is one BUFFER per process: OpenSSL decrypts a record into it, and encrypts it from
there. The common case is one short record. `on_inbound` and `on_outbound` of
`relay.worker.driver` move it themselves with `read` and `write`, because one saved call
is measurable (2 % of the CPU of a request). `go_on` handles every other read result,
`not_taken` every write that the sink did not accept.

Back-pressure: if the sink blocks, the current record is copied into `held`. The session
keeps it, and does not read that source again until `push` has written it.

A call moves at most BUDGET_BYTES, so that one bulk transfer does not starve the others;
level-triggered epoll reports the rest. A record shorter than the buffer ends the call
without another read: OpenSSL reads one record at a time, never more than the buffer
holds, so nothing is left inside OpenSSL.

The usual result is the number of bytes. Otherwise (`status` is not OPEN) it is the
number's complement, so the caller's common case is one comparison.

Never: touches a session, a counter or the clock; raises for what a peer does.
Next: `relay.worker.relaying.on_event`
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from relay.tls.raw import (
    NULL,
    READ_ALERT,
    RECORD_BYTES,
    WANT_READ,
    WANT_WRITE,
    ZERO_RETURN,
    Pointer,
    ffi,
    lib,
)

BUDGET_BYTES = 16 * RECORD_BYTES
BUFFER: Any = ffi.new("char[]", RECORD_BYTES)
VIEW: Any = ffi.buffer(BUFFER)
read: Any = lib.SSL_read
write: Any = lib.SSL_write
_CLOSE_NOTIFY = 0


class Status(IntEnum):
    """How a transfer ended; OPEN is the usual case."""

    OPEN = 0
    ENDED = 1  # the source sent close_notify
    TRUNCATED = 2  # the source sent FIN without close_notify
    BLOCKED = 3  # the sink accepts no more; `held` is the record to write again
    SOURCE_FAILED = 4
    SINK_FAILED = 5  # the peer has nothing of `held`: TLS delivers only whole records
    SOURCE_WANTS_WRITE = 6  # OpenSSL must answer the source (key update) and its socket is full


class _Alert:
    """The last alert that OpenSSL read, and its connection.

    Another connection may have read an alert since, in a handshake or a write.
    """

    __slots__ = ("number", "ssl")

    def __init__(self) -> None:
        self.number = -1
        self.ssl: Pointer = NULL


_last_alert = _Alert()


def _on_info(ssl: Any, where: int, value: int) -> None:
    if where == READ_ALERT:
        _last_alert.number, _last_alert.ssl = value & 0xFF, ssl


_INFO_CALLBACK: Any = ffi.callback("void(SSL *, int, int)", _on_info)


def watch_alerts(ssl: Pointer) -> None:
    """From now on distinguish a close_notify from a FIN without one.

    Call it after the handshake, in which the callback would run dozens of times.
    """
    _last_alert.ssl = NULL  # a freed connection may have had the same address
    lib.SSL_set_info_callback(ssl, _INFO_CALLBACK)


class Pump:
    """The transfer of one process.

    `status` and `held` belong to the last call that returned a complement.
    """

    __slots__ = ("held", "status")

    def __init__(self) -> None:
        self.status = Status.OPEN
        self.held: Any = b""  # bytes; see also `relay.worker.transfer`

    def move(self, source: Pointer, sink: Pointer) -> int:
        """Move what the source has, at most BUDGET_BYTES.

        Returns the number of bytes; if `status` says why it stopped, its complement.
        """
        return self.go_on(source, sink, read(source, BUFFER, RECORD_BYTES))

    def go_on(
        self,
        source: Pointer,
        sink: Pointer,
        size: int,
        # Bound once: global look-ups would double the cost of the loop's Python.
        _read: Any = read,
        _write: Any = write,
        _buffer: Any = BUFFER,
        _record: int = RECORD_BYTES,
    ) -> int:
        """Continue a `move` after a first read that returned `size`."""
        moved = 0
        while size > 0:
            if _write(sink, _buffer, size) != size:
                return self.not_taken(sink, size, moved)
            moved += size
            if size != _record or moved >= BUDGET_BYTES:
                return moved
            size = _read(source, _buffer, _record)
        return self._not_read(source, size, moved)

    def read(self, source: Pointer) -> bytes | int:
        """One record of the source; 0 if there is none now, ~0 if `status` says why."""
        size: int = read(source, BUFFER, RECORD_BYTES)
        if size > 0:
            return bytes(VIEW[:size])
        return self._not_read(source, size, 0)

    def push(self, sink: Pointer, held: bytes) -> int:
        """Write the same held bytes again.

        Returns their number, or ~0 with BLOCKED or SINK_FAILED.
        """
        size = len(held)
        result: int = write(sink, held, size)
        if result == size:
            return size
        error = lib.SSL_get_error(sink, result)
        # OpenSSL reports success only after writing all bytes, even in several records.
        # So there is no partial success to count.
        if error in (WANT_WRITE, WANT_READ):
            self.status, self.held = Status.BLOCKED, held
        else:
            self.status = Status.SINK_FAILED
        return ~0

    def _not_read(self, source: Pointer, result: int, moved: int) -> int:
        error = lib.SSL_get_error(source, result)
        if error == WANT_READ:
            return moved
        if error == ZERO_RETURN:
            closed = _last_alert.ssl == source and _last_alert.number == _CLOSE_NOTIFY
            self.status = Status.ENDED if closed else Status.TRUNCATED
        elif error == WANT_WRITE:
            self.status = Status.SOURCE_WANTS_WRITE
        else:
            self.status = Status.SOURCE_FAILED
        return ~moved

    def not_taken(self, sink: Pointer, size: int, moved: int) -> int:
        """Handle a write that did not accept the `size` bytes in BUFFER.

        Returns the complement of `moved`, with BLOCKED or SINK_FAILED.
        """
        # These bytes were read, so they must be delivered. `push` counts them.
        error = lib.SSL_get_error(sink, -1)
        self.status = Status.BLOCKED if error in (WANT_WRITE, WANT_READ) else Status.SINK_FAILED
        self.held = VIEW[:size]
        return ~moved
