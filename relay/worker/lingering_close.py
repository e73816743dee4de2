"""Lingering close: give a refused client time to read its TLS alert.

If a socket with unread bytes is closed, the kernel sends a reset, and the client's
kernel drops the alert that says why it was refused. So the socket is half-closed, the
client's bytes are discarded, and the socket is closed when the client closes, or after
PATIENCE_S. At the limit the oldest socket is closed, as its client has had the most
time to read.

Never: keeps more than `most` sockets; keeps anything but a socket; counts towards
limits.connections.
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
_MOST_READS = 256  # 16 MiB: a client that sends more does not wait for an answer
_sink = bytearray(_BYTES)
_INFINITY = float("inf")


class LingeringCloses:
    """All lingering sockets of a worker, the oldest first; at most `most`."""

    def __init__(self, loop: Loop, most: int = MOST) -> None:
        self.loop = loop
        self.most = most
        self.open: OrderedDict[_LingeringClose, None] = OrderedDict()

    def take(self, sock: StreamSocket, mask: int) -> None:
        """Take over the socket of a session that has ended.

        `mask` is what the loop watches it for, 0 if it does not yet.
        """
        loop, fd = self.loop, sock.fileno()
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        if _read_to_end(sock):
            loop.forget(fd, sock.close)
            return
        if len(self.open) >= self.most:
            next(iter(self.open)).on_deadline()
        lingering = _LingeringClose(self, sock)
        if mask == 0:
            loop.add(fd, IN, lingering.on_ready)
        else:
            loop.handle(fd, lingering.on_ready)
            loop.watch(fd, mask, IN)
        loop.schedule(lingering)


class _LingeringClose:
    """One lingering socket; see `loop.Timed`."""

    __slots__ = ("_all", "_reads", "_sock", "_until_at", "timer_at")

    def __init__(self, owner: LingeringCloses, sock: StreamSocket) -> None:
        self._all = owner
        self._sock = sock
        self._reads = 0
        self._until_at = owner.loop.now + PATIENCE_S
        self.timer_at = _INFINITY
        owner.open[self] = None

    def on_ready(self, mask: int) -> None:  # noqa: ARG002 (the read shows what is there)
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
        """Do nothing: there is no handshake."""

    on_bug = on_deadline


def _read_to_end(sock: StreamSocket) -> bool:
    """Discard some of the received bytes.

    True at the end of the stream, or on an error.
    """
    for _ in range(_READS_PER_EVENT):
        try:
            # MSG_TRUNC drops the bytes in the kernel (tcp(7)), so a client that keeps
            # on sending costs little.
            if sock.recv_into(_sink, _BYTES, socket.MSG_TRUNC) == 0:
                return True
        except BlockingIOError:
            return False
        except OSError:
            return True
    return False
