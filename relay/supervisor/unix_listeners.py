"""The listening unix sockets of listeners.

SO_REUSEPORT does not exist for unix sockets, so all workers of all generations accept
from one queue. Only the relay's user and group may connect: every peer must send a
PROXY header, and may claim any address.

Never: replaces a socket on which another process listens.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from relay.config.model import Config
from relay.errors import StartupError
from relay.supervisor.privileges import find_identity
from relay.supervisor.unix_sockets import open_unix

_FOR_THE_GROUP = 0o117
_QUEUE = 4096  # the kernel reduces it to net.core.somaxconn


def open_for_balancers(where: str, path: str, config: Config) -> socket.socket:
    """A listening socket of the workers' user and group. Raises StartupError."""
    listener = open_unix(where, Path(path), _FOR_THE_GROUP, queue=_QUEUE)
    if os.geteuid() == 0:
        try:
            identity = find_identity(config.relay)
            os.chown(path, identity.uid, identity.gid, follow_symlinks=False)
        except StartupError:
            listener.close()
            raise
        except OSError as error:
            listener.close()
            what = f"{path}: cannot be given to the relay's user: {error.strerror}"
            raise StartupError(what, "choose a directory on another file system") from None
    return listener
