"""A PROXY header as a value, or what is wrong with one.

The specification is haproxy/doc/proxy-protocol.txt of HAProxy; its sections are named
where they count.

Never: parses or makes a header.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from relay.core.hello import Need

Endpoint: TypeAlias = tuple[str, int]
Tlvs: TypeAlias = tuple[tuple[int, bytes], ...]


class Header(NamedTuple):
    """A valid header of `size` bytes.

    `source` is the client and `destination` the address that the client connected to.
    Both are None if the header has no IP addresses. Then the addresses of the socket
    count: for LOCAL, the balancer's own connection, and for clients whose address it
    does not know.
    """

    size: int
    version: int
    source: Endpoint | None = None
    destination: Endpoint | None = None
    local: bool = False
    tlvs: Tlvs = ()


class MalformedHeader(NamedTuple):
    """What is wrong with the bytes.

    `missing`: they are not a header at all.
    """

    detail: str
    missing: bool = False


ParsedHeader: TypeAlias = Header | MalformedHeader | Need
