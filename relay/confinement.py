"""What our processes are kept from, beyond what their user may not do.

Every process of one user may read the memory of another one, unless that one says no.
The supervisor, the workers and the checker have private keys in memory, so they say no:
only root may trace them or read /proc/PID/mem, and no core file is written when one of
them crashes or is aborted.

Never: weakens what was forbidden before.
"""

from __future__ import annotations

import ctypes
import os
import resource

_PR_SET_DUMPABLE = 4

_libc = ctypes.CDLL(None, use_errno=True)


def hide_memory() -> None:
    """Keep other processes of our user out of our memory, and our memory out of core files.

    Children inherit it. The kernel takes it back at exec and, where fs.suid_dumpable is
    set, at a change of user, so it is said again after both. Raises OSError.
    """
    if _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"PR_SET_DUMPABLE: {os.strerror(error)}")
    # A core pattern that is a pipe does not care about this limit, but about the above.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
