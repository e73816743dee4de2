"""A set of IP networks: which addresses it holds.

Never: resolves a name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

# Stands for a peer on a unix socket, which has no address.
UNIX = "unix"
# Few addresses are asked for often: those of balancers and of probes.
_MOST_KEPT = 1_024


class AddressSet:
    """Entries are addresses, networks such as 10.0.0.0/8, and UNIX."""

    __slots__ = ("_entries", "_known", "_networks")

    def __init__(self, entries: Iterable[str]) -> None:
        self._entries = tuple(entries)
        self._networks = [ipaddress.ip_network(each) for each in self._entries if each != UNIX]
        self._known: dict[str, bool] = {}

    def __bool__(self) -> bool:
        return bool(self._entries)

    def __str__(self) -> str:
        return ", ".join(self._entries)

    def holds(self, host: str) -> bool:
        """Whether this address, as the socket has it, is in the set."""
        found = self._known.get(host)
        if found is None:
            if len(self._known) >= _MOST_KEPT:
                self._known.clear()
            found = self._known[host] = self._look_up(host)
        return found

    def _look_up(self, host: str) -> bool:
        if host == UNIX:
            return UNIX in self._entries
        address = ipaddress.ip_address(host.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address):
            address = address.ipv4_mapped or address
        return any(address in network for network in self._networks)
