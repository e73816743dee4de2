"""Runs relay with another /etc, in a mount namespace of its own.

`python -m tests.support.own_etc …` is `relay …` with the directory OWN_ETC as /etc.
"""

from __future__ import annotations

import ctypes
import os
import sys

from relay.cli.main import main

CLONE_NEWNS = 0x20000

MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> None:
    """Raise OSError when a system call failed."""
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def leave() -> None:
    """Leave the mount namespace: later mounts are visible to this process only."""
    checked(libc.unshare(CLONE_NEWNS))
    checked(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))


if __name__ == "__main__":
    if sys.argv[1] == "try":
        leave()
        sys.exit(0)
    if sys.argv[1] == "start":
        leave()
        checked(libc.mount(os.environ["OWN_ETC"].encode(), b"/etc", None, MS_BIND, None))
    sys.exit(main())
