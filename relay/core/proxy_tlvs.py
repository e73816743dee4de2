"""The numbers of a PROXY v2 header's TLVs: one place for the parser and the builder.

They are those of the specification, haproxy/doc/proxy-protocol.txt, section 2.2, and
of the vendors that use its custom range.

Never: reads or makes a header.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag


class Tlv(IntEnum):
    """The first byte of a TLV."""

    ALPN = 0x01
    AUTHORITY = 0x02
    CRC32C = 0x03
    NOOP = 0x04
    UNIQUE_ID = 0x05
    SSL = 0x20
    NETNS = 0x30
    # Of vendors.
    GCP_PSC_CONNECTION_ID = 0xE0
    ALIBABA = 0xE1
    AWS = 0xEA
    AZURE = 0xEE


class SslTlv(IntEnum):
    """The first byte of a TLV inside `Tlv.SSL`."""

    VERSION = 0x21
    CN = 0x22
    CIPHER = 0x23
    SIG_ALG = 0x24
    KEY_ALG = 0x25
    GROUP = 0x26
    SIG_SCHEME = 0x27
    CLIENT_CERT = 0x28


class SslClient(IntFlag):
    """The bits of the first byte of `Tlv.SSL`."""

    SSL = 0x01
    CERT_CONN = 0x02
    CERT_SESS = 0x04


UNIQUE_ID_BYTES = 128  # at most
