"""What a certificate says about itself: whether it is a CA, and what it may be used for.

Never: believes it; who vouches for a certificate is another question (see `tls.verdict`).
"""

from __future__ import annotations

from typing import TypeVar

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from relay.tls.material import name_of
from relay.tls.verdict import Role, is_self_signed

T = TypeVar("T", bound=x509.ExtensionType)

_EKU_NAMES = {
    ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
    ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
    ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE: "anyExtendedKeyUsage",
    ExtendedKeyUsageOID.CODE_SIGNING: "codeSigning",
    ExtendedKeyUsageOID.EMAIL_PROTECTION: "emailProtection",
    ExtendedKeyUsageOID.TIME_STAMPING: "timeStamping",
    ExtendedKeyUsageOID.OCSP_SIGNING: "OCSPSigning",
}


NEEDED_EKU = {Role.SERVER: "serverAuth", Role.CLIENT: "clientAuth"}


def is_ca(certificate: x509.Certificate) -> bool:
    """As OpenSSL's check_ca: keyUsage must allow it; without basicConstraints keyCertSign, or a self-signed version 1, will do."""
    usage = key_usage_of(certificate)
    if usage is not None and not usage.key_cert_sign:
        return False
    constraints = extension_of(certificate, x509.BasicConstraints)
    if constraints is not None:
        return constraints.ca
    return usage is not None or (certificate.version is x509.Version.v1 and is_self_signed(certificate))


def ekus_of(certificate: x509.Certificate) -> list[str] | None:
    """The extended key usages by their usual names, None without the extension (any use, then; RFC 5280, 4.2.1.12)."""
    usage = extension_of(certificate, x509.ExtendedKeyUsage)
    return None if usage is None else [_EKU_NAMES.get(each, each.dotted_string) for each in usage]


def key_usage_of(certificate: x509.Certificate) -> x509.KeyUsage | None:
    """The key usage, None without the extension."""
    return extension_of(certificate, x509.KeyUsage)


def extension_of(certificate: x509.Certificate, kind: type[T]) -> T | None:
    """One extension, None when there is none or the certificate's extensions cannot be parsed."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return None  # what cannot be parsed, OpenSSL refuses: see `tls.verdict`


def subject_of(certificate: x509.Certificate) -> str:
    """The subject for people; it may be empty (RFC 5280, 4.1.2.6)."""
    return name_of(certificate.subject) or "(no subject)"
