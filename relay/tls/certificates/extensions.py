"""What a certificate says about itself: whether it is a CA, and what it may be used for.

Never: believes it; who vouches for a certificate is another question (see `tls.certificates.openssl`).
"""

from __future__ import annotations

from typing import NamedTuple

from relay.tls.certificates.certificate import Certificate
from relay.tls.certificates.der import DerError
from relay.tls.certificates.extension_values import (
    BASIC_CONSTRAINTS,
    EXTENDED_KEY_USAGE,
    KEY_USAGE,
    NAME_CONSTRAINTS,
    is_ca_in,
    usages_in,
    uses_in,
)
from relay.tls.certificates.openssl import Role, is_self_signed

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
        return has_ca_flag(certificate)
    if not certificate.readable:
        return True  # what is in it only OpenSSL knows: see `tls.certificates.openssl`
    return usage is not None or (certificate.version == 1 and is_self_signed(certificate))


def ekus_of(certificate: Certificate) -> list[str] | None:
    """The extended key usages by their usual names.

    None without the extension: any use, then (RFC 5280, 4.2.1.12).
    """
    value = certificate.extension(EXTENDED_KEY_USAGE)
    try:
        return None if value is None else uses_in(value)
    except DerError:
        return None  # what cannot be parsed, OpenSSL refuses: see `tls.certificates.openssl`


def key_usage_of(certificate: Certificate) -> KeyUsage | None:
    """The key usage, None without the extension."""
    value = certificate.extension(KEY_USAGE)
    try:
        found = None if value is None else usages_in(value)
    except DerError:
        found = None
    if found is None:
        return None
    words = ("digitalSignature", "keyEncipherment", "keyAgreement", "keyCertSign")
    return KeyUsage(*(word in found for word in words))


def limits_names(certificate: Certificate) -> bool:
    """Whether it is a CA that may issue certain names only (RFC 5280, 4.2.1.10)."""
    return certificate.has_extension(NAME_CONSTRAINTS)


def subject_of(certificate: Certificate) -> str:
    """The subject for people; it may be empty (RFC 5280, 4.1.2.6)."""
    return certificate.subject.rfc4514_string() or "(no subject)"


def has_ca_flag(certificate: Certificate) -> bool:
    """Whether its basicConstraints name it a CA."""
    value = certificate.extension(BASIC_CONSTRAINTS)
    try:
        return value is not None and is_ca_in(value)
    except DerError:
        return False
