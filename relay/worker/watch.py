"""Looks at the HTTP/1 messages of a session that is about to end, as it relays them.

Only such sessions have a watch (see `relay.worker.quiet_ends`). The others pay nothing
for it.

Never: changes a byte, or closes a session.
"""

from __future__ import annotations

from relay.errors import Side
from relay.sockets import cork
from relay.worker.connection import Connection
from relay.worker.message_borders import MessageBorders
from relay.worker.transfer import Transfer


class Watch:
    """The messages of one session. It does not refer to the session."""

    __slots__ = ("borders",)

    def __init__(self) -> None:
        self.borders = MessageBorders()

    def move(self, pump: Transfer, side: Side, source: Connection, sink: Connection) -> int:
        """Do what `Pump.move` does with one record, and look at it."""
        data = pump.take(source)
        if isinstance(data, int):
            return data
        if side is Side.INBOUND:
            self.borders.from_client(data)
        else:
            self.borders.from_backend(data)
            if self.borders.between:
                # The end of the connection goes out with the end of the answer: the
                # client sees both at once, and does not begin another request.
                cork(sink.sock, 1)
        return pump.put(sink, data)
