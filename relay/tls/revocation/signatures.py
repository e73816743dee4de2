"""Verifies the signature of a revocation list with the key of a CA.

Never: decides which CA may sign a list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from relay.tls.certificates.der import SEQUENCE, DerError, inside, read
from relay.tls.revocation.fields import CrlError, algorithm_parts

_RSA: Mapping[str, hashes.HashAlgorithm] = {
    "1.2.840.113549.1.1.11": hashes.SHA256(),
    "1.2.840.113549.1.1.12": hashes.SHA384(),
    "1.2.840.113549.1.1.13": hashes.SHA512(),
    "1.2.840.113549.1.1.14": hashes.SHA224(),
}
_ECDSA: Mapping[str, hashes.HashAlgorithm] = {
    "1.2.840.10045.4.3.1": hashes.SHA224(),
    "1.2.840.10045.4.3.2": hashes.SHA256(),
    "1.2.840.10045.4.3.3": hashes.SHA384(),
    "1.2.840.10045.4.3.4": hashes.SHA512(),
}
_PSS = "1.2.840.113549.1.1.10"
_PSS_HASHES: Mapping[str, hashes.HashAlgorithm] = {
    "2.16.840.1.101.3.4.2.1": hashes.SHA256(),
    "2.16.840.1.101.3.4.2.2": hashes.SHA384(),
    "2.16.840.1.101.3.4.2.3": hashes.SHA512(),
    "2.16.840.1.101.3.4.2.4": hashes.SHA224(),
}
# These algorithms hash the message themselves.
_PURE: Mapping[str, Any] = {
    "1.3.101.112": ed25519.Ed25519PublicKey,
    "1.3.101.113": ed448.Ed448PublicKey,
    "2.16.840.1.101.3.4.3.17": mldsa.MLDSA44PublicKey,
    "2.16.840.1.101.3.4.3.18": mldsa.MLDSA65PublicKey,
    "2.16.840.1.101.3.4.3.19": mldsa.MLDSA87PublicKey,
}
_OLD = {
    "1.2.840.113549.1.1.2": "MD2",
    "1.2.840.113549.1.1.4": "MD5",
    "1.2.840.113549.1.1.5": "SHA-1",
    "1.3.14.3.2.29": "SHA-1",
    "1.2.840.10045.4.1": "SHA-1",
    "1.2.840.10040.4.3": "SHA-1",
}
_SHA1 = "1.3.14.3.2.26"


def check_algorithm(algorithm: bytes) -> None:
    """Raise CrlError if the relay does not accept a signature algorithm at all."""
    oid, parameters = _parts(algorithm)
    old = _OLD.get(oid)
    if oid == _PSS and _pss_of(parameters) is None:
        old = "SHA-1 or an unusual combination of hashes"
    if old is not None:
        raise CrlError(
            f"is signed with {old}, which the relay refuses as it refuses such certificates",
            "have the CA sign its lists with SHA-256",
        )
    if oid not in {*_RSA, *_ECDSA, *_PURE, _PSS}:
        raise CrlError(
            f"is signed with an algorithm that the relay does not know: {oid or 'unreadable'}",
            "have the CA sign its lists with SHA-256 and RSA or ECDSA",
        )


def is_signed_with(spki: bytes, algorithm: bytes, signature: bytes, signed: bytes) -> bool:
    """Whether this key (SubjectPublicKeyInfo, DER) made the signature."""
    oid, parameters = _parts(algorithm)
    try:
        key: Any = load_der_public_key(spki)
        if isinstance(key, rsa.RSAPublicKey) and oid in _RSA:
            key.verify(signature, signed, padding.PKCS1v15(), _RSA[oid])
        elif isinstance(key, rsa.RSAPublicKey) and oid == _PSS:
            found = _pss_of(parameters)
            if found is None:
                return False
            kind, salt = found
            key.verify(signature, signed, padding.PSS(padding.MGF1(kind), salt), kind)
        elif isinstance(key, ec.EllipticCurvePublicKey) and oid in _ECDSA:
            key.verify(signature, signed, ec.ECDSA(_ECDSA[oid]))
        elif isinstance(key, _PURE.get(oid, ())):
            key.verify(signature, signed)
        else:
            return False
    # InternalError: OPENSSL_CONF makes OpenSSL ask a device, which refuses.
    except (InvalidSignature, InternalError, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True


def _parts(algorithm: bytes) -> tuple[str, bytes]:
    try:
        return algorithm_parts(algorithm)
    except DerError:
        return "", b""


def _pss_of(parameters: bytes) -> tuple[hashes.HashAlgorithm, int] | None:
    """The hash and the salt's size (RFC 4055, 3.1); None for those not accepted."""
    digest = mask = _SHA1  # the default
    salt = 20
    try:
        for each in inside(parameters, SEQUENCE, 4):
            value = parameters[each.start : each.stop]
            if each.tag == 0xA0:
                digest = algorithm_parts(value)[0]
            elif each.tag == 0xA1:
                mask = algorithm_parts(algorithm_parts(value)[1])[0]
            elif each.tag == 0xA2:
                number = read(value, 0, len(value))
                salt = int.from_bytes(value[number.start : number.stop][:4])
    except DerError:
        return None
    kind = _PSS_HASHES.get(digest)
    return None if kind is None or mask != digest else (kind, salt)
