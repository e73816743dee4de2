"""Addresses of the backends' host names, in the scoreboard's shared state cells.

The checker looks the names up and writes; the workers read. Each host name has
RESOLVED_CELLS consecutive cells:

    sequence     odd while the checker writes, 0 before its first write
    count        the number of addresses
    addresses    MAX_ADDRESSES times three cells: family and scope, high half, low half

A reader whose sequence number has not changed uses the addresses that it has, so a new
connection costs one look at one cell.

Never: looks a name up; trusts a cell. A cell that holds no valid address is skipped.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

from relay.config.address import is_ip, parse_address, unix_path
from relay.shared.cell_layout import Layout
from relay.shared.entities import MAX_ADDRESSES, RESOLVED
from relay.shared.sealed_memory import Cells
from relay.shared.state_cells import bump

Ip = tuple[str, int]
"""An address without brackets, and its interface index if link-local, 0 if not."""
Endpoint = tuple[int, tuple[Any, ...]]
"""An address family and a socket address."""

_IPV6 = 1
_HALF = 1 << 64
_SCOPES = (1 << 32) - 1
_LARGEST_IPV4 = (1 << 32) - 1


def cell_of(layout: Layout, host: str) -> int:
    """The first cell of a host name. Raises KeyError."""
    return layout.cell(RESOLVED, host, "0")


def write_addresses(shared: Cells, first: int, addresses: Sequence[Ip]) -> None:
    """Store at most MAX_ADDRESSES addresses.

    Without any, readers use the endpoint of the loaded configuration again.
    """
    if shared[first] % 2 == 0:  # already odd when a checker was killed while writing
        bump(shared, first)
    chosen = addresses[:MAX_ADDRESSES]
    shared[first + 1] = len(chosen)
    for number, (text, scope) in enumerate(chosen):
        address = ipaddress.ip_address(text)
        high, low = divmod(int(address), _HALF)
        at = first + 2 + 3 * number
        shared[at] = ((scope & _SCOPES) << 8) | (_IPV6 if address.version == 6 else 0)
        shared[at + 1], shared[at + 2] = _signed(high), _signed(low)
    bump(shared, first)


def read_addresses(shared: Cells, first: int) -> tuple[Ip, ...] | None:
    """The stored addresses; None while they are being written."""
    before = shared[first]
    cells = [shared[first + 1 + i] for i in range(1 + 3 * MAX_ADDRESSES)]
    if before % 2 or shared[first] != before:
        return None
    found = (_address(cells[1 + 3 * i : 4 + 3 * i]) for i in range(min(cells[0], MAX_ADDRESSES)))
    return tuple(address for address in found if address is not None)


def _signed(half: int) -> int:
    return half - _HALF if half >= _HALF // 2 else half


def _address(cells: Sequence[int]) -> Ip | None:
    kind, high, low = cells
    value = (high % _HALF) << 64 | (low % _HALF)
    scope = kind >> 8
    if not 0 <= scope <= _SCOPES:
        return None
    if kind & _IPV6:
        return str(ipaddress.IPv6Address(value)), scope
    return (str(ipaddress.IPv4Address(value)), scope) if value <= _LARGEST_IPV4 else None


class Addresses:
    """The endpoints of one backend now.

    `configured` is the endpoint that was found when the configuration was loaded; its
    socket address is empty if the name had no address then.
    """

    __slots__ = ("_configured", "_endpoints", "_first", "_port", "_sequence", "_shared")

    def __init__(self, address: str, configured: Endpoint, layout: Layout, shared: Cells) -> None:
        host, self._port = ("", 0) if unix_path(address) else parse_address(address)
        self._configured = configured
        self._endpoints: tuple[Endpoint, ...] = (configured,) if configured[1] else ()
        self._first = -1 if not host or is_ip(host) else cell_of(layout, host)
        self._sequence = 0
        self._shared = shared

    @property
    def may_change(self) -> bool:
        """Whether the address is a host name."""
        return self._first >= 0

    def endpoints(self) -> tuple[Endpoint, ...]:
        """All endpoints in the resolver's order; none if the name never had one."""
        first = self._first
        if first >= 0 and self._shared[first] != self._sequence:
            self._refresh()
        return self._endpoints

    def _refresh(self) -> None:
        sequence = self._shared[self._first]
        found = read_addresses(self._shared, self._first)
        if found is None or self._shared[self._first] != sequence:
            return  # being written; the next connection reads it
        self._sequence = sequence
        self._endpoints = tuple(self._endpoint(*ip) for ip in found) or (
            (self._configured,) if self._configured[1] else ()
        )

    def _endpoint(self, host: str, scope: int) -> Endpoint:
        return (
            (socket.AF_INET6, (host, self._port, 0, scope))
            if ":" in host
            else (socket.AF_INET, (host, self._port))
        )
