"""A channel of datagrams from many workers to one reader.

The kernel keeps a few datagrams. When there is no room, sending fails at once.

Never: blocks, or knows what a datagram says.
"""

from __future__ import annotations

import socket


class DatagramChannel:
    """Both ends, which the supervisor makes and keeps."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def writer(self) -> socket.socket:
        """An end for a worker."""
        return self._writer.dup()

    def close(self) -> None:
        """Close both ends: when it is no longer needed, and in a forked child."""
        self._reader.close()
        self._writer.close()
