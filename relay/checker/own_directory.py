"""Files in the checker's own directory, which is open since before the checker's start.

The directory belongs to the checker's user, so nothing there is followed or trusted:
a file that is a link, or not a regular file, does not count.

Never: blocks the checker's loop for long, except with large files: use a thread.
"""

from __future__ import annotations

import contextlib
import os
import stat

_NEW = ".new"


def replace_in(directory_fd: int, name: str, data: bytes, *, durable: bool = False) -> None:
    """Replace a file: readers find the old or the new. Raises OSError.

    `durable`: it is on the disk before the old one is gone.
    """
    new = f"{name}{_NEW}"
    remove_from(directory_fd, new)
    descriptor = os.open(
        new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=directory_fd
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o644)  # whatever the umask is
            file.write(data)
            if durable:
                file.flush()
                os.fsync(descriptor)
        os.rename(new, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
    except OSError:
        with contextlib.suppress(OSError):
            remove_from(directory_fd, new)  # the disk may be full
        raise


def read_in(directory_fd: int, name: str, most_bytes: int) -> bytes:
    """A file's bytes, at most `most_bytes` and one more. Raises OSError."""
    # O_NONBLOCK: otherwise opening a FIFO waits for its writer.
    descriptor = os.open(
        name,
        os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY,
        dir_fd=directory_fd,
    )
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(None, "it is not a regular file")
        return file.read(most_bytes + 1)


def remove_from(directory_fd: int, name: str) -> None:
    """Remove a file if it exists. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory_fd)


def names_in(directory_fd: int) -> list[str]:
    """The names of all files. Raises OSError."""
    # The directory was opened for its path only, which does not allow to list it.
    descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        return os.listdir(descriptor)  # noqa: PTH208  a descriptor
    finally:
        os.close(descriptor)
