"""uvicorn's HTTP protocol with limits of its own.

There may be no proxy in front that sets limits. A request has a deadline and a maximum
size, and the number of connections is bounded.

Never: refuses a new connection; at the limit an old one is closed instead.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Scrapers and probes need few connections. More are a mistake or an attack.
CONNECTIONS = 64
KEEP_ALIVE_S = 15
REQUEST_S = 5
REQUEST_BYTES = 65_536


class LimitedProtocol(HttpToolsProtocol):
    """One HTTP connection."""

    asked_at: float
    unanswered_bytes: int
    _deadline: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline; at the limit, close another connection."""
        super().connection_made(transport)
        self._wait_for_request(REQUEST_S)
        if len(self.connections) >= CONNECTIONS:
            victim = self._victim()
            # At once: uvicorn removes it in the next loop turn, and one turn can accept
            # many connections.
            self.connections.discard(victim)
            victim.transport.abort()

    def _victim(self) -> LimitedProtocol:
        """The connection to close: the longest idle one of the busiest address."""
        limited = [one for one in self.connections if isinstance(one, LimitedProtocol)]
        count = Counter(one.address for one in limited)
        return min(limited, key=lambda one: (-count[one.address], one.asked_at))

    @property
    def address(self) -> str:
        """The client's address; "" for every client of a unix socket."""
        return self.client[0] if self.client else ""

    def _wait_for_request(self, timeout_s: float) -> None:
        self.asked_at = self.loop.time()
        self.unanswered_bytes = 0
        self._deadline = self.loop.call_later(timeout_s, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        """Close a connection whose request is too long."""
        self.unanswered_bytes += len(data)
        if self.unanswered_bytes > REQUEST_BYTES:
            self.transport.abort()
        else:
            super().data_received(data)

    def on_response_complete(self) -> None:
        """Restart the deadline for the next request."""
        super().on_response_complete()
        self._deadline.cancel()
        if not self.transport.is_closing():
            self._wait_for_request(KEEP_ALIVE_S + REQUEST_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the deadline."""
        self._deadline.cancel()
        super().connection_lost(exc)
