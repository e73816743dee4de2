"""What a certificate's extensions say: whether it is a CA, and what it may be used for.

Never: verifies a signature or a chain (see `tls.certificates.openssl`).
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
    """Whether OpenSSL's check_ca considers it a CA.

    A keyUsage, if present, must have keyCertSign. Without basicConstraints, keyCertSign
    or a self-signed version 1 certificate is enough.
    """
    usage = key_usage_of(certificate)
    if usage is not None and not usage.key_cert_sign:
        return False
    if certificate.has_extension(BASIC_CONSTRAINTS):
        return has_ca_flag(certificate)
    if not certificate.readable:
        return True  # only OpenSSL can tell; `tls.certificates.openssl` asks it
    return usage is not None or (certificate.version == 1 and is_self_signed(certificate))


def ekus_of(certificate: Certificate) -> list[str] | None:
    """The extended key usages by their usual names.

    None without the extension, which allows any use (RFC 5280, 4.2.1.12).
    """
    value = certificate.extension(EXTENDED_KEY_USAGE)
    try:
        return None if value is None else uses_in(value)
    except DerError:
        return None  # OpenSSL refuses such a certificate; see `tls.certificates.openssl`


def key_usage_of(certificate: Certificate) -> KeyUsage | None:
    """The key usage; None without the extension."""
    value = certificate.extension(KEY_USAGE)
    try:
        found = None if value is None else usages_in(value)
    except DerError:
        found = None
    if found is None:
        return None
    names = ("digitalSignature", "keyEncipherment", "keyAgreement", "keyCertSign")
    return KeyUsage(*(name in found for name in names))


def has_name_constraints(certificate: Certificate) -> bool:
    """Whether it is a CA that may issue only certain names (RFC 5280, 4.2.1.10)."""
    return certificate.has_extension(NAME_CONSTRAINTS)


def has_ca_flag(certificate: Certificate) -> bool:
    """Whether its basicConstraints have CA:TRUE."""
    value = certificate.extension(BASIC_CONSTRAINTS)
    try:
        return value is not None and is_ca_in(value)
    except DerError:
        return False
