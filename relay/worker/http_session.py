"""The handlers of a session that speaks HTTP/1, while its last exchange is kept.

They do what the ordinary handlers do, and keep what was read. A connection with many
exchanges in a second goes back to the ordinary handlers until the next tick: keeping
costs about 90 bytecode instructions, and an exchange without it 180.

Never: parses what a peer sent.
Next: `relay.worker.last_exchange.LastExchange`
"""

from __future__ import annotations

from abc import abstractmethod

from relay.core.lifecycle import State
from relay.tls.pump import BUFFER_BYTES, VIEW
from relay.worker.deadlines import TimedSession
from relay.worker.last_exchange import ANSWER, KEPT_BYTES, TAIL_BYTES, LastExchange
from relay.worker.loop import IN

RECORDS_PER_TICK = 32


class HttpSession(TimedSession):
    """A session whose last exchange can be kept."""

    __slots__ = ()

    @abstractmethod
    def on_inbound(self, mask: int) -> None:
        """The client's socket is ready."""

    @abstractmethod
    def on_outbound(self, mask: int) -> None:
        """The backend's socket is ready."""

    def keep_first_exchange(self, answer: bytes) -> None:
        """Keep the first one, and those after it. `answer`: its bytes, all of them."""
        self.last = last = LastExchange()
        last.from_client(self.asked if len(self.asked) == self.bytes_in else b"", self.bytes_in)
        last.from_backend(answer[:KEPT_BYTES] or ANSWER, answer[-TAIL_BYTES:], 0)
        self.asked = b""
        self.keep_exchanges()

    def keep_exchanges(self) -> None:
        """Keep the next ones, until there are too many for this second."""
        end = self.outbound
        if end is not None and self.watch is None and self.state is State.RELAY:
            self.kept = RECORDS_PER_TICK
            loop = self.worker.loop
            loop.handle(self.inbound.fd, self.on_http_inbound)
            loop.handle(end.fd, self.on_http_outbound)

    def on_http_inbound(self, mask: int) -> None:
        """The client's socket is ready."""
        before, plain = self.bytes_in, self.outbound is None or self.outbound.ssl is None
        (self.on_plain_inbound if plain else self.on_inbound)(mask)
        size = self.bytes_in - before
        last = self.last
        if size and mask == IN and last is not None:
            data = VIEW[:size] if size < KEPT_BYTES else b""
            last.from_client(data, self.bytes_in)
            self._count_record(last)

    def on_http_outbound(self, mask: int) -> None:
        """The backend's socket is ready."""
        before, plain = self.bytes_out, self.outbound is None or self.outbound.ssl is None
        (self.on_plain_outbound if plain else self.on_outbound)(mask)
        size = self.bytes_out - before
        last = self.last
        if size and mask == IN and last is not None:
            begins = tail = b""
            if not self.inbound.held:  # else the buffer has other bytes
                ends_at = size % BUFFER_BYTES or BUFFER_BYTES
                tail = VIEW[max(0, ends_at - TAIL_BYTES) : ends_at]
                if size <= BUFFER_BYTES:
                    begins = VIEW[: min(size, KEPT_BYTES)]
            last.from_backend(begins, tail, before)
            self._count_record(last)

    def _count_record(self, last: LastExchange) -> None:
        self.kept -= 1
        end = self.outbound
        if self.kept < 0 and end is not None and self.watch is None and self.state is State.RELAY:
            last.forget()
            plain, loop = end.ssl is None, self.worker.loop
            loop.handle(self.inbound.fd, self.on_plain_inbound if plain else self.on_inbound)
            loop.handle(end.fd, self.on_plain_outbound if plain else self.on_outbound)
            self.worker.busy.append(self)
