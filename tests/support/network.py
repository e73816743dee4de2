"""Several machines as network namespaces, which hang on one switch.

The test's thread enters the namespace of the switch, so its clients, its backends and
the programs that it starts are there.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from tests.support.programs import find

CLONE_NEWNET = 0x40000000
NETWORK = "10.77.0"
PATIENCE_S = 20
_libc = ctypes.CDLL(None, use_errno=True)


def why_not() -> str:
    """Why this machine has no network namespaces for a test, or ""."""
    if find("ip") is None:
        return "ip not installed"
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    made = subprocess.run(
        [find("ip") or "ip", "netns", "add", f"rltry{os.getpid()}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    if made.returncode:
        return f"no network namespace can be made: {made.stderr.strip()}"
    ip("netns", "del", f"rltry{os.getpid()}")
    return ""


def ip(*arguments: str) -> str:
    """Run `ip`; returns what it prints."""
    done = subprocess.run(
        [find("ip") or "ip", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout


@contextmanager
def entered(name: str) -> Iterator[None]:
    """This thread, and the threads and processes that it starts, are in a namespace."""
    here = Path("/proc/thread-self/ns/net")
    with here.open() as before, Path(f"/run/netns/{name}").open() as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(before.fileno())


def _enter(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Network:
    """A switch with the address .1 and machines with .11, .12, …; a context manager."""

    def __init__(self, machines: int, clients: int) -> None:
        self._open = ExitStack()
        self._prefix = f"rl{os.getpid()}"
        self.hub = f"{self._prefix}hub"
        self.machines = [f"{self._prefix}m{number}" for number in range(1, machines + 1)]
        self.clients = [f"{NETWORK}.{150 + number}" for number in range(clients)]
        """Addresses of clients, all in the namespace of the switch."""

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _add(self, name: str) -> None:
        ip("netns", "add", name)
        self._open.callback(ip, "netns", "del", name)
        ip("-n", name, "link", "set", "lo", "up")

    def _make(self) -> None:
        hub = self.hub
        self._add(hub)
        ip("-n", hub, "link", "add", "br0", "type", "bridge")
        for address in (f"{NETWORK}.1", *self.clients):
            ip("-n", hub, "addr", "add", f"{address}/24", "dev", "br0")
        ip("-n", hub, "link", "set", "br0", "up")
        for number, name in enumerate(self.machines, 1):
            self._add(name)
            port = f"port{number}"
            peer = ("peer", "name", "eth0", "netns", name)
            ip("-n", hub, "link", "add", port, "type", "veth", *peer)
            ip("-n", hub, "link", "set", port, "master", "br0", "up")
            ip("-n", name, "addr", "add", f"{NETWORK}.{10 + number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
        self._open.enter_context(entered(hub))

    def has_address(self, machine: str, address: str) -> bool:
        """Whether a machine has this address now."""
        return f" {address}/" in ip("-n", machine, "-4", "addr", "show", "dev", "eth0")
