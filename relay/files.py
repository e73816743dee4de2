"""Reads regular files: the configuration, and every file it names that the supervisor reads. Tells whether new ones could be made.

Never: waits for a file, makes or changes one, or knows what was expected in it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path

_IMPOSSIBLE_NAME = "x" * 2000

Contents = Mapping[tuple[Path, int], tuple[bytes, int]]
"""Bytes and mode of files, by path and the limit they were read with."""


class Files:
    """The files that a configuration names, each read once: what was judged is what is used.

    With `contents`, those of another `Files`, nothing is read from disk any more.
    """

    def __init__(self, contents: Contents | None = None) -> None:
        self._given = contents
        self._read: dict[tuple[Path, int], tuple[bytes, int]] = dict(contents or {})

    def read(self, path: Path, limit_bytes: int) -> tuple[bytes, int]:
        """As `read_regular`, which see. A file that cannot be read is tried again when it is asked for again."""
        found = self._read.get((path, limit_bytes))
        if found is None:
            if self._given is not None:
                what = "it was not read when the configuration was judged"
                raise FileNotFoundError(errno.ENOENT, what)
            found = self._read[path, limit_bytes] = read_regular(path, limit_bytes)
        return found

    @property
    def contents(self) -> Contents:
        """Everything that was read so far."""
        return dict(self._read)


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
            return file.read(
                limit_bytes + 1
            ) or b"", mode  # None where /proc has nothing to say yet
    finally:
        os.close(descriptor)


def check_creation(directory: Path) -> None:
    """Whether this process could make files in a directory. Raises the OSError that it would meet; nothing is made."""
    # Root has every permission in /proc and /sys, and still nothing can be made there: a name that no file system takes brings out
    # who refuses for another reason than the name.
    try:
        (directory / _IMPOSSIBLE_NAME).mkdir()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
    read_only = os.statvfs(directory).f_flag & os.ST_RDONLY
    if read_only or not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        code = errno.EROFS if read_only else errno.EACCES
        raise OSError(code, os.strerror(code))
