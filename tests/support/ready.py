"""`select` over poll(2), which takes descriptors of any number.

A long test run has more files open than select(2) can handle.
"""

from __future__ import annotations

import select as _select
import socket
from collections.abc import Sequence


def select(
    readers: Sequence[socket.socket], writers: Sequence[socket.socket], timeout_s: float
) -> tuple[list[socket.socket], list[socket.socket]]:
    """The sockets that can be read (or have ended), and those that can be written."""
    wanted: dict[int, int] = {}
    for socks, event in ((readers, _select.POLLIN), (writers, _select.POLLOUT)):
        for sock in socks:
            wanted[sock.fileno()] = wanted.get(sock.fileno(), 0) | event
    poll = _select.poll()
    for fd, events in wanted.items():
        poll.register(fd, events)
    ended = _select.POLLHUP | _select.POLLERR
    found = dict(poll.poll(1000 * timeout_s))

    def ready(socks: Sequence[socket.socket], event: int) -> list[socket.socket]:
        return [sock for sock in socks if found.get(sock.fileno(), 0) & (event | ended)]

    return ready(readers, _select.POLLIN), ready(writers, _select.POLLOUT)
