"""Asks OpenSSL about a certificate, with the calls that OpenSSL makes in a handshake.

Never: looks at the clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from OpenSSL import SSL

from relay.tls.certificates.certificate import Certificate, Name, names_issuer
from relay.tls.certificates.x509_fields import has_broken_extensions, openssl_error_text
from relay.tls.raw import NULL, Pointer, ffi, lib

# Flags of openssl/x509_vfy.h that the bindings lack. Dates have findings of their own.
_NO_CHECK_TIME, _CHECK_SS_SIGNATURE = 0x200000, 0x4000
_PARTIAL_CHAIN: int = lib.X509_V_FLAG_PARTIAL_CHAIN
_STRICT: int = lib.X509_V_FLAG_X509_STRICT
# X509_V_ERR_PERMITTED_VIOLATION to _UNSUPPORTED_NAME_SYNTAX, and _SUBTREE_MINMAX.
NAME_CONSTRAINT_CODES = frozenset((47, 48, 49, 51, 52, 53))
# Old signatures, by their object identifiers: RSA, ECDSA and DSA with MD5 or SHA-1.
_OLD_HASHES = {
    "1.2.840.113549.1.1.4": "MD5",
    "1.2.840.113549.1.1.5": "SHA-1",
    "1.2.840.10045.4.1": "SHA-1",
    "1.2.840.10040.4.3": "SHA-1",
}


class Role(StrEnum):
    """The end of a TLS connection that presents a certificate."""

    SERVER = "server"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class VerifyFailure:
    """Why OpenSSL refuses a chain.

    `text` and `code` (X509_V_ERR_*) are OpenSSL's; `certificate` is the one at fault.
    """

    text: str
    certificate: Certificate
    code: int = 0


@dataclass(frozen=True, slots=True)
class Weakness:
    """A key or a signature that is too weak.

    `refused`: OpenSSL does not use it at its default security level.
    """

    what: str
    refused: bool


class Verifier:
    """Verifies chains against trusted certificates, ignoring dates.

    One OpenSSL store holds them for all chains, because filling it is the costly part.
    With `partial` a path may end at any of them, not only at a root.
    """

    def __init__(
        self,
        trusted: Iterable[Certificate],
        *,
        role: Role | None = None,
        partial: bool = False,
        strict: bool = False,
    ) -> None:
        # The store keeps its certificates alive.
        self._store = store = ffi.gc(lib.X509_STORE_new(), lib.X509_STORE_free)
        for certificate in dict.fromkeys(trusted):
            lib.X509_STORE_add_cert(store, certificate.pointer)
        ends = _PARTIAL_CHAIN if partial else 0
        lib.X509_STORE_set_flags(store, _NO_CHECK_TIME | ends | (_STRICT if strict else 0))
        if role is not None:
            server = role is Role.SERVER
            purpose = lib.X509_PURPOSE_SSL_SERVER if server else lib.X509_PURPOSE_SSL_CLIENT
            lib.X509_STORE_set_purpose(store, purpose)

    def check_self_signatures(self) -> None:
        """Also verify the signature of a trusted self-signed certificate.

        OpenSSL skips it by default.
        """
        lib.X509_STORE_set_flags(self._store, _CHECK_SS_SIGNATURE)

    def verify(
        self, leaf: Certificate, untrusted: Iterable[Certificate] = ()
    ) -> VerifyFailure | None:
        """Why OpenSSL would refuse a chain; None if it accepts it."""
        others = tuple(untrusted)
        stack, context = lib.sk_X509_new_null(), lib.X509_STORE_CTX_new()
        try:
            for each in others:
                lib.sk_X509_push(stack, each.pointer)
            lib.X509_STORE_CTX_init(context, self._store, leaf.pointer, stack)
            if lib.X509_verify_cert(context) == 1:
                return None
            code = lib.X509_STORE_CTX_get_error(context)
            text = ffi.string(lib.X509_verify_cert_error_string(code)).decode("ascii", "replace")
            return VerifyFailure(text, _at_fault(context) or leaf, code)
        finally:
            lib.X509_STORE_CTX_free(context)
            lib.sk_X509_free(stack)
            lib.ERR_clear_error()  # an extension that cannot be parsed leaves an error


def _at_fault(context: Pointer) -> Certificate | None:
    pointer = lib.X509_STORE_CTX_get_current_cert(context)
    if pointer == NULL:
        return None
    lib.X509_up_ref(pointer)
    try:
        return Certificate.of(pointer)
    except ValueError:  # its dates cannot be read
        return None


def verify(
    leaf: Certificate,
    untrusted: tuple[Certificate, ...] = (),
    trusted: tuple[Certificate, ...] = (),
    *,
    role: Role | None = None,
    partial: bool = False,
    strict: bool = False,
) -> VerifyFailure | None:
    """Verify one chain against its own trusted certificates, ignoring dates."""
    verifier = Verifier(trusted, role=role, partial=partial, strict=strict)
    return verifier.verify(leaf, untrusted)


def weakness_of(certificate: Certificate) -> Weakness | None:
    """What is weak about a certificate's key or signature; None if nothing is."""
    context = SSL.Context(SSL.TLS_METHOD)
    if lib.SSL_CTX_use_certificate(context._context, certificate.pointer) != 1:  # noqa: SLF001
        why = openssl_error_text()
        bits = f" ({certificate.key.bits} bits)" if "key too small" in why else ""
        return Weakness(
            f"is too weak for OpenSSL's default security level: {why}{bits}", refused=True
        )
    old = _OLD_HASHES.get(certificate.signature_algorithm)
    if old is not None and not is_self_signed(certificate):
        # The call above accepts these signatures, but verification in the peer's
        # handshake does not (X509_V_ERR_CA_MD_TOO_WEAK).
        return Weakness(
            f"is signed with {old}, which OpenSSL refuses at its default security level",
            refused=True,
        )
    size = certificate.key.bits
    # RSA and DSA keys have thousands of bits, keys on curves have hundreds.
    if size < 224 or 521 < size < 2048:
        return Weakness(f"has a key of only {size} bits", refused=False)
    return None


