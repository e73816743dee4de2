"""seccomp: a process makes some system calls about itself only, for good.

Landlock does not judge these: a process may set the limits, the CPUs and the priority of
every process of its user. A limit of CPU time set to zero ends that process. On kernels
whose Landlock does not know signals, a signal ends it too.

A filter costs 23 ns per system call (Linux 6.18, Xeon), as the filter of a systemd unit does.

Never: forbids what a process does to itself, but for executing a program.
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
# BPF: instructions, and where struct seccomp_data has its fields.
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENT_AT = 0, 4, 16
_X32_CALLS = 0x40000000  # from this number on, another table of x86-64

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True, slots=True)
class _Calls:
    """System calls of an architecture, by number."""

    architecture: int
    seccomp: int
    signals: tuple[int, ...]  # kill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo: to ourselves
    settings: tuple[int, ...]  # prlimit64, sched_set*: of ourselves, which 0 stands for too
    never: tuple[int, ...]  # tkill, pidfd_send_signal, setpriority, ioprio_set, ptrace,
    # process_vm_readv, process_vm_writev, pidfd_getfd, execve, execveat


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
    """Whether this kernel takes filters, and we know its system calls."""
    if _calls() is None:
        return False
    # Without a program it refuses the address, if it knows what is wanted.
    _libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, None, 0, 0)
    return ctypes.get_errno() in {errno.EFAULT, errno.EACCES}


def keep_to_self() -> bool:
    """From now on, also for threads and children that come: no signal to another process, no
    setting of another process, no program executed. False where that is not available.

    Raises OSError when the kernel refuses; then nothing was forbidden.
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
    # Forbidden by another filter, or an old kernel that does not know the flag.
    if _libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        raise _error()
    return True


def _calls() -> _Calls | None:
    # A Python of 32 bits on a kernel of 64 makes other calls than the kernel's.
    return _KNOWN.get(platform.machine()) if sys.maxsize > 1 << 32 else None


def _program(calls: _Calls, pid: int) -> bytes:
    """Refuses calls of another architecture, `never`, and the others about another process."""
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
    places = {"settings": len(steps), "signals": len(steps) + 3}
    steps += [
        # A process id has 32 bits: the kernel does not look at the others of the argument.
        (_LOAD, _ARGUMENT_AT, "", ""),
        (_IF_EQUAL, 0, allow, ""),
        (_IF_EQUAL, pid, allow, refuse),
        (_LOAD, _ARGUMENT_AT, "", ""),
        (_IF_EQUAL, pid, allow, refuse),
        (_RETURN, _ALLOW, "", ""),
        (_RETURN, _REFUSE, "", ""),
    ]
    places |= {allow: len(steps) - 2, refuse: len(steps) - 1}

    def away(name: str, here: int) -> int:
        return places[name] - here - 1 if name else 0

    return b"".join(
        struct.pack("=HBBI", code, away(yes, here), away(no, here), value)
        for here, (code, value, yes, no) in enumerate(steps)
    )


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
