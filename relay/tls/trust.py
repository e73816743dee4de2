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
from pathlib import Path
from typing import NamedTuple, TypeAlias

from relay.config.section import Crl
from relay.quick_pickle import QuickPickle
from relay.tls.access_rules import AccessRules
from relay.tls.certificates.certificate import Certificate
from relay.tls.certificates.configured import DEFAULT_RULES, ChainRules
from relay.tls.certificates.revocation_fields import SUBJECT_KEY_ID


def key_id(certificate: Certificate) -> bytes:
    """The SHA-256 of a certificate's SubjectPublicKeyInfo."""
    return hashlib.sha256(certificate.spki).digest()


class CaKey(NamedTuple):
    """The key of a CA: its id (see `key_id`), and its subjectKeyIdentifier or b""."""

    key_id: bytes
    identifier: bytes


Issuers: TypeAlias = dict[tuple[bytes, bytes], tuple[bytes, ...]]


@dataclass(frozen=True, slots=True)
class CaTrust(QuickPickle):
    """The CAs of one file.

    `valid_until` maps a CA's subject (DER) to the Unix time until which it and the CAs
    above it are valid. `keys` maps a subject (DER) to the keys of the CAs with that
    name. `digest` is different for different CAs: it is the trust generation, without
    which a ticket does not count.
    """

    valid_until: Mapping[bytes, float] = field(default_factory=dict)
    keys: Mapping[bytes, tuple[CaKey, ...]] = field(default_factory=dict)
    digest: bytes = b""
    issuers: Issuers = field(default_factory=dict)
    """By name (DER) and key identifier: see `issuers_of`."""
    key_ids: frozenset[bytes] = frozenset()
    closed: bool = True
    """Whether no chain leaves the file again: it ends there, or has every issuer."""
    revoked_ids: frozenset[bytes] = frozenset()
    """The key ids of CAs in the file that do not count, because they are revoked."""

    @classmethod
    def of(
        cls,
        certificates: Iterable[Certificate],
        valid_until: Mapping[bytes, float],
        rules: ChainRules = DEFAULT_RULES,
        revoked: Iterable[Certificate] = (),
    ) -> CaTrust:
        """Describe these CAs; `rules` are those for the chains that lead to them.

        The revoked ones do not belong to them.
        """
        kept = list(certificates)
        keys: dict[bytes, tuple[CaKey, ...]] = {}
        for each in kept:
            name, key = each.subject.public_bytes(), _key_of(each)
            keys[name] = (*(known for known in keys.get(name, ()) if known != key), key)
        ids = frozenset(key.key_id for several in keys.values() for key in several)
        together = b"".join(sorted(hashlib.sha256(each.der).digest() for each in kept))
        return cls(
            valid_until,
            keys,
            hashlib.sha256(together + repr(rules).encode()).digest(),
            issuers_in(keys),
            ids,
            rules.partial_chain or all(each.issuer.public_bytes() in keys for each in kept),
            frozenset(map(key_id, revoked)) - ids,
        )

    def issuers_of(self, name: bytes, identifier: bytes) -> tuple[bytes, ...]:
        """The ids of the keys that may have signed a certificate, if a CA here has.

        `name` is the certificate's issuer (DER) and `identifier` the key identifier of
        its authorityKeyIdentifier or b"": then every key of that name may have.
        """
        found = self.issuers.get((name, identifier))
        if found is not None:
            return found
        named = self.keys.get(name)
        if named is None:  # perhaps the name is encoded in another way
            if not identifier:
                return ()
            every = (key for several in self.keys.values() for key in several)
            return tuple(key.key_id for key in every if key.identifier == identifier)
        return tuple(key.key_id for key in named if not (key.identifier and identifier))


def issuers_in(keys: Mapping[bytes, tuple[CaKey, ...]]) -> Issuers:
    """The usual cases, for look-ups in handshakes."""
    found: Issuers = {}
    for name, named in keys.items():
        found[name, b""] = tuple(key.key_id for key in named)
        for identifier in {key.identifier for key in named} - {b""}:
            found[name, identifier] = tuple(
                key.key_id for key in named if key.identifier in {identifier, b""}
            )
    return found


def _key_of(certificate: Certificate) -> CaKey:
    identifier = certificate.extension(SUBJECT_KEY_ID) or b""
    return CaKey(key_id(certificate), identifier[2:])  # after tag and length


@dataclass(frozen=True, slots=True)
class CrlPolicy(QuickPickle):
    """What follows if no list, or only an expired one, covers a certificate.

    An expired list counts for `grace_s` more. `learns`: certificates say where the
    lists are.
    """

    accepts_missing: bool = False
    grace_s: float = 0.0
    learns: bool = False

    @classmethod
    def of(cls, settings: Crl | None) -> CrlPolicy | None:
        """The policy that these settings ask for; None without lists."""
        if settings is None:
            return None
        grace_s = settings.grace_s if settings.expired == "grace" else 0.0
        return cls(settings.missing == "accept", grace_s, settings.from_certificates)


@dataclass(frozen=True, slots=True)
class ClientTrust(QuickPickle):
    """Whom a route trusts."""

    rules: AccessRules
    cas: CaTrust
    crl: CrlPolicy | None = None  # None: nothing is looked up in revocation lists
    expiry_grace_s: float = 0.0  # how long a session outlives its certificate
    ca_file: Path | None = None
    lists: str = ""  # the name of the trust set; see `revocation.trust_sets`

    @property
    def ca_valid_until(self) -> Mapping[bytes, float]:
        """See `CaTrust.valid_until`."""
        return self.cas.valid_until


@dataclass(frozen=True, slots=True)
class BackendTrust(QuickPickle):
    """Whom a pool trusts."""

    cas: CaTrust
    crl: CrlPolicy | None = None
    expiry_grace_s: float = 0.0  # how long a session outlives the certificate
    ca_file: Path | None = None
    lists: str = ""  # the name of the trust set
