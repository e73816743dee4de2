"""The handlers of a session whose backend has no TLS of ours.

They do what `on_inbound`, `on_outbound` and `on_first_reply` of
`relay.worker.driver.DrivenSession` do between two TLS connections. The client may be
plain, too (passthrough).

Never: moves a byte itself (that is `relay.worker.transfer`).
Next: `relay.worker.relaying.on_event`
"""

from __future__ import annotations

from abc import abstractmethod

from relay.core.lifecycle import Event
from relay.errors import Side
from relay.worker import paced_stream, relaying
from relay.worker.connection import Connection
from relay.worker.loop import IN, Handler
from relay.worker.session import Session

_MUCH_BYTES = 4_096  # a message that may be a part of a stream


class PlainSession(Session):
    """A session that can have plain ends."""

    __slots__ = ()

    @abstractmethod
    def _run(self, work: None, event: Event | None = None) -> None:
        """Follow an event, and enter the next stages."""

    def on_plain_inbound(self, mask: int) -> None:
        """The client's socket is ready."""
        if mask != IN:
            self._run(None, relaying.on_event(self, Side.INBOUND, mask))
            return
        worker, source = self.worker, self.inbound
        size = worker.pump.between(source, self.outbound)  # type: ignore[arg-type]
        if size >= 0:
            self.bytes_in += size
            worker.cells[self.cell_in] += size
            self.active_at = worker.loop.now
            if size > _MUCH_BYTES:
                paced_stream.note(self, Side.INBOUND, source, size)
        else:
            self._run(None, relaying.unusual(self, Side.INBOUND, ~size))

    def on_plain_outbound(self, mask: int) -> None:
        """The backend's socket is ready."""
        if mask != IN:
            self._run(None, relaying.on_event(self, Side.OUTBOUND, mask))
            return
        worker, source = self.worker, self.outbound
        size = worker.pump.between(source, self.inbound)  # type: ignore[arg-type]
        if size >= 0:
            self.bytes_out += size
            worker.cells[self.cell_out] += size
            self.answered_at = worker.loop.now
            if size > _MUCH_BYTES and source is not None:
                paced_stream.note(self, Side.OUTBOUND, source, size)
        else:
            self._run(None, relaying.unusual(self, Side.OUTBOUND, ~size))

    def move(self, side: Side) -> int:
        """Move what this side has sent; how many bytes it was."""
        before = self.bytes_in + self.bytes_out
        (self.on_plain_inbound if side is Side.INBOUND else self.on_plain_outbound)(IN)
        return self.bytes_in + self.bytes_out - before

    def enter_plain_relay(
        self, outbound: Connection, on_reply: Handler, on_request: Handler
    ) -> None:
        """Watch both sockets. A socket that was not waited for is new to the loop."""
        loop = self.worker.loop
        for end, handler in ((outbound, on_reply), (self.inbound, on_request)):
            if end.mask == 0:
                end.mask = IN
                loop.add(end.fd, IN, handler)
            else:
                loop.handle(end.fd, handler)
