"""Shared memory that only its maker and the processes forked from it can write.

Each memory is an anonymous file that its maker maps once and then seals. No process
can shorten it, so no reader gets SIGBUS. No descriptor gives new write access: it can
be neither written nor mapped writable. So a process can write the memory that it has
inherited, and no other.

Never: knows the meaning of a cell.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from typing import Any

# Not in the module fcntl of Python 3.11. Linux 5.1: existing mappings stay writable,
# and no new write access is possible.
F_SEAL_FUTURE_WRITE = 0x0010
# Not in the module os of Python 3.11. Linux 6.3; a machine may require it
# (vm.memfd_noexec).
MFD_NOEXEC_SEAL = 0x0008

CELL_BYTES = 8

Cells = Any  # memoryview of format "q"; typed Any because typeshed's type needs casts


class SealedMemory:
    """Zeroed cells, writable for this process and for children that inherit them.

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
        """Set whether children that are forked from now on have the memory.

        A child without it crashes when it accesses the cells.
        """
        self._map.madvise(mmap.MADV_DOFORK if wanted else mmap.MADV_DONTFORK)

    def close(self) -> None:
        """Give the memory up. The kernel frees it when no process uses it."""
        os.close(self.fd)
        self.fd = -1
        # A view of some cells may still exist; then the memory is freed with that view.
        with contextlib.suppress(BufferError):
            self.cells.release()
            self._map.close()


class SealedFile:
    """Bytes for readers, which no process can change.

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
        """Give the file up."""
        os.close(self.fd)


class SharedBytes:
    """Bytes that processes forked from this one share; `fd` hands them on to others.

    The descriptor is closed with this object, in each process for itself.
    """

    __slots__ = ("fd", "map")

    def __init__(self, name: str, data: bytes) -> None:
        self.fd = -1
        self.fd = SealedFile(name, data).fd
        self.map = map_bytes(self.fd)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


def map_for_reading(fd: int) -> Cells:
    """The cells of a memory that another process writes."""
    return memoryview(mmap.mmap(fd, 0, prot=mmap.PROT_READ)).cast("q")


def map_bytes(fd: int) -> mmap.mmap:
    """The content of a sealed file, without a copy: all processes share the memory."""
    # MAP_PRIVATE: without /proc, `fd` may be writable, and then Linux before 6.7 does
    # not share a sealed file. Nobody writes, so no page is copied.
    return mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)


def read_all(fd: int) -> bytes:
    """The whole content of a file. Raises OSError."""
    size = os.fstat(fd).st_size
    data = os.pread(fd, size, 0)
    while len(data) < size:  # one read returns at most 2 GB
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
    except OSError:  # no /proc here; the seals protect the memory all the same
        return os.dup(descriptor)
