"""Whom a route or a pool trusts, as plain values that another process can receive.

OpenSSL verifies a chain in a handshake. These values answer what is asked afterwards:
until when a CA is valid, and whether a peer would still be trusted today. They hold no
OpenSSL object, so the supervisor can send them to a running worker.

Never: verifies a signature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from relay.tls.certificates.certificate import Certificate
from relay.tls.identity import AllowRules


def key_id(certificate: Certificate) -> bytes:
    """The SHA-256 of a certificate's SubjectPublicKeyInfo."""
    return hashlib.sha256(certificate.spki).digest()


@dataclass(frozen=True, slots=True)
class CaTrust:
    """The CAs of one file.

    `valid_until` maps a CA's subject (DER) to the Unix time until which it and the CAs
    above it are valid. `keys` maps a subject (DER) to the key ids of the CAs with that
    name. `digest` is different for different CAs: it is the trust generation, without
    which a ticket does not count.
    """

    valid_until: Mapping[bytes, float] = field(default_factory=dict)
    keys: Mapping[bytes, frozenset[bytes]] = field(default_factory=dict)
    digest: bytes = b""

    @classmethod
    def of(cls, certificates: Iterable[Certificate], valid_until: Mapping[bytes, float]) -> CaTrust:
        """Describe these CAs."""
        kept = list(certificates)
        keys: dict[bytes, frozenset[bytes]] = {}
        for each in kept:
            name = each.subject.public_bytes()
            keys[name] = keys.get(name, frozenset()) | {key_id(each)}
        together = b"".join(sorted(hashlib.sha256(each.der).digest() for each in kept))
        return cls(valid_until, keys, hashlib.sha256(together).digest())


@dataclass(frozen=True, slots=True)
class ClientTrust:
    """Whom a route trusts."""

    rules: AllowRules
    cas: CaTrust

    @property
    def ca_valid_until(self) -> Mapping[bytes, float]:
        """See `CaTrust.valid_until`."""
        return self.cas.valid_until


@dataclass(frozen=True, slots=True)
class BackendTrust:
    """Whom a pool trusts."""

    cas: CaTrust
