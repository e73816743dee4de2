"""The line on which the supervisor hands views of the scoreboard to the admin process.

Each message is a number and the descriptors of one view; the newest counts. The supervisor
keeps only what it could not send yet, so a reader that sleeps costs nothing.

Never: waits, but for a reader that is told of a view which has not come yet.
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
_RETRY_S = 0.0005  # the writer holds it for microseconds
_QUEUE_BYTES = 4096  # a few messages: a reader that does not read must not collect descriptors


class ViewSender:
    """The supervisor's end; one reader at a time."""

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
        """A new view; one that was not sent yet is obsolete."""
        self._unsent = (number, list(fds[:MOST_DESCRIPTORS]))
        self.step()

    def step(self) -> None:
        """Send the newest view, if it could not be sent before."""
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
        except OSError:  # too many descriptors are on their way; the reader gets the newest later
            return

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class ViewReader:
    """The admin process's end: each message is a view, as descriptors; the newest
    counts. `fd` is a socket of messages.
    """

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._view: View | None = None
        self._known = CatalogueCache()

    def snapshot(self, timeout_s: float = PATIENCE_S) -> Snapshot:
        """A consistent copy. Raises RelayError when there is none in time."""
        deadline = time.monotonic() + timeout_s
        why = "the supervisor has not said where its counters are"
        while True:
            self._receive()
            if self._view is not None:
                snapshot, why = self._view.read()
                if snapshot is not None:
                    return snapshot
            if time.monotonic() > deadline:
                raise RelayError(why)
            time.sleep(_RETRY_S)

    def _receive(self) -> None:
        """Take what has come; of several views only the last one."""
        newest: ViewFds | None = None
        with contextlib.suppress(OSError):
            while True:
                data, fds, _, _ = socket.recv_fds(self._socket, MESSAGE_BYTES, MOST_DESCRIPTORS)
                if not data or len(fds) < len(ViewFds._fields) - 1:
                    for fd in fds:  # a message that was cut, because we have too many files open
                        os.close(fd)
                    break
                if newest is not None:
                    newest.close()
                newest = ViewFds(fds[0], fds[1], fds[2], fds[3], tuple(fds[4:]))
        if newest is not None:
            try:
                view = View(newest, self._known)
            except RelayError:
                newest.close()
                raise
            before, self._view = self._view, view
            if before is not None:
                before.close()
