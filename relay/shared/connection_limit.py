"""How many connections of clients a worker can have, with its limit of open files.

Never: changes a limit.
"""

from __future__ import annotations

import resource

# Of a worker: listening sockets, epoll, logs, pipes.
OTHER_FDS = 128


def connections_that_fit(open_files: int) -> int:
    """A connection takes two descriptors: the client's and the backend's."""
    return max(1, (open_files - OTHER_FDS) // 2)


def connections_allowed(configured: int) -> int:
    """`limits.connections`, or fewer if the workers of this process cannot have it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        configured
        if hard == resource.RLIM_INFINITY
        else min(configured, connections_that_fit(hard))
    )
