"""What a certificate says about itself: whether it is a CA, and what it may be used for.

Never: believes it; who vouches for a certificate is another question (see `tls.verdict`).
"""

from __future__ import annotations

from typing import NamedTuple

from relay.tls.certificate import Certificate
from relay.tls.der import BOOLEAN, OID, SEQUENCE, DerError, dotted, inside, read
from relay.tls.verdict import Role, is_self_signed

BASIC_CONSTRAINTS = bytes.fromhex("551d13")
_KEY_USAGE = bytes.fromhex("551d0f")
_NAME_CONSTRAINTS = bytes.fromhex("551d1e")
_EXTENDED_KEY_USAGE = bytes.fromhex("551d25")
_BIT_STRING = 0x03
_MOST_USAGES = 64

_EKU_NAMES = {
    "1.3.6.1.5.5.7.3.1": "serverAuth",
    "1.3.6.1.5.5.7.3.2": "clientAuth",
    "2.5.29.37.0": "anyExtendedKeyUsage",
    "1.3.6.1.5.5.7.3.3": "codeSigning",
    "1.3.6.1.5.5.7.3.4": "emailProtection",
    "1.3.6.1.5.5.7.3.8": "timeStamping",
    "1.3.6.1.5.5.7.3.9": "OCSPSigning",
}


NEEDED_EKU = {Role.SERVER: "serverAuth", Role.CLIENT: "clientAuth"}


class KeyUsage(NamedTuple):
    """The bits of keyUsage that matter here (RFC 5280, 4.2.1.3)."""

    digital_signature: bool
    key_encipherment: bool
    key_agreement: bool
    key_cert_sign: bool


def is_ca(certificate: Certificate) -> bool:
    """As OpenSSL's check_ca: keyUsage must allow it.

    Without basicConstraints keyCertSign, or a self-signed version 1, will do.
    """
    usage = key_usage_of(certificate)
    if usage is not None and not usage.key_cert_sign:
        return False
    if certificate.has_extension(BASIC_CONSTRAINTS):
        return says_ca(certificate)
    if not certificate.readable:
        return True  # what is in it only OpenSSL knows: see `tls.verdict`
    return usage is not None or (certificate.version == 1 and is_self_signed(certificate))


def ekus_of(certificate: Certificate) -> list[str] | None:
    """The extended key usages by their usual names.

    None without the extension: any use, then (RFC 5280, 4.2.1.12).
    """
    value = certificate.extension(_EXTENDED_KEY_USAGE)
    if value is None:
        return None
    try:
        listed = inside(value, SEQUENCE, _MOST_USAGES)
    except DerError:
        return None  # what cannot be parsed, OpenSSL refuses: see `tls.verdict`
    names = [dotted(value[each.start : each.stop]) for each in listed if each.tag == OID]
    return [_EKU_NAMES.get(name, name) for name in names]


def key_usage_of(certificate: Certificate) -> KeyUsage | None:
    """The key usage, None without the extension."""
    value = certificate.extension(_KEY_USAGE)
    try:
        bits = None if value is None else read(value, 0, len(value))
    except DerError:
        return None
    if value is None or bits is None or bits.tag != _BIT_STRING:
        return None
    octet = value[bits.start + 1] if bits.stop > bits.start + 1 else 0
    return KeyUsage(bool(octet & 0x80), bool(octet & 0x20), bool(octet & 0x08), bool(octet & 0x04))


def limits_names(certificate: Certificate) -> bool:
    """Whether it is a CA that may issue certain names only (RFC 5280, 4.2.1.10)."""
    return certificate.has_extension(_NAME_CONSTRAINTS)


def subject_of(certificate: Certificate) -> str:
    """The subject for people; it may be empty (RFC 5280, 4.1.2.6)."""
    return certificate.subject.rfc4514_string() or "(no subject)"


def says_ca(certificate: Certificate) -> bool:
    """Whether its basicConstraints name it a CA."""
    value = certificate.extension(BASIC_CONSTRAINTS) or b""
    try:
        parts = inside(value, SEQUENCE, 3)
    except DerError:
        return False
    return bool(parts) and parts[0].tag == BOOLEAN and any(value[parts[0].start : parts[0].stop])
