"""Asks OpenSSL what it thinks of a certificate, with the calls that it uses in a handshake.

Never: judges by itself, or looks at the clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from OpenSSL import SSL
from OpenSSL.crypto import X509, X509Store, X509StoreContext, X509StoreContextError, X509StoreFlags

from relay.tls.raw import lib

# X509_V_FLAG_NO_CHECK_TIME of openssl/x509_vfy.h, which pyOpenSSL does not name: dates are told apart from everything else.
_NO_CHECK_TIME = 0x200000


class Role(StrEnum):
    """What a certificate is used as."""

    SERVER = "server"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class Refusal:
    """OpenSSL's words, and the certificate of the chain they are about."""

    words: str
    certificate: x509.Certificate


@dataclass(frozen=True, slots=True)
class Weakness:
    """A key or a signature below today's measure; `refused` when OpenSSL would not use it at its default security level."""

    what: str
    refused: bool


class Trust:
    """Trusted certificates in one OpenSSL store, for any number of questions: filling it is what costs.

    `partial` lets a path end at any of them; dates are not looked at.
    """

    def __init__(
        self,
        trusted: Iterable[x509.Certificate],
        *,
        role: Role | None = None,
        partial: bool = False,
        strict: bool = False,
    ) -> None:
        self._store = store = X509Store()
        for certificate in dict.fromkeys(trusted):
            store.add_cert(X509.from_cryptography(certificate))
        ends = X509StoreFlags.PARTIAL_CHAIN if partial else 0
        store.set_flags(_NO_CHECK_TIME | ends | (X509StoreFlags.X509_STRICT if strict else 0))
        if role is not None:
            server = role is Role.SERVER
            purpose = lib.X509_PURPOSE_SSL_SERVER if server else lib.X509_PURPOSE_SSL_CLIENT
            lib.X509_STORE_set_purpose(store._store, purpose)  # noqa: SLF001 (the pointer has no public name)

    def refusal_of(
        self, leaf: x509.Certificate, untrusted: Iterable[x509.Certificate] = ()
    ) -> Refusal | None:
        """Why OpenSSL would refuse a chain; None when it would not."""
        others = [X509.from_cryptography(each) for each in untrusted]
        try:
            X509StoreContext(
                self._store, X509.from_cryptography(leaf), others
            ).verify_certificate()
        except X509StoreContextError as error:
            return Refusal(str(error), error.certificate.to_cryptography())
        finally:
            lib.ERR_clear_error()  # an extension that cannot be parsed leaves a word behind
        return None


def refusal_of(
    leaf: x509.Certificate,
    untrusted: tuple[x509.Certificate, ...] = (),
    trusted: tuple[x509.Certificate, ...] = (),
    *,
    role: Role | None = None,
    partial: bool = False,
    strict: bool = False,
) -> Refusal | None:
    """One question to a `Trust` of its own: why OpenSSL would refuse a chain, dates aside."""
    trust = Trust(trusted, role=role, partial=partial, strict=strict)
    return trust.refusal_of(leaf, untrusted)


def weakness_of(certificate: x509.Certificate) -> Weakness | None:
    """What is weak about one certificate's key or signature."""
    try:
        SSL.Context(SSL.TLS_METHOD).use_certificate(certificate)
    except SSL.Error as error:
        words = "; ".join(entry[-1] for entry in error.args[0] if entry[-1]) if error.args else ""
        return Weakness(f"is too weak for OpenSSL's default security level: {words or 'refused'}", refused=True)
    algorithm = certificate.signature_hash_algorithm
    if algorithm is not None and algorithm.name in {"md5", "sha1"} and not is_self_signed(certificate):
        # The call above lets them pass, verification in the peer's handshake does not (X509_V_ERR_CA_MD_TOO_WEAK).
        return Weakness(f"is signed with {algorithm.name.upper()}, which OpenSSL refuses at its default security level", refused=True)
    size = getattr(certificate.public_key(), "key_size", 256)
    # RSA and DSA sizes are in the thousands, those of curves in the hundreds.
    if size < 224 or 521 < size < 2048:
        return Weakness(f"has a key of only {size} bits", refused=False)
    return None


def issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether `issuer` is named as the certificate's issuer and its key made the signature."""
    if certificate.issuer != issuer.subject:
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (TypeError, InvalidSignature):
        return False
    except (ValueError, UnsupportedAlgorithm):
        # cryptography does not verify old signatures such as SHA-1, OpenSSL does.
        return refusal_of(certificate, trusted=(issuer,), partial=True) is None
    return True


def is_self_signed(certificate: x509.Certificate) -> bool:
    """Whether the certificate vouches for itself, as a root does."""
    return issued_by(certificate, certificate)


class Issuers:
    """Certificates by their subject: who may have issued another is found without asking them all."""

    def __init__(self, certificates: Iterable[x509.Certificate]) -> None:
        self._by_subject: dict[x509.Name, list[x509.Certificate]] = {}
        for certificate in dict.fromkeys(certificates):
            self._by_subject.setdefault(certificate.subject, []).append(certificate)

    def named(self, name: x509.Name) -> list[x509.Certificate]:
        """All certificates of this subject."""
        return self._by_subject.get(name, [])

    def of(self, certificate: x509.Certificate) -> list[x509.Certificate]:
        """Those that issued the certificate."""
        return [each for each in self.named(certificate.issuer) if issued_by(certificate, each)]

    def above(self, chain: Iterable[x509.Certificate]) -> list[x509.Certificate]:
        """All that a path from one of these certificates may lead through, by their names."""
        found: dict[x509.Name, list[x509.Certificate]] = {}
        names = [certificate.issuer for certificate in chain]
        while names:
            name = names.pop()
            if name not in found:
                found[name] = self.named(name)
                names += [certificate.issuer for certificate in found[name]]
        return [certificate for several in found.values() for certificate in several]
