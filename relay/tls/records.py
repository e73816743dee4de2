"""Records: the buffer of a process, and how a transfer through it ended.

There is one BUFFER per process: OpenSSL decrypts records into it, and encrypts them
from there. `relay.tls.pump` and `relay.tls.streaming` move records through it. Byte
number n of a call is at n % BUFFER_BYTES, so what was moved last can be looked at.

The usual result of a transfer is the number of bytes. Otherwise (`status` is not OPEN)
it is the number's complement, so the caller's common case is one comparison.

Never: touches a session, a counter or the clock; raises for what a peer does.
Next: `relay.tls.pump.Pump`
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

BUFFER_BYTES = 4 * RECORD_BYTES
BUFFER: Any = ffi.new("char[]", BUFFER_BYTES)
VIEW: Any = ffi.buffer(BUFFER)
read: Any = lib.SSL_read
write: Any = lib.SSL_write
_CLOSE_NOTIFY = 0


class Status(IntEnum):
    """How a transfer ended; OPEN is the usual case."""

    OPEN = 0
    ENDED = 1  # the source sent close_notify
    TRUNCATED = 2  # the source sent FIN without close_notify
    BLOCKED = 3  # the sink accepts no more; `held` is to be written again
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


class RecordTransfer:
    """How the transfers of one process end.

    `status` and `held` belong to the last call that returned a complement.
    """

    __slots__ = ("held", "status", "undelivered")

    def __init__(self) -> None:
        self.status = Status.OPEN
        self.held: Any = b""  # bytes, or Sealed; see also `relay.worker.transfer`
        # For the sink, from before the source's end or failure. The session empties it.
        self.undelivered: Any = b""

    def read(self, source: Pointer) -> bytes | int:
        """One record of the source; 0 if there is none now, ~0 if `status` says why."""
        size: int = read(source, BUFFER, RECORD_BYTES)
        if size > 0:
            return bytes(VIEW[:size])
        return self.not_read(source, size, 0)

    def push(self, sink: Pointer, held: bytes) -> int:
        """Write the same held bytes again.

        Returns their number. With BLOCKED or SINK_FAILED it is the complement of what
        the sink took, and `held` is the rest.
        """
        done, left = 0, held
        while left:
            # One record each: OpenSSL reports success only after writing all bytes, and
            # a session whose sink takes a record makes progress.
            size = min(len(left), RECORD_BYTES)
            result: int = write(sink, left, size)
            if result != size:
                error = lib.SSL_get_error(sink, result)
                blocked = error in (WANT_WRITE, WANT_READ)
                self.status = Status.BLOCKED if blocked else Status.SINK_FAILED
                self.held = left
                return ~done
            done += size
            left = left[size:]
        return done

    def not_read(self, source: Pointer, result: int, moved: int) -> int:
        """Handle a read that returned no bytes, after `moved` bytes.

        Returns `moved` if there is nothing to read now, otherwise its complement.
        """
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
        """Handle a write that did not accept the `size` bytes after the `moved` ones.

        Returns the complement of `moved`, with BLOCKED or SINK_FAILED.
        """
        begin = moved % BUFFER_BYTES
        # These bytes were read, so they must be delivered. `push` counts them.
        error = lib.SSL_get_error(sink, -1)
        self.status = Status.BLOCKED if error in (WANT_WRITE, WANT_READ) else Status.SINK_FAILED
        self.held = VIEW[begin : begin + size]
        return ~moved
