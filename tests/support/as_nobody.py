"""Runs relay as the user nobody, as a service manager would start it.

`python -m tests.support.as_nobody …` is `relay …`. The process keeps one capability: to
read every file. The user nobody may not be allowed to read this Python or the keys.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import sys

from relay.cli.main import main

PR_SET_KEEPCAPS, CAP_DAC_READ_SEARCH, VERSION_3 = 8, 2, 0x20080522


def become_nobody() -> None:
    """Become nobody for the rest of the process, with one capability."""
    libc = ctypes.CDLL(None, use_errno=True)
    entry = pwd.getpwnam("nobody")
    os.setgroups([])
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    assert libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    header = (ctypes.c_uint32 * 2)(VERSION_3, 0)
    mask = 1 << CAP_DAC_READ_SEARCH
    assert libc.capset(header, (ctypes.c_uint32 * 6)(mask, mask, 0, 0, 0, 0)) == 0


if __name__ == "__main__":
    become_nobody()
    sys.exit(main())
