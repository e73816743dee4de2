"""Which extension of a certificate forbids the use that it was shown for.

OpenSSL has one word for all of them ("unsuitable certificate purpose"), and the operator
needs to know which one to reissue the certificate with.

Never: judges a certificate; OpenSSL has done that before.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from relay.core.untrusted import clip
from relay.errors import Side

_CLIENT, _SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
_EKU_WORDS = {
    _CLIENT: "clientAuth",
    _SERVER: "serverAuth",
    ExtendedKeyUsageOID.CODE_SIGNING: "codeSigning",
    ExtendedKeyUsageOID.EMAIL_PROTECTION: "emailProtection",
    ExtendedKeyUsageOID.TIME_STAMPING: "timeStamping",
    ExtendedKeyUsageOID.OCSP_SIGNING: "OCSPSigning",
    ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE: "anyExtendedKeyUsage",
}
# For a server, Microsoft's and Netscape's "server gated crypto" count as serverAuth.
_SERVER_TOO = frozenset(
    (ObjectIdentifier("1.3.6.1.4.1.311.10.3.3"), ObjectIdentifier("2.16.840.1.113730.4.1"))
)
_NETSCAPE_TYPE = ObjectIdentifier("2.16.840.1.113730.1.1")
_KEY_USAGES = {
    "digital_signature": "digitalSignature",
    "content_commitment": "nonRepudiation",
    "key_encipherment": "keyEncipherment",
    "data_encipherment": "dataEncipherment",
    "key_agreement": "keyAgreement",
    "key_cert_sign": "keyCertSign",
    "crl_sign": "cRLSign",
}
_MOST_WORDS = 8
NAME_CHARACTERS = 128  # of one name in a message


def subject_of(der: bytes) -> str:
    """The subject of a certificate for a message; "unreadable" when cryptography cannot read it."""
    try:
        return clip(x509.load_der_x509_certificate(der).subject.rfc4514_string(), NAME_CHARACTERS)
    except Exception:  # noqa: BLE001 (see why_unfit)
        return "unreadable"


def why_unfit(der: bytes, side: Side, *, issuer: bool) -> str:
    """What forbids the peer of this side, or its issuer, to use the certificate; "" when unknown.

    A certificate that cryptography cannot read gives "": OpenSSL's words have to do.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        return _issuer_fault(certificate, side) if issuer else _leaf_fault(certificate, side)
    except Exception:  # noqa: BLE001 (a peer chooses these bytes, and the list of exceptions is open)
        return ""


def _leaf_fault(certificate: x509.Certificate, side: Side) -> str:
    wrong = _extended_fault(certificate, side)
    if wrong:
        return wrong
    usage = _key_usage(certificate)
    if usage is not None:
        # OpenSSL also takes keyAgreement, and keyEncipherment of a server; no cipher of today
        # can use a certificate without digitalSignature.
        found = _usage_words(usage)
        if "digitalSignature" not in found:
            return f"its keyUsage ({', '.join(found) or 'empty'}) lacks digitalSignature"
    return _netscape_fault(certificate)


def _issuer_fault(certificate: x509.Certificate, side: Side) -> str:
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return "it is not a CA: it has no basicConstraints"
    if not basic.ca:
        return "it is not a CA: its basicConstraints say CA:FALSE"
    usage = _key_usage(certificate)
    if usage is not None and not usage.key_cert_sign:
        found = ", ".join(_usage_words(usage)) or "empty"
        return f"its keyUsage ({found}) lacks keyCertSign"
    return _extended_fault(certificate, side) or _netscape_fault(certificate)


def _extended_fault(certificate: x509.Certificate, side: Side) -> str:
    try:
        found = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return ""
    uses = list(found)
    needed = {_CLIENT} if side is Side.INBOUND else {_SERVER, *_SERVER_TOO}
    if not needed.isdisjoint(uses):
        return ""
    words = [_EKU_WORDS.get(use, use.dotted_string) for use in uses[:_MOST_WORDS]]
    if len(uses) > _MOST_WORDS:
        words.append("…")
    lacks = "clientAuth" if side is Side.INBOUND else "serverAuth"
    return f"its extendedKeyUsage ({', '.join(words)}) lacks {lacks}"


def _netscape_fault(certificate: x509.Certificate) -> str:
    types = [each for each in certificate.extensions if each.oid == _NETSCAPE_TYPE]
    return "its nsCertType forbids it; reissue it without this extension" if types else ""


def _key_usage(certificate: x509.Certificate) -> x509.KeyUsage | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None


def _usage_words(usage: x509.KeyUsage) -> list[str]:
    return [word for name, word in _KEY_USAGES.items() if getattr(usage, name)]
