"""The hot path: moves bytes from one TLS connection to the other.

The common case is one short record. `on_inbound` and `on_outbound` of
`relay.worker.driver` move it themselves with `read` and `write`, because one saved call
is measurable (2 % of the CPU of a request). `go_on` handles every other read result,
`not_taken` every write that the sink did not accept.

Back-pressure: if the sink blocks, what was read for it is copied into `held`. The
session keeps it, and does not read that source again until `push` has written it.

A call moves at most BUDGET_BYTES, so that one bulk transfer does not starve the others;
level-triggered epoll reports the rest. A record shorter than the buffer ends the call
without another read: OpenSSL reads one record at a time, never more than the buffer
holds, so nothing is left inside OpenSSL. A source that sends much is read by
`relay.tls.streaming`.

Never: touches a session, a counter or the clock; raises for what a peer does.
Next: `relay.worker.relaying.on_event`
"""

from __future__ import annotations

from typing import Any

from relay.tls.memory_bio import End, Sealed, seal
from relay.tls.raw import RECORD_BYTES
from relay.tls.records import (
    BUFFER,
    BUFFER_BYTES,
    VIEW,
    RecordTransfer,
    Status,
    read,
    watch_alerts,
    write,
)
from relay.tls.streaming import BUDGET_BYTES, LONG_BYTES, read_one, stream

__all__ = [
    "BUDGET_BYTES",
    "BUFFER",
    "BUFFER_BYTES",
    "LONG_BYTES",
    "VIEW",
    "End",
    "Pump",
    "Sealed",
    "Status",
    "read",
    "read_one",
    "seal",
    "watch_alerts",
    "write",
]
# After two full records in a turn there are likely to be more.
FEW_BYTES = 2 * RECORD_BYTES


class Pump(RecordTransfer):
    """The transfers of one process between two TLS connections."""

    __slots__ = ()

    def move(self, source: End, sink: End) -> int:
        """Move what the source has, at most BUDGET_BYTES.

        Returns the number of bytes; if `status` says why it stopped, its complement.
        """
        if not source.pause:
            return self.stream(source, sink)
        return self.go_on(source, sink, read(source.ssl, BUFFER, RECORD_BYTES))

    def stream(self, source: End, sink: End) -> int:
        """Do what `move` does with a source that streams."""
        size = stream(self, source, sink)
        if size is None:
            return self.go_on(source, sink, read(source.ssl, BUFFER, RECORD_BYTES), tried=True)
        return size

    def go_on(
        self,
        source: End,
        sink: End,
        size: int,
        *,
        tried: bool = False,
        # Bound once: global look-ups would double the cost of the loop's Python.
        _read: Any = read,
        _write: Any = write,
        _buffer: Any = BUFFER,
        _record: int = RECORD_BYTES,
    ) -> int:
        """Continue a `move` after a first read that returned `size`.

        `tried`: the source is known not to stream now.
        """
        moved, at, ssl, sink_ssl = 0, _buffer, source.ssl, sink.ssl
        while size > 0:
            if _write(sink_ssl, at, size) != size:
                return self.not_taken(sink_ssl, size, moved)
            moved += size
            if size != _record or moved >= BUDGET_BYTES:
                if not tried and moved >= LONG_BYTES and source.pause:
                    source.pause -= 1
                return moved
            if moved == FEW_BYTES and not tried:
                streamed = stream(self, source, sink, moved)
                if streamed is not None:
                    return streamed
                tried = True
            at = _buffer + moved % BUFFER_BYTES
            size = _read(ssl, at, _record)
        return self.not_read(ssl, size, moved)
