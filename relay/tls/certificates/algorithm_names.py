"""The names of a certificate's algorithms, as the PROXY protocol has them.

Never: decides whether an algorithm is good.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from relay.tls.certificates.certificate import Certificate
from relay.tls.raw import NULL, ffi, lib

_RSA, _RSA_PSS, _EC = "1.2.840.113549.1.1.1", "1.2.840.113549.1.1.10", "1.2.840.10045.2.1"
_PREFIXES = {_RSA: "RSA", _RSA_PSS: "RSA", _EC: "EC"}


class AlgorithmNames(NamedTuple):
    """For example "RSA2048" or "EC256", and "RSA-SHA256" or "ecdsa-with-SHA256"."""

    key: str
    signature: str


@lru_cache(1024)
def algorithm_names(certificate: Certificate) -> AlgorithmNames:
    """As HAProxy writes them; "" for an algorithm that OpenSSL has no name for."""
    algorithm, _, bits = certificate.key
    prefix = _PREFIXES.get(algorithm)
    key = f"{prefix}{bits}" if prefix else _short_name(algorithm)
    return AlgorithmNames(key, _short_name(certificate.signature_algorithm))


def _short_name(oid: str) -> str:
    """OpenSSL's short name, for example "ED25519"."""
    number = lib.OBJ_txt2nid(oid.encode("ascii")) if oid else 0
    lib.ERR_clear_error()
    name = lib.OBJ_nid2sn(number) if number else NULL
    return "" if name == NULL else ffi.string(name).decode("ascii", "replace")
