"""Addresses that are unix sockets: "unix:PATH".

Never: opens a socket, or asks whether it is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from relay.config.address import unix_path
from relay.config.listener_model import Listener
from relay.config.pool_model import Pool

LONGEST_PATH_BYTES = 107  # sun_path of unix(7) has 108 bytes; the last one is zero


def absolute_backends(pool: Pool, bases: Sequence[Path]) -> Pool:
    """The pool with the path of each backend relative to its directory."""
    if not any(each.unix_path for each in pool.backend):
        return pool
    backends = tuple(
        each.model_copy(update={"address": f"unix:{base / each.unix_path}"})
        if each.unix_path
        else each
        for base, each in zip(bases, pool.backend, strict=True)
    )
    return pool.model_copy(update={"backend": backends})


def absolute_listener(listener: Listener, base: Path) -> Listener:
    """The listener with the paths of its addresses relative to this directory."""
    if not any(map(unix_path, listener.listen)):
        return listener
    listen = tuple(
        f"unix:{base / unix_path(each)}" if unix_path(each) else each for each in listener.listen
    )
    return listener.model_copy(update={"listen": listen})


def unix_fault(address: str) -> str:
    """What is wrong with "unix:PATH"; "" if nothing is."""
    path = unix_path(address)
    if not path or path.endswith("/") or not path.isprintable():
        return "does not name a file"
    if path.startswith("@"):
        return "names an abstract socket, which any user could have bound"
    return ""
