"""What a look-up finds; and the look-up of a host name by the system's resolver.

That is /etc/hosts, DNS, and so on, as the machine is configured.

Never: keeps an answer, or decides what a failure means.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  getaddrinfo needs it, and would load it too late
import math
import socket
from collections.abc import Callable
from typing import NamedTuple

from relay.shared.addresses import Located

_NO_SUCH_NAME = frozenset((socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)))


class Found(NamedTuple):
    """The answer to a look-up.

    `ttl_s` is how long it may be kept. `left_out` says which records were not used, and
    why. If nothing was found, `nothing` says what the servers answered.
    """

    located: tuple[Located, ...] = ()
    ttl_s: float = math.inf
    left_out: str = ""
    nothing: str = ""


class NoSuchNameError(OSError):
    """The servers say that the name does not exist, or has no address."""


Resolve = Callable[[str], Found]
"""Looks up a name as `config.backend_address.lookup_name` has it. Raises OSError."""


def look_up_host(host: str) -> tuple[Located, ...]:
    """The addresses of a host name, each once, in the resolver's order.

    Raises OSError.
    """
    found: dict[Located, None] = {}
    try:
        answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in _NO_SUCH_NAME:
            raise NoSuchNameError(error.errno, error.strerror) from None
        raise
    for _, _, _, _, address in answers:
        scope = int(address[3]) if len(address) == 4 else 0
        found[Located(str(address[0]).partition("%")[0], scope)] = None
    return tuple(found)
