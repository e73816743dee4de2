"""Landlock (Linux 5.13): a process and its children give up rights for good.

The C library has no wrappers, so the system calls are made directly. Rights that a
kernel does not know are left out, so an older kernel forbids less. `version` tells
which it knows:

    1  files   2  rename to other directories   3  truncate   4  TCP ports
    5  ioctl of devices   6  signals and abstract unix sockets

Files that are already open stay usable: rights are checked at open. Any ruleset also
forbids tracing processes outside.

Never: fails because a file that it should allow does not exist.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Files(IntFlag):
    """Rights to files (LANDLOCK_ACCESS_FS_*)."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


READ = Files.READ_FILE | Files.READ_DIR
ALL = Files((1 << 16) - 1)
CHANGE = ALL & ~READ & ~Files.EXECUTE
# Rights that a rule for a file, not a directory, may contain.
_OF_A_FILE = Files.EXECUTE | Files.WRITE_FILE | Files.READ_FILE | Files.TRUNCATE | Files.IOCTL_DEV
_TCP_BIND, _TCP_CONNECT = 1, 2
_SCOPE_ABSTRACT_UNIX, _SCOPE_SIGNAL = 1, 2
# Landlock version, and the number of rights in `Files` that it knows.
_FILES_KNOWN = ((5, 16), (3, 15), (2, 14), (1, 13))


@dataclass(frozen=True, slots=True)
class Rule:
    """Rights for a path and everything below it. `at` may be an open directory."""

    at: Path | int
    rights: Files


def version() -> int:
    """The kernel's version of Landlock; 0 for none, or if a filter forbids it."""
    flags = ctypes.c_uint32(_VERSION_FLAG)
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), flags)))


def restrict(
    forbidden: Files, allowed: Iterable[Rule], *, ports: bool = False, known: int | None = None
) -> int:
    """Forbid the rights in `forbidden`, except where a rule allows them.

    Also forbids signals to processes outside and, with `ports`, to bind or connect TCP
    sockets. Returns the version in force, 0 without Landlock. Tests lower `known` to
    simulate an older kernel. Raises OSError; then nothing is forbidden.
    """
    known = version() if known is None else min(known, version())
    if known == 0:
        return 0
    handled = forbidden & _files_known(known)
    ruleset_fd = _checked(
        _libc.syscall(_CREATE_RULESET, *_ruleset(handled, known, ports=ports), ctypes.c_uint32(0))
    )
    try:
        for rule in allowed:
            _add(ruleset_fd, rule, handled)
        _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _checked(_libc.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset_fd), ctypes.c_uint32(0)))
    finally:
        os.close(ruleset_fd)
    return known


def _files_known(known: int) -> Files:
    return Files((1 << next(count for since, count in _FILES_KNOWN if known >= since)) - 1)


def _ruleset(
    handled: Files, known: int, *, ports: bool
) -> tuple[ctypes.Array[ctypes.c_char], ctypes.c_size_t]:
    """The struct landlock_ruleset_attr, which newer versions have extended."""
    fields = [int(handled)]
    if known >= 4:
        fields.append(_TCP_BIND | _TCP_CONNECT if ports else 0)
    if known >= 6:
        fields.append(_SCOPE_ABSTRACT_UNIX | _SCOPE_SIGNAL)
    data = struct.pack(f"={len(fields)}Q", *fields)
    return ctypes.create_string_buffer(data, len(data)), ctypes.c_size_t(len(data))


def _add(ruleset_fd: int, rule: Rule, handled: Files) -> None:
    with contextlib.ExitStack() as stack:
        if isinstance(rule.at, Path):
            try:
                parent_fd = os.open(rule.at, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                return  # a path that cannot be opened needs no rule
            stack.callback(os.close, parent_fd)
        else:
            parent_fd = rule.at
        rights = rule.rights & handled
        for wanted in (rights, rights & _OF_A_FILE):
            if not wanted:
                return
            # struct landlock_path_beneath_attr, which has no padding
            beneath = struct.pack("=Qi", int(wanted), parent_fd)
            buffer = ctypes.create_string_buffer(beneath, len(beneath))
            done = _libc.syscall(
                _ADD_RULE,
                ctypes.c_int(ruleset_fd),
                ctypes.c_int(_RULE_PATH_BENEATH),
                buffer,
                ctypes.c_uint32(0),
            )
            if done == 0 or ctypes.get_errno() != errno.EINVAL:
                break  # EINVAL: a file, but some of the rights are only for directories
        # EBADFD: a file that Landlock does not restrict, such as a pipe or one in
        # /proc.
        if done != 0 and ctypes.get_errno() != errno.EBADFD:
            _checked(done)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
