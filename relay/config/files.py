"""Reads regular files: the configuration, and every file it names that the supervisor reads.

Never: waits for a file, or knows what was expected in it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


class NotRegularError(OSError):
    """A pipe, a device or a socket: it may never end, and a reload would find something else in it."""

    def __init__(self) -> None:
        super().__init__(None, "it is not a regular file")


def read_regular(path: Path, limit_bytes: int) -> tuple[bytes, int]:
    """What is in the file, and its mode; a file of more than `limit_bytes` is cut one byte after them.

    Raises OSError: IsADirectoryError for a directory, NotRegularError for a pipe or a device.
    """
    # O_NONBLOCK: opening a FIFO would otherwise wait for its writer, and the supervisor with it. What was opened is judged, not what the name led to before.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(None, "it is a directory")
        if not stat.S_ISREG(mode):
            raise NotRegularError
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(limit_bytes + 1) or b"", mode  # None where /proc has nothing to say yet
    finally:
        os.close(descriptor)
