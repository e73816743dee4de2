"""The channel that carries views of the scoreboard to the admin process.

A view is a set of descriptors: the catalogue of names, and the memories with the
values. Each message is a number and the descriptors of one view, and the newest message
counts. The supervisor keeps one unsent view at most, so a reader that does not read
costs nothing.

Never: blocks the supervisor. Only `ViewReader.snapshot` waits, for a view to arrive.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Sequence

from relay.errors import RelayError
from relay.shared.snapshot import PATIENCE_S, CatalogueCache, Snapshot, View, ViewFds

MESSAGE_BYTES = 16
MOST_DESCRIPTORS = 250
_RETRY_S = 0.0005  # the writer holds the lock for microseconds
_QUEUE_BYTES = 4096  # a few messages: a reader that does not read must not collect descriptors


class ViewSender:
    """The supervisor's end, for one reader at a time."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._unsent: tuple[int, list[int]] | None = None

    def open(self) -> socket.socket:
        """The other end, for a new reader. Raises OSError."""
        self.close()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _QUEUE_BYTES)
        return theirs

    def offer(self, number: int, fds: Sequence[int]) -> None:
        """Send a new view, now or in a later `step`.

        It replaces one that is not sent yet.
        """
        self._unsent = (number, list(fds[:MOST_DESCRIPTORS]))
        self.step()

    def step(self) -> None:
        """Send the newest view, if it is not sent yet."""
        if self._unsent is None or self._socket is None:
            return
        number, fds = self._unsent
        try:
            socket.send_fds(self._socket, [b"%d" % number], fds)
            self._unsent = None
        except (BlockingIOError, InterruptedError):
            return
        except ConnectionError:
            self.close()
        except OSError:  # too many descriptors in flight; a later `step` sends the newest view
            return

    def close(self) -> None:
        """Close the channel."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class ViewReader:
    """The admin process's end. `fd` is a socket of messages."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._view: View | None = None
        self._cache = CatalogueCache()

    def snapshot(self, timeout_s: float = PATIENCE_S, *, routes: bool = True) -> Snapshot:
        """A consistent copy of the newest view. Raises RelayError after `timeout_s`.

        Without `routes` it is quick: their counters are left out.
        """
        deadline = time.monotonic() + timeout_s
        why = "the supervisor has not sent a view of its counters"
        while True:
            self._receive()
            if self._view is not None:
                snapshot, why = self._view.read(routes=routes)
                if snapshot is not None:
                    return snapshot
            if time.monotonic() > deadline:
                raise RelayError(why)
            time.sleep(_RETRY_S)

    def _receive(self) -> None:
        """Receive all messages, and use the last view."""
        newest: ViewFds | None = None
        with contextlib.suppress(OSError):
            while True:
                data, fds, _, _ = socket.recv_fds(self._socket, MESSAGE_BYTES, MOST_DESCRIPTORS)
                if not data or len(fds) < len(ViewFds._fields) - 1:
                    # The message is incomplete if this process has too many files open.
                    for fd in fds:
                        os.close(fd)
                    break
                if newest is not None:
                    newest.close()
                newest = ViewFds(fds[0], fds[1], fds[2], fds[3], tuple(fds[4:]))
        if newest is not None:
            try:
                view = View(newest, self._cache)
            except RelayError:
                newest.close()
                raise
            before, self._view = self._view, view
            if before is not None:
                before.close()
