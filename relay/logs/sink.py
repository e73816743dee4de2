"""Writes to an open file, pipe, socket or terminal without waiting.

Never: waits for a reader; changes the flags of a descriptor that other processes share.
"""

from __future__ import annotations

import os
import select
import socket
import stat

PIPE_BYTES = select.PIPE_BUF  # a write of this size to a pipe is not split


class Sink:
    """One open destination. Owns its descriptor."""

    def __init__(self, fd: int, *, poll_first: bool) -> None:
        self._fd = fd
        mode = os.fstat(fd).st_mode
        self.is_file = stat.S_ISREG(mode)
        self._socket = socket.socket(fileno=fd) if stat.S_ISSOCK(mode) else None
        self._poll: select.poll | None = None
        if poll_first and self._socket is None and not self.is_file:
            self._poll = select.poll()
            self._poll.register(fd, select.POLLOUT)

    @classmethod
    def shared(cls, fd: int) -> Sink | None:
        """A sink for stdout or stderr, left unchanged for others; None when closed."""
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISSOCK(mode):
                try:
                    # A second open file description has its own O_NONBLOCK flag.
                    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                    return cls(os.open(f"/proc/self/fd/{fd}", flags), poll_first=False)
                except OSError:
                    # The pipe belongs to another user. After poll it has room for
                    # PIPE_BUF bytes, unless another process fills it first.
                    return cls(_duplicate(fd), poll_first=True)
            return cls(_duplicate(fd), poll_first=False)
        except OSError:
            return None

    def write(self, data: bytes) -> int:
        """The number of bytes written, 0 when there is no room. Raises OSError."""
        try:
            if self._socket is not None:
                return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            if self._poll is not None:
                if not self._poll.poll(0):
                    return 0
                data = data[:PIPE_BYTES]
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0

    def wait(self, timeout_s: float) -> None:
        """Wait until there may be room, at most `timeout_s`."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        poll.poll(timeout_s * 1000)

    def close(self) -> None:
        """Close the descriptor."""
        if self._socket is not None:
            self._socket.close()
        else:
            os.close(self._fd)


def _duplicate(fd: int) -> int:
    """A close-on-exec copy. Raises OSError."""
    copy = os.dup(fd)
    os.set_inheritable(copy, False)
    return copy
