"""seccomp: forbids system calls that act on another process, for good.

Landlock does not cover them: a process may set the limits, CPUs and priority of every
process of its user. A CPU time limit of zero ends the other process. A signal ends it
too, on kernels whose Landlock does not know signals.

A filter costs 23 ns per system call (Linux 6.18, Xeon), like the filter of a systemd
unit.

Never: forbids a call that acts on the process itself, except executing a program.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from dataclasses import dataclass

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_SET_MODE_FILTER = 1
_SPEC_ALLOW = 4  # without it, kernels before 5.16 slow down every branch of the process
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
# BPF instructions, and the offsets of the fields of struct seccomp_data.
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENT_AT = 0, 4, 16
_X32_CALLS = 0x40000000  # x86-64: numbers from here on are of the x32 table

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True, slots=True)
class _Calls:
    """System calls of an architecture, by number."""

    architecture: int
    seccomp: int
    # Allowed only with this process's own pid: kill, tgkill, rt_sigqueueinfo,
    # rt_tgsigqueueinfo.
    signals: tuple[int, ...]
    # Allowed only with this process's own pid or 0, which means the same: prlimit64,
    # sched_set*.
    settings: tuple[int, ...]
    # Never allowed: tkill, pidfd_send_signal, setpriority, ioprio_set, ptrace,
    # process_vm_readv, process_vm_writev, pidfd_getfd, execve, execveat.
    never: tuple[int, ...]


_KNOWN = {
    "x86_64": _Calls(
        architecture=0xC000003E,
        seccomp=317,
        signals=(62, 234, 129, 297),
        settings=(302, 142, 144, 203, 314),
        never=(200, 424, 141, 251, 101, 310, 311, 438, 59, 322),
    ),
    "aarch64": _Calls(
        architecture=0xC00000B7,
        seccomp=277,
        signals=(129, 131, 138, 240),
        settings=(261, 118, 119, 122, 274),
        never=(130, 424, 140, 30, 117, 270, 271, 438, 221, 281),
    ),
}


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def is_available() -> bool:
    """Whether the kernel supports filters and its call numbers are known here."""
    if _calls() is None:
        return False
    # The program is missing: a kernel with support answers EFAULT.
    _libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, None, 0, 0)
    return ctypes.get_errno() in {errno.EFAULT, errno.EACCES}


def keep_to_self() -> bool:
    """Forbid signals to other processes, settings of other processes, and exec.

    It also holds for later threads and children. Returns False if filters are not
    available. Raises OSError when the kernel refuses; then nothing is forbidden.
    """
    calls = _calls()
    if calls is None or not is_available():
        return False
    code = _program(calls, os.getpid())
    program = _Program(len(code) // 8, code)
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise _error()
    mode = ctypes.c_uint(_SET_MODE_FILTER)
    if _libc.syscall(calls.seccomp, mode, ctypes.c_uint(_SPEC_ALLOW), ctypes.byref(program)) == 0:
        return True
    # Another filter forbids this call, or an old kernel does not know the flag.
    if _libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        raise _error()
    return True


def _calls() -> _Calls | None:
    # A 32-bit Python on a 64-bit kernel uses other system call numbers.
    return _KNOWN.get(platform.machine()) if sys.maxsize > 1 << 32 else None


def _program(calls: _Calls, pid: int) -> bytes:
    """The filter as BPF code.

    It refuses calls of another architecture, those in `never`, and those in `signals`
    and `settings` that name another process.
    """
    refuse, allow = "refuse", "allow"
    steps: list[tuple[int, int, str, str]] = [
        (_LOAD, _ARCHITECTURE_AT, "", ""),
        (_IF_EQUAL, calls.architecture, "", refuse),
        (_LOAD, _NUMBER_AT, "", ""),
        (_IF_AT_LEAST, _X32_CALLS, refuse, ""),
        *((_IF_EQUAL, number, refuse, "") for number in calls.never),
        *((_IF_EQUAL, number, "settings", "") for number in calls.settings),
        *((_IF_EQUAL, number, "signals", "") for number in calls.signals),
        (_RETURN, _ALLOW, "", ""),
    ]
    labels = {"settings": len(steps), "signals": len(steps) + 3}
    steps += [
        # The kernel uses only the lower 32 bits of a process id.
        (_LOAD, _ARGUMENT_AT, "", ""),
        (_IF_EQUAL, 0, allow, ""),
        (_IF_EQUAL, pid, allow, refuse),
        (_LOAD, _ARGUMENT_AT, "", ""),
        (_IF_EQUAL, pid, allow, refuse),
        (_RETURN, _ALLOW, "", ""),
        (_RETURN, _REFUSE, "", ""),
    ]
    labels |= {allow: len(steps) - 2, refuse: len(steps) - 1}

    def distance(name: str, here: int) -> int:
        return labels[name] - here - 1 if name else 0

    return b"".join(
        struct.pack("=HBBI", code, distance(yes, here), distance(no, here), value)
        for here, (code, value, yes, no) in enumerate(steps)
    )


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
