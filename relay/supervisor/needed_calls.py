"""System calls that the relay cannot do without, tried before it starts.

Engines of containers and service managers forbid some with a filter (seccomp). Without
this, a forbidden call ends a process later, with an error that names no cause.

Never: changes anything; tries what the relay can do without, such as Landlock.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import select
import socket
from collections.abc import Callable

from relay.errors import StartupError

_PR_GET_DUMPABLE = 3
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def refuse_without_needed_calls() -> None:
    """Raise StartupError if a filter forbids one; it names all of them."""
    forbidden = [name for name, attempt in _ATTEMPTS.items() if _is_forbidden(attempt)]
    if forbidden:
        raise StartupError(
            f"a system call filter (seccomp) forbids what the relay needs: {', '.join(forbidden)}",
            "allow it in the container's seccomp profile, or in SystemCallFilter= of the unit",
        )


def _is_forbidden(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError as error:
        # Other errors have other causes, and the code that meets them names these.
        return error.errno in {errno.EPERM, errno.EACCES, errno.ENOSYS}
    except ValueError:  # what setrlimit makes of EPERM
        return True
    return False


def _checked(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _memfd() -> None:
    os.close(os.memfd_create("relay"))


def _epoll() -> None:
    select.epoll().close()


def _reuseport() -> None:
    with socket.socket(socket.AF_UNIX) as one, socket.socket() as other:
        one.getsockname()
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def _madvise() -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as memory:
        memory.madvise(mmap.MADV_NORMAL)


def _limits() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, resource.getrlimit(resource.RLIMIT_CORE))


def _prctl() -> None:
    _checked(_libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0))


def _capset() -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    rights = (ctypes.c_uint32 * 6)()
    _checked(_libc.capget(header, rights))
    _checked(_libc.capset(header, rights))


def _wait() -> None:
    for wait in (
        lambda: os.wait4(os.getpid(), os.WNOHANG),
        lambda: os.waitid(os.P_PID, os.getpid(), os.WEXITED | os.WNOHANG),
    ):
        try:
            wait()
        except ChildProcessError:
            continue


_ATTEMPTS: dict[str, Callable[[], object]] = {
    "memfd_create": _memfd,
    "epoll_create1": _epoll,
    "socket and setsockopt (SO_REUSEPORT)": _reuseport,
    "madvise": _madvise,
    "prlimit64": _limits,
    "prctl": _prctl,
    "capget and capset": _capset,
    "wait4 and waitid": _wait,
}
