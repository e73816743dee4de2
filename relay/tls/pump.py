"""The hot path: bytes from one TLS connection to the other.

Theory of operation. One BUFFER per process; OpenSSL decrypts a record into it and encrypts it from there. An ordinary message is one
short record: `Session.on_inbound` and `on_outbound` move it themselves, with `read` and `write`, because a call less is to be noticed
there (measured: 2 % of the CPU of a request). Whatever else a read gives is `go_on`'s, and what a write does not take is `not_taken`'s. A session owns nothing of
the buffer, with one exception: when the sink takes no more, the record in hand is copied into `held`, the session keeps it,
and does not read that source again until `push` has got rid of it. That is the whole back-pressure.

A call moves at most BUDGET_BYTES, so that one bulk transfer does not starve the others; level-triggered epoll reports
what is left. A record shorter than the buffer ends the call without asking the socket again: nothing of it can be
left inside OpenSSL, which reads one record at a time and never more than the buffer holds.

The usual outcome is a plain count of bytes. The unusual ones (`status` other than OPEN) return the count's complement, so that
the caller's common case is one comparison.

Never: touches a session, a counter or the clock; raises for what a peer does.
Next: `relay.worker.relaying.event`
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
_VIEW: Any = ffi.buffer(BUFFER)
read: Any = lib.SSL_read
write: Any = lib.SSL_write
_CLOSE_NOTIFY = 0


class Status(IntEnum):
    """How a transfer ended, when not as usual."""

    OPEN = 0
    ENDED = 1  # the source said close_notify
    TRUNCATED = 2  # the source sent FIN without close_notify
    BLOCKED = 3  # the sink takes no more; `held` is what it did not take
    SOURCE_FAILED = 4
    SINK_FAILED = 5  # nobody has read `held`: a part of a record is nothing to a TLS peer
    SOURCE_WANTS_WRITE = 6  # OpenSSL must answer the source (key update) and its socket is full


class _Alert:
    """The last alert that OpenSSL read, and on which connection: others may have read one since, in a handshake or a write."""

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
    """From now on (after the handshake: it would be called dozens of times during one) tell a close_notify from a bare FIN."""
    _last_alert.ssl = NULL  # it may have been a freed connection with the same address
    lib.SSL_set_info_callback(ssl, _INFO_CALLBACK)


class Pump:
    """The transfer of one process; `status` and `held` belong to the last call that returned a complement."""

    __slots__ = ("held", "status")

    def __init__(self) -> None:
        self.status = Status.OPEN
        self.held = b""

    def move(self, source: Pointer, sink: Pointer) -> int:
        """Relay what the source has, at most BUDGET_BYTES: the number of bytes, or its complement when `status` says why."""
        return self.go_on(source, sink, read(source, BUFFER, RECORD_BYTES))

    def go_on(
        self,
        source: Pointer,
        sink: Pointer,
        size: int,
        # Bound once: a global look-up each would cost as much as the rest of the loop's Python.
        _read: Any = read,
        _write: Any = write,
        _buffer: Any = BUFFER,
        _record: int = RECORD_BYTES,
    ) -> int:
        """`move`, after the first read has given `size`."""
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
        """One record of the source, to be looked at; 0 when there is none now, the complement of 0 when `status` says why."""
        size: int = read(source, BUFFER, RECORD_BYTES)
        if size > 0:
            return bytes(_VIEW[:size])
        return self._not_read(source, size, 0)

    def push(self, sink: Pointer, held: bytes) -> int:
        """Offer held bytes again, the same ones: their number, or the complement of 0 with BLOCKED or SINK_FAILED."""
        size = len(held)
        result: int = write(sink, held, size)
        if result == size:
            return size
        error = lib.SSL_get_error(sink, result)
        # OpenSSL says that it has written when it has written all, be it one record or several: there is no partial success to account for.
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
            said = _last_alert.ssl == source and _last_alert.number == _CLOSE_NOTIFY
            self.status = Status.ENDED if said else Status.TRUNCATED
        elif error == WANT_WRITE:
            self.status = Status.SOURCE_WANTS_WRITE
        else:
            self.status = Status.SOURCE_FAILED
        return ~moved

    def not_taken(self, sink: Pointer, size: int, moved: int) -> int:
        """After a write that did not take the `size` bytes in BUFFER: the complement of `moved`, with BLOCKED or SINK_FAILED."""
        # The source was read: these bytes are ours to deliver, and are counted when they are.
        error = lib.SSL_get_error(sink, -1)
        self.status = Status.BLOCKED if error in (WANT_WRITE, WANT_READ) else Status.SINK_FAILED
        self.held = _VIEW[:size]
        return ~moved
