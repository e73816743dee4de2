"""PROXY headers, and what the specification says about each.

The sections are those of haproxy/doc/proxy-protocol.txt.
"""

from __future__ import annotations

from dataclasses import dataclass

from relay.core.crc32c import crc32c

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
SOURCE, DESTINATION = "192.0.2.7", "198.51.100.9"
SOURCE6, DESTINATION6 = "2001:db8::7", "2001:db8::9"
PORTS = 56324, 443

# What becomes of a connection that begins with the header.
RELAYED = "relayed, with the header's addresses"
SOCKET = "relayed, with the socket's addresses"
LOCAL = "accepted as the balancer's own"
REFUSED = "refused"
WAITS = "not complete yet"


@dataclass(frozen=True)
class Vector:
    """`says` quotes or sums up the sentence of the specification that decides."""

    name: str
    data: bytes
    expected: str
    says: str

    @property
    def source(self) -> tuple[str, int]:
        """The client, if the header's addresses count."""
        return (SOURCE6 if b"TCP6" in self.data or self.data[13:14] == b"\x21" else SOURCE), PORTS[
            0
        ]


def tlv(kind: int, value: bytes) -> bytes:
    """One TLV."""
    return bytes((kind,)) + len(value).to_bytes(2, "big") + value


def v2(
    payload: bytes,
    *,
    version_command: int = 0x21,
    family_protocol: int = 0x11,
    length: int | None = None,
) -> bytes:
    """A v2 header around this payload."""
    size = len(payload) if length is None else length
    return SIGNATURE + bytes((version_command, family_protocol)) + size.to_bytes(2, "big") + payload


def with_checksum(payload: bytes, *, change: int = 0, family_protocol: int = 0x11) -> bytes:
    """A v2 header with a CRC32c TLV as its last; `change` makes it wrong."""
    header = v2(payload + tlv(0x03, bytes(4)), family_protocol=family_protocol)
    return header[:-4] + (crc32c(header) ^ change).to_bytes(4, "big")


_PORT_BYTES = b"".join(port.to_bytes(2, "big") for port in PORTS)
IPV4 = bytes((192, 0, 2, 7, 198, 51, 100, 9)) + _PORT_BYTES
IPV6 = (
    bytes.fromhex("20010db8000000000000000000000007")
    + bytes.fromhex("20010db8000000000000000000000009")
    + _PORT_BYTES
)
UNIX = b"/run/a.sock".ljust(108, b"\0") + b"/run/b.sock".ljust(108, b"\0")

_EXACT = "2.1: any sequence that does not exactly match the protocol must be discarded"
_ONE_SPACE = "2.1: exactly one space"
_ZEROES = "2.1: heading zeroes are not permitted in front of numbers"
_FOUR = "2.1: IPv4 addresses are exactly 4 integers from 0 to 255"
_SIX = "2.1: IPv6 addresses are sets of 4 hexadecimal digits, 128 bits in total, one ::"
_FAMILY = "2.1: the advertised protocol family dictates what format to use"
_PORT = "2.1: the port is a decimal integer from 0 to 65535"
_IGNORE = "2.1: for UNKNOWN the receiver must ignore anything before the CRLF"
_CRLF = "2.1: must not tolerate a single CR or LF when a CRLF is expected"
_107 = "2.1: if there is no CRLF in the first 107 characters the line is invalid"
_WAIT = "2.1: the receiver must wait for the CRLF before it decodes the addresses"
_LOCAL = "2.2: LOCAL must be accepted, with the real endpoints; the family is ignored"
_SKIP = "2.2: always skip the number of bytes in the length, also for LOCAL"
_VERSION = "2.2: the receiver must only accept version 2"
_COMMAND = "2.2: drop connections with other commands than LOCAL and PROXY"
_OTHER = "2.2: other values must be rejected as invalid by receivers"
_UNSPEC = "2.2: UNSPEC: ignore the address information; accept or reject"
_ADDRESSES = "2.2: the addresses have exactly this length"
_DGRAM = "2.2: the client uses a datagram protocol; receivers need not support it"
_WHOLE = "2.2: must not start to parse an address before the whole block is there"
_TLVS = "2.2: bytes beyond the addresses are TLVs with type, length and value"
_CRC = "2.2.3: if the calculated checksum is not the received one, treat it as invalid"
_NOOP = "2.2.4: a TLV of this type is ignored"
_UNIQUE = "2.2.5: a unique id has up to 128 bytes"


def v1(text: str) -> bytes:
    """A v1 line without its CRLF, with one after it."""
    return text.encode() + b"\r\n"


