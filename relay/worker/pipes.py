"""The pipes through which bytes go from one socket to another without being copied.

splice(2) moves data between a socket and a pipe, so a way from socket to socket needs a
pipe in between. A pipe is empty after most turns, and goes back to be used by another
session. Only if the sink is full, the pipe stays with its session, with what the sink
did not take.

Never: has more than `most` pipes open. Without a pipe the bytes are copied.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

# The largest that the kernel allows by default. A stream of 2 GB costs 0.38 s CPU per
# GB with it, and 0.55 s with 64 KiB (on a busy machine).
PIPE_BYTES = 1024 * 1024
MOST_PIPES = 64


class Pipe:
    """One pipe. It is closed when nothing refers to it any more."""

    __slots__ = ("_owner", "read_fd", "size", "write_fd")

    def __init__(self, owner: Pipes) -> None:
        """Raises OSError."""
        self._owner = owner
        self.read_fd = self.write_fd = -1
        self.read_fd, self.write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.size = 65_536
        # Refused beyond the user's limit of memory in pipes (fs.pipe-user-pages-soft).
        with contextlib.suppress(OSError):
            self.size = fcntl.fcntl(self.write_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def __del__(self) -> None:
        if self.read_fd >= 0:
            self._owner.open -= 1
            os.close(self.read_fd)
            os.close(self.write_fd)


class Piped:
    """`size` bytes in a pipe that a sink did not take yet."""

    __slots__ = ("pipe", "size")

    def __init__(self, pipe: Pipe, size: int) -> None:
        self.pipe = pipe
        self.size = size


class Pipes:
    """All pipes of a worker; `open` counts them."""

    __slots__ = ("_free", "_most", "open")

    def __init__(self, most: int = MOST_PIPES) -> None:
        self.open = 0
        self._free: list[Pipe] = []
        self._most = most

    def take(self) -> Pipe | None:
        """An empty pipe; None if there are too many, or no descriptors."""
        if self._free:
            return self._free.pop()
        if self.open >= self._most:
            return None
        try:
            pipe = Pipe(self)
        except OSError:
            return None
        self.open += 1
        return pipe

    def give(self, pipe: Pipe) -> None:
        """Give back a pipe, which must be empty."""
        self._free.append(pipe)
