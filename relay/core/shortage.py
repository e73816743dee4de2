"""What it means when this machine is short of something: nobody's fault, neither a peer's nor a bug.

Never: frees anything.
"""

from __future__ import annotations

import errno

# ENOSPC is epoll_ctl's word for fs.epoll.max_user_watches, EADDRNOTAVAIL connect's for no free
# local port.
SHORTAGES = frozenset(
    (
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOBUFS,
        errno.EADDRNOTAVAIL,
        errno.ENOSPC,
    )
)


def is_shortage(error: BaseException | None) -> bool:
    """Whether an exception says that this machine has no memory, descriptor or port left."""
    if isinstance(error, OSError):
        return error.errno in SHORTAGES
    return isinstance(error, MemoryError)


def words_of(error: BaseException | None) -> str:
    """The exception for a log line."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) or "out of memory"
