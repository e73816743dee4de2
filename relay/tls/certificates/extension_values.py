"""What stands in the extensions of a certificate that say what it is for (RFC 5280, 4.2.1).

Never: raises anything but DerError, or tells what follows from it (see `tls.certificates.extensions`).
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
_EKU_WORDS = {
    "1.3.6.1.5.5.7.3.1": "serverAuth",
    "1.3.6.1.5.5.7.3.2": "clientAuth",
    "2.5.29.37.0": "anyExtendedKeyUsage",
    "1.3.6.1.5.5.7.3.3": "codeSigning",
    "1.3.6.1.5.5.7.3.4": "emailProtection",
    "1.3.6.1.5.5.7.3.8": "timeStamping",
    "1.3.6.1.5.5.7.3.9": "OCSPSigning",
}
# By the bits of the first byte, from its left.
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
    """The uses of an extendedKeyUsage by their usual names, others as numbers."""
    listed = inside(value, SEQUENCE, _MAX_USES)
    names = [dotted(value[each.start : each.stop]) for each in listed if each.tag == OID]
    return [_EKU_WORDS.get(name, name) for name in names]


def usages_in(value: bytes) -> list[str]:
    """The usages of a keyUsage by their usual names."""
    bits = read(value, 0, len(value))
    if bits.tag != BIT_STRING:
        raise DerError("has a keyUsage that is none")
    octet = value[bits.start + 1] if bits.stop > bits.start + 1 else 0
    return [word for at, word in enumerate(_KEY_USAGES) if octet & 0x80 >> at]


def is_ca_in(value: bytes) -> bool:
    """Whether basicConstraints say that it is a CA."""
    parts = inside(value, SEQUENCE, 3)
    return bool(parts) and parts[0].tag == BOOLEAN and any(value[parts[0].start : parts[0].stop])
