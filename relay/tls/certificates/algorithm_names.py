"""The names of a certificate's algorithms, as the PROXY protocol has them.

The bindings do not say which signature scheme a handshake used. But it follows from the
key, and from what the client offered: OpenSSL takes the first scheme of its own list
that fits both. `tests/worker/test_proxy_out.py` compares it
with what peers see.

Never: decides whether an algorithm is good.
"""

from __future__ import annotations

from typing import NamedTuple

from relay.tls.certificates.certificate import Certificate
from relay.tls.preload import OPERATORS_OWN
from relay.tls.raw import NULL, ffi, lib

_RSA, _RSA_PSS, _EC = "1.2.840.113549.1.1.1", "1.2.840.113549.1.1.10", "1.2.840.10045.2.1"
_PREFIXES = {_RSA: "RSA", _RSA_PSS: "RSA", _EC: "EC"}
_ED25519, _ED448 = "1.3.101.112", "1.3.101.113"
_P256, _P384, _P521 = "1.2.840.10045.3.1.7", "1.3.132.0.34", "1.3.132.0.35"


class _Scheme(NamedTuple):
    """A signature scheme (RFC 8446, 4.2.3). TLS 1.2 does not bind one to a curve."""

    number: bytes
    name: str
    algorithm: str
    curve: str = ""
    only_tls12: bool = False


# In OpenSSL's order of preference.
_SCHEMES = (
    _Scheme(b"\x04\x03", "ecdsa_secp256r1_sha256", _EC, _P256),
    _Scheme(b"\x05\x03", "ecdsa_secp384r1_sha384", _EC, _P384),
    _Scheme(b"\x06\x03", "ecdsa_secp521r1_sha512", _EC, _P521),
    _Scheme(b"\x08\x07", "ed25519", _ED25519),
    _Scheme(b"\x08\x08", "ed448", _ED448),
    _Scheme(b"\x08\x04", "rsa_pss_rsae_sha256", _RSA),
    _Scheme(b"\x08\x05", "rsa_pss_rsae_sha384", _RSA),
    _Scheme(b"\x08\x06", "rsa_pss_rsae_sha512", _RSA),
    _Scheme(b"\x04\x01", "rsa_pkcs1_sha256", _RSA, only_tls12=True),
    _Scheme(b"\x05\x01", "rsa_pkcs1_sha384", _RSA, only_tls12=True),
    _Scheme(b"\x06\x01", "rsa_pkcs1_sha512", _RSA, only_tls12=True),
)


class AlgorithmNames(NamedTuple):
    """For example "RSA2048" or "EC256", and "RSA-SHA256" or "ecdsa-with-SHA256"."""

    key: str
    signature: str


def algorithm_names(certificate: Certificate) -> AlgorithmNames:
    """As HAProxy writes them; "" for an algorithm that OpenSSL has no name for."""
    algorithm, _, bits = certificate.key
    prefix = _PREFIXES.get(algorithm)
    key = f"{prefix}{bits}" if prefix else _short_name(algorithm)
    return AlgorithmNames(key, _short_name(certificate.signature_algorithm))


def signature_scheme(certificate: Certificate, version: str, cipher: str, offered: bytes) -> str:
    """The scheme by which a full handshake was signed; "" if it is not certain.

    `offered` is the body of the client's signature_algorithms extension.
    """
    tls12 = version == "TLSv1.2"
    if OPERATORS_OWN or (tls12 and not cipher.startswith(("ECDHE-", "DHE-"))):
        return ""
    numbers = {offered[at : at + 2] for at in range(2, len(offered) - 1, 2)}
    algorithm, curve, _ = certificate.key
    for scheme in _SCHEMES:
        if scheme.algorithm == algorithm and scheme.number in numbers:
            fits = not scheme.only_tls12 and scheme.curve in {"", curve}
            if tls12 or fits:
                return scheme.name
    return ""


def _short_name(oid: str) -> str:
    """OpenSSL's short name, for example "ED25519"."""
    number = lib.OBJ_txt2nid(oid.encode("ascii")) if oid else 0
    lib.ERR_clear_error()
    name = lib.OBJ_nid2sn(number) if number else NULL
    return "" if name == NULL else ffi.string(name).decode("ascii", "replace")
