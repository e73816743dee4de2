"""Addresses of the backends' names, in the scoreboard's shared state cells.

The checker looks the names up and writes; the workers read. Each name has
RESOLVED_CELLS consecutive cells:

    sequence     odd while the checker writes, 0 before its first write
    count        the number of addresses; GONE if the name has none any more
    failing      1 while the last look-up has failed
    addresses    MAX_ADDRESSES times four cells: family and scope, high half, low half,
                 and for a service port, priority, weight and siblings

A reader whose sequence number has not changed uses the addresses that it has, so a new
connection costs one look at one cell.

Never: looks a name up; trusts a cell. A cell that holds no valid address is skipped.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

from relay.config.address import parse_address
from relay.config.backend_address import is_service, lookup_name
from relay.shared.cell_layout import Layout
from relay.shared.entities import ADDRESS_CELLS, MAX_ADDRESSES, RESOLVED
from relay.shared.replies import EndpointReply
from relay.shared.sealed_memory import Cells
from relay.shared.state_cells import bump


class Located(NamedTuple):
    """An address that a name has.

    `ip` has no brackets, `scope` is its interface index if it is link-local. A host
    name's addresses have port 0: the port is in the configuration. `siblings` is how
    many addresses the target of the service's record has, which share its weight.
    """

    ip: str
    scope: int = 0
    port: int = 0
    priority: int = 0
    weight: int = 0
    siblings: int = 1

    def endpoint(self, port: int = 0) -> Endpoint:
        """Where to connect; `port` is for an address without one."""
        if ":" in self.ip:
            return socket.AF_INET6, (self.ip, self.port or port, 0, self.scope)
        return socket.AF_INET, (self.ip, self.port or port)


def format_endpoint(one: Located) -> str:
    """As operators see it: the address, and the port if the name has told one."""
    if not one.port:
        return one.ip
    return f"[{one.ip}]:{one.port}" if ":" in one.ip else f"{one.ip}:{one.port}"


def endpoint_reply(one: Located, port: int = 0) -> EndpointReply:
    """What operators see of it; `port` is for an address without one."""
    shown = format_endpoint(one._replace(port=one.port or port))
    return {"address": shown, "priority": one.priority, "weight": one.weight}


Endpoint = tuple[int, tuple[Any, ...]]
"""An address family and a socket address."""

GONE = -1
"""In place of the number of addresses: the name was looked up, and it has none now."""

_IPV6 = 1
_HALF = 1 << 64
_SCOPES = (1 << 32) - 1
_LARGEST_IPV4 = (1 << 32) - 1
_SHORT = (1 << 16) - 1
_BYTE = 127
_HEAD = 3


def cell_of(layout: Layout, name: str) -> int:
    """The first cell of a name. Raises KeyError."""
    return layout.cell(RESOLVED, name, "0")


def write_addresses(shared: Cells, first: int, addresses: Sequence[Located]) -> None:
    """Store at most MAX_ADDRESSES addresses.

    Without any, readers use the endpoint of the loaded configuration again.
    """
    _begin(shared, first)
    chosen = addresses[:MAX_ADDRESSES]
    shared[first + 1] = len(chosen)
    at = first + _HEAD
    for each in chosen:
        address = ipaddress.ip_address(each.ip)
        high, low = divmod(int(address), _HALF)
        version = _IPV6 if address.version == 6 else 0
        shared[at] = ((each.scope & _SCOPES) << 8) | version
        shared[at + 1], shared[at + 2] = _signed(high), _signed(low)
        shared[at + 3] = (
            each.port | each.priority << 16 | each.weight << 32 | (each.siblings & _BYTE) << 48
        )
        at += ADDRESS_CELLS
    bump(shared, first)


def write_gone(shared: Cells, first: int) -> None:
    """Store that the name has no address any more."""
    _begin(shared, first)
    shared[first + 1] = GONE
    bump(shared, first)


def _begin(shared: Cells, first: int) -> None:
    if shared[first] % 2 == 0:  # already odd when a checker was killed while writing
        bump(shared, first)


def write_failing(shared: Cells, first: int, *, failing: bool) -> None:
    """Store whether the last look-up failed."""
    shared[first + 2] = int(failing)


def is_failing(shared: Cells, first: int) -> bool:
    """Whether the last look-up failed."""
    return bool(shared[first + 2] == 1)


def is_gone(shared: Cells, first: int) -> bool:
    """Whether the name has no address any more."""
    return bool(shared[first + 1] == GONE)


def read_addresses(shared: Cells, first: int) -> tuple[Located, ...] | None:
    """The stored addresses; None while they are being written."""
    before = shared[first]
    count = max(0, min(shared[first + 1], MAX_ADDRESSES))
    cells = shared[first + _HEAD : first + _HEAD + ADDRESS_CELLS * count].tolist()
    if before % 2 or shared[first] != before:
        return None
    found = (_located(cells[at : at + ADDRESS_CELLS]) for at in range(0, len(cells), ADDRESS_CELLS))
    return tuple(each for each in found if each is not None)


class NameState(NamedTuple):
    """What is stored of a name; `gone`: it was looked up and has no address."""

    located: tuple[Located, ...]
    gone: bool
    failing: bool


def read_name(shared: Cells, first: int) -> NameState:
    """What is stored of a name; no address while it is being written."""
    located = read_addresses(shared, first) or ()
    return NameState(located, is_gone(shared, first), is_failing(shared, first))


def _signed(half: int) -> int:
    return half - _HALF if half >= _HALF // 2 else half


def _located(cells: Sequence[int]) -> Located | None:
    kind, high, low, service = cells
    value = (high % _HALF) << 64 | (low % _HALF)
    scope = kind >> 8
    if not 0 <= scope <= _SCOPES:
        return None
    more = (
        service & _SHORT,
        service >> 16 & _SHORT,
        service >> 32 & _SHORT,
        max(1, service >> 48 & _BYTE),
    )
    if kind & _IPV6:
        return Located(str(ipaddress.IPv6Address(value)), scope, *more)
    if value > _LARGEST_IPV4:
        return None
    return Located(str(ipaddress.IPv4Address(value)), scope, *more)


class Addresses:
    """The endpoints of one backend now.

    `configured` is the endpoint that was found when the configuration was loaded; its
    socket address is empty if the name had no address then.
    """

    __slots__ = ("_configured", "_endpoints", "_first", "_port", "_sequence", "_shared", "located")

    def __init__(self, address: str, configured: Endpoint, layout: Layout, shared: Cells) -> None:
        name = lookup_name(address)
        self._port = parse_address(address)[1] if name and not is_service(address) else 0
        self._configured = configured
        self._endpoints: tuple[Endpoint, ...] = (configured,) if configured[1] else ()
        self._first = cell_of(layout, name) if name else -1
        self._sequence = 0
        self._shared = shared
        self.located: tuple[Located, ...] = ()
        """What `endpoints` was made of: empty while `configured` is used."""

    @property
    def may_change(self) -> bool:
        """Whether the address is a name."""
        return self._first >= 0

    def endpoints(self) -> tuple[Endpoint, ...]:
        """All endpoints in the resolver's order; none if the name has no address."""
        first = self._first
        if first >= 0 and self._shared[first] != self._sequence:
            self._refresh()
        return self._endpoints

    def _refresh(self) -> None:
        sequence = self._shared[self._first]
        found = read_addresses(self._shared, self._first)
        gone = is_gone(self._shared, self._first)
        if found is None or self._shared[self._first] != sequence:
            return  # being written; the next connection reads it
        self._sequence = sequence
        self.located = found
        self._endpoints = tuple(each.endpoint(self._port) for each in found)
        if not found and not gone and self._configured[1]:
            self._endpoints = (self._configured,)