_V1 = f"{SOURCE} {DESTINATION} {PORTS[0]} {PORTS[1]}"
_V1_6 = f"{SOURCE6} {DESTINATION6} {PORTS[0]} {PORTS[1]}"
_LONG6 = "2001:0db8:0000:0000:0000:0000:0000:0007 2001:0DB8:0000:0000:0000:0000:0000:0009"
_WORST = "PROXY UNKNOWN " + " ".join(["ffff:" * 7 + "ffff"] * 2) + " 65535 65535"

V1_VECTORS = [
    Vector("TCP4", v1(f"PROXY TCP4 {_V1}"), RELAYED, "2.1: the block itself"),
    Vector("TCP6", v1(f"PROXY TCP6 {_V1_6}"), RELAYED, "2.1: the block itself"),
    Vector(
        "TCP6 written in full", v1(f"PROXY TCP6 {_LONG6} 56324 443"), RELAYED, "2.1: upper or lower"
    ),
    Vector("UNKNOWN, short", b"PROXY UNKNOWN\r\n", SOCKET, "2.1: the rest may be omitted"),
    Vector("UNKNOWN with addresses", v1(f"PROXY UNKNOWN {_V1}"), SOCKET, _IGNORE),
    Vector("UNKNOWN with anything", v1("PROXY UNKNOWN \x01 what ever"), SOCKET, _IGNORE),
    Vector("UNKNOWN of 107 bytes", v1(_WORST), SOCKET, "2.1: worst case, 107 characters"),
    Vector("UNKNOWN of 108 bytes", v1(_WORST + "1"), REFUSED, _107),
    Vector("UNKNOWNX", v1("PROXY UNKNOWNX"), REFUSED, _EXACT),
    Vector("ports 0 and 65535", v1(f"PROXY TCP4 {SOURCE} {DESTINATION} 0 65535"), RELAYED, _PORT),
    Vector(
        "a port above 65535", v1(f"PROXY TCP4 {SOURCE} {DESTINATION} 65536 443"), REFUSED, _PORT
    ),
    Vector("a negative port", v1(f"PROXY TCP4 {SOURCE} {DESTINATION} -1 443"), REFUSED, _PORT),
    Vector("a port with a sign", v1(f"PROXY TCP4 {SOURCE} {DESTINATION} +1 443"), REFUSED, _PORT),
    Vector("a port in words", v1(f"PROXY TCP4 {SOURCE} {DESTINATION} https 443"), REFUSED, _PORT),
    Vector("a hexadecimal port", v1(f"PROXY TCP4 {SOURCE} {DESTINATION} abc 443"), REFUSED, _PORT),
    Vector(
        "zeros before a port", v1(f"PROXY TCP4 {SOURCE} {DESTINATION} 0443 443"), REFUSED, _ZEROES
    ),
    Vector(
        "zeros before the other port",
        v1(f"PROXY TCP4 {SOURCE} {DESTINATION} 56324 00443"),
        REFUSED,
        _ZEROES,
    ),
    Vector(
        "zeros in an address",
        v1(f"PROXY TCP4 192.0.2.07 {DESTINATION} 56324 443"),
        REFUSED,
        _ZEROES,
    ),
    Vector("no destination port", v1(f"PROXY TCP4 {SOURCE} {DESTINATION} 56324"), REFUSED, _EXACT),
    Vector("a fifth value", v1(f"PROXY TCP4 {_V1} 1"), REFUSED, _EXACT),
    Vector("nothing after TCP4", v1("PROXY TCP4"), REFUSED, _EXACT),
    Vector("an octet above 255", v1(f"PROXY TCP4 192.0.2.256 {DESTINATION} 1 2"), REFUSED, _FOUR),
    Vector("three octets", v1(f"PROXY TCP4 192.0.2 {DESTINATION} 1 2"), REFUSED, _FOUR),
    Vector("five octets", v1(f"PROXY TCP4 192.0.2.7.7 {DESTINATION} 1 2"), REFUSED, _FOUR),
    Vector("IPv6 in TCP4", v1(f"PROXY TCP4 {_V1_6}"), REFUSED, _FAMILY),
    Vector("IPv4 in TCP6", v1(f"PROXY TCP6 {_V1}"), REFUSED, _FAMILY),
    Vector("two families", v1(f"PROXY TCP4 {SOURCE} {DESTINATION6} 1 2"), REFUSED, _FAMILY),
    Vector("two double colons", v1(f"PROXY TCP6 2001::db8::7 {DESTINATION6} 1 2"), REFUSED, _SIX),
    Vector("five digits", v1(f"PROXY TCP6 2001:00db8::7 {DESTINATION6} 1 2"), REFUSED, _SIX),
    Vector("seven groups", v1(f"PROXY TCP6 1:2:3:4:5:6:7 {DESTINATION6} 1 2"), REFUSED, _SIX),
    Vector("a zone", v1(f"PROXY TCP6 fe80::1%eth0 {DESTINATION6} 1 2"), REFUSED, _SIX),
    Vector("brackets", v1(f"PROXY TCP6 [{SOURCE6}] {DESTINATION6} 1 2"), REFUSED, _SIX),
    Vector("two spaces first", v1(f"PROXY  TCP4 {_V1}"), REFUSED, _ONE_SPACE),
    Vector("two spaces inside", v1(f"PROXY TCP4 {SOURCE}  {DESTINATION} 1 2"), REFUSED, _ONE_SPACE),
    Vector("a space at the end", v1(f"PROXY TCP4 {_V1} "), REFUSED, _EXACT),
    Vector("a tab", v1(f"PROXY\tTCP4 {_V1}"), REFUSED, _ONE_SPACE),
    Vector("a tab inside", v1(f"PROXY TCP4\t{_V1}"), REFUSED, _ONE_SPACE),
    Vector("proxy in lower case", v1(f"proxy TCP4 {_V1}"), REFUSED, _EXACT),
    Vector("tcp4 in lower case", v1(f"PROXY tcp4 {_V1}"), REFUSED, _EXACT),
    Vector("unknown in lower case", v1("PROXY unknown"), REFUSED, _EXACT),
    Vector("UDP4", v1(f"PROXY UDP4 {_V1}"), REFUSED, "2.1: only TCP4 and TCP6 are allowed"),
    Vector("TCP5", v1(f"PROXY TCP5 {_V1}"), REFUSED, "2.1: only TCP4 and TCP6 are allowed"),
    Vector("LF without CR", f"PROXY TCP4 {_V1}\n".encode(), REFUSED, _CRLF),
    Vector("CR without LF", f"PROXY TCP4 {_V1}\rX".encode(), REFUSED, _CRLF),
    Vector("no CRLF in 107 bytes", f"PROXY TCP4 {_V1}".encode().ljust(108, b"1"), REFUSED, _107),
    Vector("a byte beyond ASCII", f"PROXY TCP4 {SOURCE}\u00e9 1 2 3\r\n".encode(), REFUSED, _EXACT),
    Vector("a zero byte", v1(f"PROXY TCP4 {SOURCE}\0 {DESTINATION} 1 2"), REFUSED, _EXACT),
    Vector("not complete", f"PROXY TCP4 {_V1}".encode(), WAITS, _WAIT),
    Vector("UNKNOWN, not complete", b"PROXY UNKNOWN", WAITS, _WAIT),
]

