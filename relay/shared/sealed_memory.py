"""Shared memory that only the process that made it, and those forked with it, can write.

Each piece is an anonymous file, mapped once by its maker and then sealed. Nobody can
shorten it, so no reader dies of SIGBUS. Nobody can map or write it anew, whatever
descriptor they hold. So a process writes what it has inherited, and nothing else.

Never: knows what is in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from typing import Any

# Not in the module fcntl of Python 3.11. Linux 5.1: what is mapped may be written,
# nothing else can be.
F_SEAL_FUTURE_WRITE = 0x0010
# Not in the module os of Python 3.11. Linux 6.3; a machine may demand it
# (vm.memfd_noexec).
MFD_NOEXEC_SEAL = 0x0008

CELL_BYTES = 8

Cells = Any  # memoryview of format "q"; typed Any because typeshed makes indexing it slow to read


class SealedMemory:
    """Zeroed cells, writable for us and for children that inherit them.

    `fd` is a descriptor for readers.
    """

    __slots__ = ("_map", "cells", "fd")

    def __init__(self, name: str, cells: int) -> None:
        descriptor = _make(name, cells * CELL_BYTES)
        try:
            self._map = mmap.mmap(descriptor, 0)
            _seal(descriptor, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            _seal(descriptor, F_SEAL_FUTURE_WRITE, needed=False)
            self.fd = _for_reading(descriptor)
        finally:
            os.close(descriptor)
        self.cells: Cells = memoryview(self._map).cast("q")

    def inherit(self, *, wanted: bool) -> None:
        """Whether the next child has it in its memory.

        One that has not would crash if it tried to use it.
        """
        self._map.madvise(mmap.MADV_DOFORK if wanted else mmap.MADV_DONTFORK)

    def close(self) -> None:
        """Give it up. The kernel takes it back when no process uses it any more."""
        os.close(self.fd)
        self.fd = -1
        with contextlib.suppress(
            BufferError
        ):  # a part of it is still in somebody's hand: it goes when that goes
            self.cells.release()
            self._map.close()


class SealedFile:
    """A file of bytes for readers, complete and unchangeable.

    `fd` is a descriptor for readers.
    """

    __slots__ = ("fd",)

    def __init__(self, name: str, data: bytes) -> None:
        descriptor = _make(name, 0)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            _seal(descriptor, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
            self.fd = _for_reading(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Give it up."""
        os.close(self.fd)


def map_for_reading(fd: int) -> Cells:
    """The cells of a memory that another process writes."""
    return memoryview(mmap.mmap(fd, 0, prot=mmap.PROT_READ)).cast("q")


def read_all(fd: int) -> bytes:
    """Everything in a file. Raises OSError."""
    size = os.fstat(fd).st_size
    data = os.pread(fd, size, 0)
    while len(data) < size:  # a read is at most 2 GB
        more = os.pread(fd, size - len(data), len(data))
        if not more:
            break
        data += more
    return data


def _make(name: str, size: int) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        descriptor = os.memfd_create(name, flags | MFD_NOEXEC_SEAL)
    except OSError:
        descriptor = os.memfd_create(name, flags)
    try:
        os.ftruncate(descriptor, size)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _seal(descriptor: int, seals: int, *, needed: bool = True) -> None:
    try:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    except OSError:
        if needed:
            raise


def _for_reading(descriptor: int) -> int:
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # no /proc here; the seals hold all the same
        return os.dup(descriptor)
