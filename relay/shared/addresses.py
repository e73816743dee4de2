"""The addresses of named backends in the scoreboard's shared row: the checker looks names up, the workers read what it found.

Per host name CELLS consecutive cells: a sequence number (odd while the checker writes, zero before it ever did), the number of
addresses, and for each of at most MAX_ADDRESSES three cells: family and scope, and the address as two halves. A reader that finds the sequence
as it was uses what it has; so for a connection this is one look at one cell.

Never: looks a name up; believes what it reads: a cell that holds no address is passed over.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

from relay.config.address import is_ip, parse_address
from relay.shared.catalogue import MAX_ADDRESSES, RESOLVED
from relay.shared.cell_layout import Layout
from relay.shared.sealed_memory import Cells
from relay.shared.state_cells import bump

Ip = tuple[str, int]
"""An address without brackets, and the number of its interface for a link-local one, else 0."""
Endpoint = tuple[int, tuple[Any, ...]]
"""Family and socket address: what one connects to."""

_IPV6 = 1
_HALF = 1 << 64
_SCOPES = (1 << 32) - 1
_LARGEST_IPV4 = (1 << 32) - 1


def cell_of(layout: Layout, host: str) -> int:
    """The first cell of a host name. Raises KeyError."""
    return layout.cell(RESOLVED, host, "0")


def write_addresses(shared: Cells, first: int, addresses: Sequence[Ip]) -> None:
    """Store the addresses, at most MAX_ADDRESSES of them; none makes readers go back to what they began with."""
    if shared[first] % 2 == 0:  # it is odd already when a checker was killed right here
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
    """What is stored; None while it is being written."""
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
    """Where a backend can be reached now. `configured` is where its address led when the configuration was loaded, (0, ()) where it led nowhere."""

    __slots__ = ("_configured", "_first", "_places", "_port", "_sequence", "_shared")

    def __init__(self, address: str, configured: Endpoint, layout: Layout, shared: Cells) -> None:
        host, self._port = parse_address(address)
        self._configured = configured
        self._places: tuple[Endpoint, ...] = (configured,) if configured[1] else ()
        self._first = -1 if is_ip(host) else cell_of(layout, host)
        self._sequence = 0
        self._shared = shared

    @property
    def may_change(self) -> bool:
        """Whether the address is a host name."""
        return self._first >= 0

    def places(self) -> tuple[Endpoint, ...]:
        """All places, in the resolver's order; none while the name has never been found."""
        first = self._first
        if first >= 0 and self._shared[first] != self._sequence:
            self._refresh()
        return self._places

    def _refresh(self) -> None:
        sequence = self._shared[self._first]
        found = read_addresses(self._shared, self._first)
        if found is None or self._shared[self._first] != sequence:
            return  # in the middle of a change: what we have does until the next connection
        self._sequence = sequence
        self._places = tuple(self._place(*ip) for ip in found) or (
            (self._configured,) if self._configured[1] else ()
        )

    def _place(self, host: str, scope: int) -> Endpoint:
        return (
            (socket.AF_INET6, (host, self._port, 0, scope))
            if ":" in host
            else (socket.AF_INET, (host, self._port))
        )
