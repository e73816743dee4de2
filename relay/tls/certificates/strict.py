"""Finds what strict verification (X509_STRICT) refuses in a CA.

OpenSSL checks a CA strictly only if there is a certificate below it. So this makes one,
without a valid signature: OpenSSL looks at the extensions of a whole chain before it
verifies the signatures.

Never: trusts what it makes; it goes into no store.
"""

from __future__ import annotations

from collections.abc import Iterable

from relay.tls.certificates.certificate import Certificate
from relay.tls.certificates.der import BIT_STRING, OCTET_STRING, OID, SEQUENCE, DerError, read
from relay.tls.certificates.openssl import VerifyFailure, verify
from relay.tls.certificates.revocation_fields import AUTHORITY_KEY_ID, SUBJECT_KEY_ID

# X509_V_ERR_* of x509_vfy.h: INVALID_CA, and those of strict verification alone.
_STRICT_CODES = frozenset(range(79, 95))
_VERSION_3 = bytes.fromhex("a003020102")
_ONE = bytes.fromhex("020101")
_SUBJECT = bytes.fromhex("300c310a300806035504030c0178")  # CN=x
_NO_CA = bytes.fromhex("300c0603551d130101ff04023000")  # basicConstraints
_VALIDITY = bytes.fromhex("301e") + b"\x17\x0d200101000000Z\x17\x0d400101000000Z"
_EXTENSIONS, _KEY_IDENTIFIER = 0xA3, 0x80
# The signature algorithm for each key algorithm; another one has the same OID for both.
_ALGORITHMS = {
    "1.2.840.10045.2.1": "300a06082a8648ce3d040302",  # EC: ecdsa-with-SHA256
    "1.2.840.113549.1.1.1": "300d06092a864886f70d01010b0500",  # RSA: sha256WithRSAEncryption
}


def strict_failure(
    certificate: Certificate, above: Iterable[Certificate], *, partial: bool
) -> VerifyFailure | None:
    """Why OpenSSL would refuse a certificate that this CA issued, if it is strict.

    `above` are the CAs that may be above it. None if nothing is wrong with its chain.
    """
    try:
        leaf = _below(certificate)
    except (DerError, ValueError):  # OpenSSL cannot read the CA's key
        return None
    failure = verify(leaf, (), (certificate, *above), partial=partial, strict=True)
    return failure if failure is not None and failure.code in _STRICT_CODES else None


def _below(ca: Certificate) -> Certificate:
    """A certificate that names this CA as its issuer."""
    known = _ALGORITHMS.get(ca.key.algorithm)
    algorithm = bytes.fromhex(known) if known else _key_algorithm(ca.spki)
    identifier = (ca.extension(SUBJECT_KEY_ID) or b"")[2:] or bytes(20)
    key_id = _tlv(SEQUENCE, _tlv(_KEY_IDENTIFIER, identifier))
    extension = _tlv(SEQUENCE, _tlv(OID, AUTHORITY_KEY_ID), _tlv(OCTET_STRING, key_id))
    body = _tlv(
        SEQUENCE,
        _VERSION_3,
        _ONE,
        algorithm,
        ca.subject.public_bytes(),
        _VALIDITY,
        _SUBJECT,
        ca.spki,
        _tlv(_EXTENSIONS, _tlv(SEQUENCE, _NO_CA, extension)),
    )
    return Certificate.from_der(_tlv(SEQUENCE, body, algorithm, _tlv(BIT_STRING, bytes(65))))


def _key_algorithm(spki: bytes) -> bytes:
    start = read(spki, 0, len(spki)).start
    return spki[start : read(spki, start, len(spki)).after]


def _tlv(tag: int, *contents: bytes) -> bytes:
    data = b"".join(contents)
    size = len(data)
    if size < 0x80:
        return bytes((tag, size)) + data
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(length))) + length + data
