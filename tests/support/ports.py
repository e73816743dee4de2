"""A port that a test names before the program that listens there has started."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def held_port() -> Iterator[int]:
    """A free port of 127.0.0.1, which the kernel gives to no other program meanwhile.

    It refuses connections until a program listens there. That works beside the socket
    which holds the port, because both set SO_REUSEADDR and this one does not listen.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
