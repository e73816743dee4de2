"""A last word that arrives: keep a refused client's socket for a moment after its alert was sent.

Closing a socket with unread bytes in it makes the kernel send a reset, and a reset makes the client's kernel throw away the
alert that says why. So the socket is half-closed, what the client still sends is thrown away, and it is closed when the client
closes, or after PATIENCE_S. At the bound the oldest goes: it has had the most time to read.

Never: keeps more than MOST at once; keeps anything but a socket; takes a place of limits.connections.
"""

from __future__ import annotations

import contextlib
import socket
from collections import OrderedDict
from typing import TYPE_CHECKING

from relay.sockets import StreamSocket
from relay.worker.loop import IN

if TYPE_CHECKING:
    from relay.worker.loop import Loop

PATIENCE_S = 1.0
MOST = 256
_BYTES = 65_536
_READS_PER_EVENT = 4
_MOST_READS = 256  # 16 MB: whoever sends more than that is not waiting for an answer
_sink = bytearray(_BYTES)
_INFINITY = float("inf")


class LingeringCloses:
    """The refused clients that are being waited for, the oldest first; `most` is their bound."""

    def __init__(self, loop: Loop, most: int = MOST) -> None:
        self.loop = loop
        self.most = most
        self.open: OrderedDict[_LingeringClose, None] = OrderedDict()

    def take(self, sock: StreamSocket, mask: int) -> None:
        """Take over a socket that is watched with `mask` (0: not yet) from a session that has ended."""
        loop, fd = self.loop, sock.fileno()
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        if _read_to_end(sock):
            loop.forget(fd, sock.close)
            return
        if len(self.open) >= self.most:
            next(iter(self.open)).on_deadline()
        parting = _LingeringClose(self, sock)
        if mask == 0:
            loop.add(fd, IN, parting.on_ready)
        else:
            loop.handle(fd, parting.on_ready)
            loop.watch(fd, mask, IN)
        loop.schedule(parting)


class _LingeringClose:
    """One of them; see `loop.Timed`."""

    __slots__ = ("_all", "_reads", "_sock", "_until_at", "timer_at")

    def __init__(self, everyone: LingeringCloses, sock: StreamSocket) -> None:
        self._all = everyone
        self._sock = sock
        self._reads = 0
        self._until_at = everyone.loop.now + PATIENCE_S
        self.timer_at = _INFINITY
        everyone.open[self] = None

    def on_ready(self, mask: int) -> None:  # noqa: ARG002 (a read tells)
        self._reads += _READS_PER_EVENT
        if _read_to_end(self._sock) or self._reads > _MOST_READS:
            self.on_deadline()

    def due_at(self) -> float:
        return self._until_at

    def on_deadline(self) -> None:
        if self._until_at != _INFINITY:
            self._until_at = _INFINITY
            del self._all.open[self]
            self._all.loop.forget(self._sock.fileno(), self._sock.close)

    def step(self) -> None:
        """There is no handshake any more."""

    on_bug = on_deadline


def _read_to_end(sock: StreamSocket) -> bool:
    """Throw away some of what is there; True when nothing more will come."""
    for _ in range(_READS_PER_EVENT):
        try:
            # Dropped in the kernel, not copied (tcp(7)): a client that goes on sending is cheap.
            if sock.recv_into(_sink, _BYTES, socket.MSG_TRUNC) == 0:
                return True
        except BlockingIOError:
            return False
        except OSError:
            return True
    return False
