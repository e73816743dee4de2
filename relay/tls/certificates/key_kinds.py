"""Which kinds of keys work in TLS handshakes. OpenSSL loads several that do not.

Never: looks at a private key, or for keys that are too short (that is
`tls.certificates.openssl`).
"""

from __future__ import annotations

from typing import NamedTuple

from relay.tls.certificates.certificate import Certificate
from relay.tls.certificates.der import SEQUENCE, DerError, children, dotted, read

_EC, _ML_DSA = "1.2.840.10045.2.1", "2.16.840.1.101.3.4.3."
# RSA, RSA-PSS, Ed25519, Ed448: known to TLS 1.2 and 1.3 (RFC 8446, 4.2.3; RFC 8422).
_GOOD = frozenset(("1.2.840.113549.1.1.1", "1.2.840.113549.1.1.10", "1.3.101.112", "1.3.101.113"))
# The curves of TLS 1.3's signature schemes, with their names in `groups`.
_GOOD_CURVES = {
    "1.2.840.10045.3.1.7": ("P-256", "secp256r1", "prime256v1"),
    "1.3.132.0.34": ("P-384", "secp384r1"),
    "1.3.132.0.35": ("P-521", "secp521r1"),
}
_BRAINPOOL = {
    "1.3.36.3.3.2.8.1.1.7": ("brainpoolP256r1", "brainpoolP256r1tls13"),
    "1.3.36.3.3.2.8.1.1.11": ("brainpoolP384r1", "brainpoolP384r1tls13"),
    "1.3.36.3.3.2.8.1.1.13": ("brainpoolP512r1", "brainpoolP512r1tls13"),
}
_OTHER_CURVES = {
    "1.3.132.0.33": "P-224",
    "1.3.132.0.10": "secp256k1",
    "1.2.840.10045.3.1.1": "P-192",
    "1.2.156.10197.1.301": "SM2",
}
_OTHERS = {
    "1.2.840.10040.4.1": "DSA",
    "1.2.840.113549.1.3.1": "Diffie-Hellman",
    "1.2.840.10046.2.1": "Diffie-Hellman",
    "1.3.101.110": "X25519",
    "1.3.101.111": "X448",
}
_RSA_PSS, _SHA1 = "1.2.840.113549.1.1.10", "1.3.14.3.2.26"
# RFC 8446, 4.2.3: rsa_pss_pss_sha256, sha384, sha512; the salt is as long as the hash.
_PSS_HASHES = {
    "2.16.840.1.101.3.4.2.1": ("SHA-256", 32),
    "2.16.840.1.101.3.4.2.2": ("SHA-384", 48),
    "2.16.840.1.101.3.4.2.3": ("SHA-512", 64),
}
_OTHER_HASHES = {_SHA1: "SHA-1", "2.16.840.1.101.3.4.2.4": "SHA-224"}
_REMEDY = "issue it with an EC key on P-256 or P-384, or with RSA of 2048 bits or more"
# One private-key operation takes about 25 ms of CPU with RSA 8192, 200 ms with 16384.
_LONG_RSA_BITS = 8192


class KeyProblem(NamedTuple):
    """What is wrong with a kind of key; `refused`: usual peers do not accept it."""

    what: str
    remedy: str
    refused: bool


