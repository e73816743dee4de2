"""Decodes the extensions that say what a certificate may be used for (RFC 5280, 4.2.1).

Never: raises anything but DerError, or draws conclusions from a value (see
`tls.certificates.extensions`).
"""

from __future__ import annotations

from relay.tls.certificates.der import (
    BIT_STRING,
    BOOLEAN,
    OID,
    SEQUENCE,
    DerError,
    dotted,
    inside,
    read,
)

BASIC_CONSTRAINTS = bytes.fromhex("551d13")
KEY_USAGE = bytes.fromhex("551d0f")
EXTENDED_KEY_USAGE = bytes.fromhex("551d25")
NAME_CONSTRAINTS = bytes.fromhex("551d1e")
NETSCAPE_TYPE = bytes.fromhex("6086480186f8420101")

_MAX_USES = 64
_EKU_NAMES = {
    "1.3.6.1.5.5.7.3.1": "serverAuth",
    "1.3.6.1.5.5.7.3.2": "clientAuth",
    "2.5.29.37.0": "anyExtendedKeyUsage",
    "1.3.6.1.5.5.7.3.3": "codeSigning",
    "1.3.6.1.5.5.7.3.4": "emailProtection",
    "1.3.6.1.5.5.7.3.8": "timeStamping",
    "1.3.6.1.5.5.7.3.9": "OCSPSigning",
}
# In the order of the bits, the most significant bit of the first byte first.
_KEY_USAGES = (
    "digitalSignature",
    "nonRepudiation",
    "keyEncipherment",
    "dataEncipherment",
    "keyAgreement",
    "keyCertSign",
    "cRLSign",
)


def uses_in(value: bytes) -> list[str]:
    """The uses of an extendedKeyUsage by their usual names, others by their OID."""
    listed = inside(value, SEQUENCE, _MAX_USES)
    names = [dotted(value[each.start : each.stop]) for each in listed if each.tag == OID]
    return [_EKU_NAMES.get(name, name) for name in names]


def usages_in(value: bytes) -> list[str]:
    """The usages of a keyUsage by their usual names."""
    bits = read(value, 0, len(value))
    if bits.tag != BIT_STRING:
        raise DerError("has a malformed keyUsage")
    octet = value[bits.start + 1] if bits.stop > bits.start + 1 else 0
    return [name for at, name in enumerate(_KEY_USAGES) if octet & 0x80 >> at]


def is_ca_in(value: bytes) -> bool:
    """Whether basicConstraints have CA:TRUE."""
    parts = inside(value, SEQUENCE, 3)
    return bool(parts) and parts[0].tag == BOOLEAN and any(value[parts[0].start : parts[0].stop])