V2_VECTORS = [
    Vector("v2 TCP over IPv4", v2(IPV4), RELAYED, "2.2: 0x11, 12 bytes of addresses"),
    Vector("v2 TCP over IPv6", v2(IPV6, family_protocol=0x21), RELAYED, "2.2: 0x21, 36 bytes"),
    Vector("v2 unix stream", v2(UNIX, family_protocol=0x31), SOCKET, "2.2: 0x31, 216 bytes"),
    Vector("v2 UNSPEC", v2(b"", family_protocol=0x00), SOCKET, _UNSPEC),
    Vector("v2 UNSPEC with bytes", v2(b"anything", family_protocol=0x00), SOCKET, _UNSPEC),
    Vector("v2 UNSPEC over IPv4", v2(IPV4, family_protocol=0x10), SOCKET, _UNSPEC),
    Vector("v2 stream of UNSPEC", v2(b"", family_protocol=0x01), SOCKET, _UNSPEC),
    Vector("v2 UDP over IPv4", v2(IPV4, family_protocol=0x12), REFUSED, _DGRAM),
    Vector("v2 UDP over IPv6", v2(IPV6, family_protocol=0x22), REFUSED, _DGRAM),
    Vector("v2 unix datagram", v2(UNIX, family_protocol=0x32), REFUSED, _DGRAM),
    Vector("v2 family 4", v2(IPV4, family_protocol=0x41), REFUSED, _OTHER),
    Vector("v2 family 15", v2(IPV4, family_protocol=0xF1), REFUSED, _OTHER),
    Vector("v2 protocol 3", v2(IPV4, family_protocol=0x13), REFUSED, _OTHER),
    Vector("v2 protocol 15", v2(IPV4, family_protocol=0x1F), REFUSED, _OTHER),
    Vector("v2 LOCAL", v2(b"", version_command=0x20, family_protocol=0), LOCAL, _LOCAL),
    Vector("v2 LOCAL over IPv4", v2(IPV4, version_command=0x20), LOCAL, _LOCAL),
    Vector("v2 LOCAL, length 0", v2(b"", version_command=0x20), LOCAL, _LOCAL),
    Vector(
        "v2 LOCAL, unknown family",
        v2(b"xyz", version_command=0x20, family_protocol=0xFF),
        LOCAL,
        _LOCAL,
    ),
    Vector(
        "v2 LOCAL with bytes",
        v2(bytes(300), version_command=0x20, family_protocol=0),
        LOCAL,
        _SKIP,
    ),
    Vector("v2 version 1", v2(IPV4, version_command=0x11), REFUSED, _VERSION),
    Vector("v2 version 3", v2(IPV4, version_command=0x31), REFUSED, _VERSION),
    Vector("v2 version 0", v2(IPV4, version_command=0x01), REFUSED, _VERSION),
    Vector("v2 command 2", v2(IPV4, version_command=0x22), REFUSED, _COMMAND),
    Vector("v2 command 15", v2(IPV4, version_command=0x2F), REFUSED, _COMMAND),
    Vector("v2 IPv4, no addresses", v2(b""), REFUSED, _ADDRESSES),
    Vector("v2 IPv4, 11 bytes", v2(IPV4[:11]), REFUSED, _ADDRESSES),
    Vector("v2 IPv6, 35 bytes", v2(IPV6[:35], family_protocol=0x21), REFUSED, _ADDRESSES),
    Vector("v2 IPv6, IPv4 in it", v2(IPV4, family_protocol=0x21), REFUSED, _ADDRESSES),
    Vector("v2 unix, 215 bytes", v2(UNIX[:215], family_protocol=0x31), REFUSED, _ADDRESSES),
    Vector(
        "v2 wrong signature", b"\r\n\r\n\0\r\nQUIT\r" + v2(IPV4)[12:], REFUSED, "2.2: signature"
    ),
    Vector("v2 not complete", v2(IPV4)[:-1], WAITS, _WHOLE),
    Vector("v2 fixed part only", v2(IPV4)[:16], WAITS, _WHOLE),
    Vector("v2 a part of the signature", SIGNATURE[:7], WAITS, _WHOLE),
    Vector("v2 authority", v2(IPV4 + tlv(0x02, b"app.example.com")), RELAYED, _TLVS),
    Vector("v2 an unknown TLV", v2(IPV4 + tlv(0xF0, b"x" * 200)), RELAYED, _TLVS),
    Vector("v2 an empty TLV", v2(IPV4 + tlv(0x30, b"")), RELAYED, _TLVS),
    Vector("v2 NOOP", v2(IPV4 + tlv(0x04, bytes(9))), RELAYED, _NOOP),
    Vector("v2 a TLV too long", v2(IPV4 + b"\x02\x00\x09shorter"), REFUSED, _TLVS),
    Vector("v2 half a TLV header", v2(IPV4 + b"\x02\x00"), REFUSED, _TLVS),
    Vector("v2 a byte after the TLVs", v2(IPV4 + tlv(0x04, b"") + b"\x04"), REFUSED, _TLVS),
    Vector("v2 CRC32c", with_checksum(IPV4), RELAYED, _CRC),
    Vector("v2 CRC32c for IPv6", with_checksum(IPV6, family_protocol=0x21), RELAYED, _CRC),
    Vector("v2 CRC32c after others", with_checksum(IPV4 + tlv(0x02, b"a.example")), RELAYED, _CRC),
    Vector("v2 CRC32c wrong", with_checksum(IPV4, change=1), REFUSED, _CRC),
    Vector("v2 CRC32c of 3 bytes", v2(IPV4 + tlv(0x03, bytes(3))), REFUSED, _CRC),
    Vector(
        "v2 UNSPEC, CRC32c wrong", with_checksum(b"", change=1, family_protocol=0), REFUSED, _CRC
    ),
    Vector("v2 a unique id", v2(IPV4 + tlv(0x05, b"u" * 128)), RELAYED, _UNIQUE),
    Vector("v2 a long unique id", v2(IPV4 + tlv(0x05, b"u" * 129)), REFUSED, _UNIQUE),
]

OTHERS = [
    Vector("a TLS record", bytes.fromhex("160301020001"), REFUSED, "2.2: otherwise drop it"),
    Vector("HTTP", b"GET / HTTP/1.1\r\n\r\n", REFUSED, "2.2: otherwise drop it"),
    Vector("nothing yet", b"", WAITS, "2.2: a header may come in pieces"),
]
VECTORS = V1_VECTORS + V2_VECTORS + OTHERS