def extension_error(certificate: Certificate) -> str:
    """The extension error that makes every OpenSSL refuse a certificate; "" for none.

    OpenSSL itself does not report this error: it looks for another issuer, finds none,
    and reports a missing issuer.
    """
    if not has_broken_extensions(certificate.pointer):
        return ""
    repeated = certificate.repeated_extensions()
    if repeated:
        return f"has an extension twice: {', '.join(repeated)}"
    return "has an extension that OpenSSL cannot parse"


def issued_by(certificate: Certificate, issuer: Certificate) -> bool:
    """Whether the certificate names this issuer and was signed with its key."""
    if not names_issuer(certificate, issuer):
        return False
    below, above = certificate.as_cryptography, issuer.as_cryptography
    if below is not None and above is not None:
        try:
            below.verify_directly_issued_by(above)
        except InvalidSignature:
            return False
        except (TypeError, ValueError, UnsupportedAlgorithm, InternalError):
            # cryptography refuses old signatures such as SHA-1. It has an InternalError
            # if OPENSSL_CONF prefers the signatures of a TPM. OpenSSL verifies both.
            lib.ERR_clear_error()
        else:
            return True
    verifier = Verifier((issuer,), partial=True)
    verifier.check_self_signatures()
    return verifier.verify(certificate) is None


def is_self_signed(certificate: Certificate) -> bool:
    """Whether the certificate is signed with its own key, as a root is."""
    return issued_by(certificate, certificate)


class Issuers:
    """Certificates by subject, to find an issuer without trying all of them."""

    def __init__(self, certificates: Iterable[Certificate]) -> None:
        self._by_subject: dict[Name, list[Certificate]] = {}
        for certificate in dict.fromkeys(certificates):
            self._by_subject.setdefault(certificate.subject, []).append(certificate)

    def named(self, name: Name) -> list[Certificate]:
        """All certificates with this subject."""
        return self._by_subject.get(name, [])

    def of(self, certificate: Certificate) -> list[Certificate]:
        """The certificates that issued this one."""
        return [each for each in self.named(certificate.issuer) if issued_by(certificate, each)]

    def above(self, chain: Iterable[Certificate]) -> list[Certificate]:
        """All certificates that, by name, may be above one of these in a path."""
        found: dict[Name, list[Certificate]] = {}
        names = [certificate.issuer for certificate in chain]
        while names:
            name = names.pop()
            if name not in found:
                found[name] = self.named(name)
                names += [certificate.issuer for certificate in found[name]]
        return [certificate for several in found.values() for certificate in several]
