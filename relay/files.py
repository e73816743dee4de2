"""Reads the configuration and its files; checks whether files can be created.

Never: waits for a file, creates or changes one, or knows what it should contain.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

_IMPOSSIBLE_NAME = "x" * 2000

Fingerprint = tuple[int, ...]
"""Device, inode, size and times of a file, or only an errno if it has none.

The inode shows a file that was renamed into place, or a link that was switched. The
time of the last status change shows a write after which the time of the last
modification was set back (cp -p, rsync -t).
"""

Contents = Mapping[tuple[Path, int], tuple[bytes, int]]
"""Bytes and mode of files, by path and read limit."""


class Files:
    """The files of a configuration, each read once, so that checked bytes are used.

    With the `contents` of another `Files`, nothing is read from disk.
    """

    def __init__(self, contents: Contents | None = None) -> None:
        self._given = contents
        self._read: dict[tuple[Path, int], tuple[bytes, int]] = dict(contents or {})
        self._handed_on: dict[tuple[Path, int], bytes | None] = {}
        self.fingerprints: dict[Path, Fingerprint] = {}
        """Of the files that were read, from before they were read."""

    def read(self, path: Path, limit_bytes: int) -> tuple[bytes, int]:
        """Like `read_regular`, but a file is read once. Failed reads are repeated."""
        found = self._read.get((path, limit_bytes))
        if found is None:
            if self._given is not None:
                what = "it was not read when the configuration was checked"
                raise FileNotFoundError(errno.ENOENT, what)
            data, status = _read_open(path, limit_bytes)
            self.fingerprints.setdefault(path, _fingerprint_of(status))
            found = self._read[path, limit_bytes] = data, status.st_mode
        return found

    def digests(self) -> dict[Path, bytes]:
        """The SHA-256 of every file that was read."""
        return {path: digest for (path, _), digest in self.digests_by_limit().items()}

    def digests_by_limit(self) -> dict[tuple[Path, int], bytes]:
        """The SHA-256 of every file that was read, with its read limit."""
        return {key: hashlib.sha256(data).digest() for key, (data, _) in self._read.items()}

    def hand_on(self, path: Path, limit_bytes: int, data: bytes) -> None:
        """Let `contents` have these bytes for a file that was read.

        `read` still gives the bytes on disk.
        """
        self._handed_on[path, limit_bytes] = data

    def forget(self, path: Path, limit_bytes: int) -> None:
        """Let a file count as not read: its bytes may mean something else later."""
        self._read.pop((path, limit_bytes), None)

    def leave_out(self, path: Path, limit_bytes: int) -> None:
        """Let `contents` lack a file, unless it is handed on for another use."""
        self._handed_on.setdefault((path, limit_bytes), None)

    @property
    def contents(self) -> Contents:
        """Everything read so far, for other processes."""
        found: dict[tuple[Path, int], tuple[bytes, int]] = {}
        for key, (data, mode) in self._read.items():
            handed_on = self._handed_on.get(key, data)
            if handed_on is not None:
                found[key] = handed_on, mode
        return found


class NotRegularError(OSError):
    """A pipe, a device or a socket: it may never end, and a second read differs."""

    def __init__(self) -> None:
        super().__init__(None, "it is not a regular file")


def read_regular(path: Path, limit_bytes: int) -> tuple[bytes, int]:
    """The bytes of a regular file, at most `limit_bytes` and one more, and its mode.

    Raises OSError: IsADirectoryError for a directory, NotRegularError for a pipe or a
    device.
    """
    data, status = _read_open(path, limit_bytes)
    return data, status.st_mode


def fingerprint(path: Path) -> Fingerprint:
    """The fingerprint of the file at this path. May wait for a file system."""
    try:
        return _fingerprint_of(os.stat(path))  # noqa: PTH116 (twice as fast as Path.stat)
    except OSError as error:
        return (error.errno or 0,)


def _fingerprint_of(status: os.stat_result) -> Fingerprint:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _read_open(path: Path, limit_bytes: int) -> tuple[bytes, os.stat_result]:
    # O_NONBLOCK: otherwise opening a FIFO waits for its writer. The type is checked
    # after opening, because another file may have been put at this path before that.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        mode = status.st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(None, "it is a directory")
        if not stat.S_ISREG(mode):
            raise NotRegularError
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            # Some files in /proc give None, as they have no data yet.
            return file.read(limit_bytes + 1) or b"", status
    finally:
        os.close(descriptor)


def check_creation(directory: Path) -> None:
    """Raise the OSError that creating a file here would raise. Creates nothing."""
    # For root, access() succeeds in /proc and /sys, but no file can be created there.
    # So try a name that is too long for any file system: any error other than
    # ENAMETOOLONG means that the directory refuses new files.
    try:
        (directory / _IMPOSSIBLE_NAME).mkdir()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
    read_only = os.statvfs(directory).f_flag & os.ST_RDONLY
    if read_only or not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        code = errno.EROFS if read_only else errno.EACCES
        raise OSError(code, os.strerror(code))