def key_problem(certificate: Certificate, groups: str, *, to_servers: bool) -> KeyProblem | None:
    """What is wrong with the kind of key of a certificate that the relay presents.

    `groups` is the configured text. `to_servers`: the relay presents the certificate to
    TLS 1.2 servers, which refuse a key on a curve that the relay does not offer.
    """
    algorithm, curve, bits = certificate.key
    named = {name.strip("?*-").lower() for name in groups.replace("/", ":").split(":")}
    if algorithm in _GOOD:
        restricted = _pss_problem(certificate.spki) if algorithm == _RSA_PSS else None
        return restricted or _size_problem(algorithm, bits)
    if algorithm.startswith(_ML_DSA):
        what = (
            "has an ML-DSA key, which peers accept only with TLS 1.3"
            " and a new TLS library (OpenSSL 3.5 or later)"
        )
        return KeyProblem(what, f"for other peers {_REMEDY}", refused=False)
    if algorithm != _EC:
        kind = _OTHERS.get(algorithm, f"unknown kind ({algorithm or 'unreadable'})")
        return KeyProblem(f"has a key that TLS does not use: {kind}", _REMEDY, refused=True)
    if curve in _GOOD_CURVES:
        name, *others = _GOOD_CURVES[curve]
        if to_servers and named.isdisjoint(each.lower() for each in (name, *others)):
            what = f"has a key on {name}, which is not in groups: TLS 1.2 servers refuse it"
            return KeyProblem(what, f"add {name} to groups", refused=False)
        return None
    if curve in _BRAINPOOL:
        name, *others = _BRAINPOOL[curve]
        allowed = not named.isdisjoint(each.lower() for each in (name, *others))
        what = f"has an EC key on {name}, which TLS peers accept only if they are configured for it"
        return KeyProblem(what, _REMEDY, refused=not allowed)
    name = _OTHER_CURVES.get(curve, curve or "a curve without a name")
    what = (
        f"has an EC key on {name}, for which TLS 1.3 has no signature; TLS peers do not accept it"
    )
    return KeyProblem(what, _REMEDY, refused=True)


def kind_in_suites(certificate: Certificate) -> str:
    """The kind of key that a TLS 1.2 suite must name; empty if none names it."""
    algorithm = certificate.key.algorithm
    if algorithm in _GOOD and not algorithm.startswith("1.3.101."):
        return "RSA"
    return "ECDSA" if algorithm == _EC or algorithm in _GOOD else ""


def _pss_problem(spki: bytes) -> KeyProblem | None:
    """A hash or salt restriction that TLS cannot satisfy (RSA-PSS, RFC 4055, 3.1)."""
    try:
        restriction = _pss_restriction(spki)
    except DerError:
        return None
    if restriction is None:
        return None
    hash_oid, salt = restriction
    name, size = _PSS_HASHES.get(hash_oid, (_OTHER_HASHES.get(hash_oid, hash_oid), 0))
    if salt <= size:
        return None
    what = f"has an RSA-PSS key that is restricted to {name}" + (
        f" with {salt} bytes of salt" if size else ""
    )
    remedy = f"{_REMEDY}; an RSA-PSS key may be restricted to SHA-256, SHA-384 or SHA-512"
    return KeyProblem(f"{what}, for which TLS has no signature", remedy, refused=True)


def _pss_restriction(spki: bytes) -> tuple[str, int] | None:
    """The hash and the minimum salt of an RSA-PSS key; None without a restriction."""
    outer = read(spki, 0, len(spki))
    parts = children(spki, *read(spki, outer.start, outer.stop)[1:3], 2)
    if len(parts) < 2 or parts[1].tag != SEQUENCE:
        return None
    hash_oid, salt = _SHA1, 20  # the defaults, if there are parameters
    for each in children(spki, parts[1].start, parts[1].stop, 4):
        value = read(spki, each.start, each.stop)
        if each.tag == 0xA0:
            oid = read(spki, value.start, value.stop)
            hash_oid = dotted(spki[oid.start : oid.stop])
        elif each.tag == 0xA2:
            salt = int.from_bytes(spki[value.start : value.stop][:8])
    return hash_oid, salt


def _size_problem(algorithm: str, bits: int) -> KeyProblem | None:
    if algorithm.startswith("1.2.840.113549") and bits > _LONG_RSA_BITS:
        cost = f"{bits**3 / 2.2e10:.0f} ms of CPU"
        what = f"has an RSA key of {bits} bits: each handshake costs about {cost}"
        remedy = "issue it with an EC key on P-256, or with RSA of 3072 bits"
        return KeyProblem(what, remedy, refused=False)
    return None
