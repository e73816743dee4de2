"""Who the peer is: the facts of its certificate, and whether a route's rules let it in.

The chain is OpenSSL's business. What OpenSSL does not do on a resumed handshake is judged here, on every handshake:
the dates of the leaf and of the CA that issued it, and the allow rules.

Parsing is remembered by the certificate's SHA-256 (a certificate never changes); verdicts that depend on the time are not.

Never: trusts a certificate that OpenSSL has not verified, now or when the resumed session began.
Next: `relay.worker.outbound.choose`
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from relay.config.model import Allow
from relay.errors import Reason
from relay.tls.material import serial_hex
from relay.tls.patterns import UriPattern, dns_pattern
from relay.tls.raw import NULL, Pointer, ffi, lib
from relay.tls.reasons import Failure

_REMEMBERED = 4096
_MOST_DETAIL = 500
_SHA256 = lib.EVP_get_digestbyname(b"sha256")
_digest: Any = ffi.new("unsigned char[32]")
_digest_view = ffi.buffer(_digest, 32)


@dataclass(frozen=True, slots=True)
class Identity:
    """A leaf certificate's facts; instants are Unix time, `serial` (as `openssl x509 -serial` prints it) and `fingerprint` upper-case hex, names RFC 4514."""

    subject: str
    issuer: str
    serial: str
    not_before_at: float
    not_after_at: float
    cn: tuple[str, ...]
    ou: tuple[str, ...]
    san_dns: tuple[str, ...]
    san_uri: tuple[str, ...]
    fingerprint: str
    issuer_der: bytes
    spki_sha256: bytes = b""
    """The hash of its public key, which may outlive the certificate; b"" for a key that cryptography cannot write down."""


@dataclass(frozen=True, slots=True)
class AllowRules:
    """A route's `allow`, compiled. Matches when any entry does; no entry at all allows every certificate of the CA."""

    cn: frozenset[str]
    ou: frozenset[str]
    fingerprints: frozenset[str]
    dns: tuple[re.Pattern[str], ...]
    uri: tuple[UriPattern, ...]
    any_entry: bool

    def allow(self, who: Identity) -> bool:
        """Whether this certificate may come in."""
        return (
            not self.any_entry
            or not self.cn.isdisjoint(who.cn)
            or not self.ou.isdisjoint(who.ou)
            or who.fingerprint in self.fingerprints
            or any(p.fullmatch(name) for p in self.dns for name in who.san_dns)
            or any(p.matches(name) for p in self.uri for name in who.san_uri)
        )


def compile_rules(allow: Allow) -> AllowRules:
    """Compile `allow`; what a star stands for is in `tls.patterns`."""
    dns = tuple(map(dns_pattern, allow.san_dns))
    uri = tuple(map(UriPattern.parse, allow.san_uri))
    fingerprints = frozenset(f.replace(":", "").upper() for f in allow.fingerprint_sha256)
    entries: Iterable[object] = (*allow.cn, *allow.ou, *allow.san_dns, *allow.san_uri, *allow.fingerprint_sha256)
    return AllowRules(frozenset(allow.cn), frozenset(allow.ou), fingerprints, dns, uri, any_entry=any(True for _ in entries))


_known: dict[bytes, Identity] = {}


def peer_identity(ssl: Pointer) -> Identity | None:
    """The peer's leaf certificate, or None when it showed none."""
    certificate = lib.SSL_get_peer_certificate(ssl)
    if certificate == NULL:
        return None
    try:
        return identity_of(certificate)
    finally:
        lib.X509_free(certificate)


def identity_of(certificate: Pointer, *, remember: bool = True) -> Identity:
    """The facts of an `X509 *`, which stays the caller's. Not to be remembered: a certificate that was not verified."""
    lib.X509_digest(certificate, _SHA256, _digest, NULL)
    fingerprint = _digest_view[:]
    who = _known.get(fingerprint)
    if who is None:
        if not remember:
            return _parse(to_der(certificate), fingerprint)
        if len(_known) >= _REMEMBERED:
            _known.clear()
        who = _known[fingerprint] = _parse(to_der(certificate), fingerprint)
    return who


def to_der(certificate: Pointer) -> bytes:
    """The DER of an `X509 *`."""
    bio = lib.BIO_new(lib.BIO_s_mem())
    try:
        lib.i2d_X509_bio(bio, certificate)
        data = ffi.new("char **")
        length = lib.BIO_get_mem_data(bio, data)
        return bytes(ffi.buffer(data[0], length))
    finally:
        lib.BIO_free(bio)


def _parse(der: bytes, fingerprint: bytes) -> Identity:
    # cryptography refuses some certificates that OpenSSL accepts; such a certificate has no names to match a rule with.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what breaks RFC 5280 in harmless ways
            certificate = x509.load_der_x509_certificate(der)
            return Identity(
                subject=certificate.subject.rfc4514_string(),
                issuer=certificate.issuer.rfc4514_string(),
                serial=serial_hex(certificate),
                not_before_at=certificate.not_valid_before_utc.timestamp(),
                not_after_at=certificate.not_valid_after_utc.timestamp(),
                cn=_names(certificate, NameOID.COMMON_NAME),
                ou=_names(certificate, NameOID.ORGANIZATIONAL_UNIT_NAME),
                san_dns=_alternative(certificate, x509.DNSName),
                san_uri=_alternative(certificate, x509.UniformResourceIdentifier),
                fingerprint=fingerprint.hex().upper(),
                issuer_der=certificate.issuer.public_bytes(),
                spki_sha256=_key_hash(certificate),
            )
    except Exception as error:  # noqa: BLE001 (strangers choose these bytes, and cryptography's list of exceptions is open)
        return Identity(f"unreadable: {_one_line(str(error))}", "", "", 0, 0, (), (), (), (), fingerprint.hex().upper(), b"")
    finally:
        lib.ERR_clear_error()


def _one_line(text: str) -> str:
    """For a detail: no line breaks or control characters, and not the whole of what a peer can fill a certificate with."""
    short = text if len(text) <= _MOST_DETAIL else text[:_MOST_DETAIL] + "…"
    return "".join(char if char.isprintable() else "?" for char in short)


def _key_hash(certificate: x509.Certificate) -> bytes:
    try:
        return hashlib.sha256(certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    except Exception:  # noqa: BLE001 (OpenSSL has verified with this key; that cryptography knows no such kind must not refuse the client)
        return b""


def _names(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> tuple[str, ...]:
    return tuple(str(attribute.value) for attribute in certificate.subject.get_attributes_for_oid(oid))


def _alternative(certificate: x509.Certificate, kind: type[x509.DNSName | x509.UniformResourceIdentifier]) -> tuple[str, ...]:
    try:
        return tuple(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(kind))
    except x509.ExtensionNotFound:
        return ()


class Gate(Protocol):
    """What a route asks of its clients; `ca_valid_until` maps the subject (DER) of every trusted CA to the end of its and its issuers' validity."""

    @property
    def rules(self) -> AllowRules: ...  # noqa: D102
    @property
    def ca_valid_until(self) -> dict[bytes, float]: ...  # noqa: D102


def judge(who: Identity | None, gate: Gate, now_at: float) -> Failure | None:
    """What OpenSSL left to us, on full and resumed handshakes alike; None lets the client in."""
    if who is None:
        return Failure(Reason.NO_CERTIFICATE)
    if not who.serial:
        return Failure(Reason.INVALID_CERTIFICATE, who.subject)
    if now_at > who.not_after_at:
        return Failure(Reason.EXPIRED, "certificate has expired")
    if now_at < who.not_before_at:
        return Failure(Reason.NOT_YET_VALID, "certificate is not yet valid")
    if now_at > gate.ca_valid_until.get(who.issuer_der, now_at):
        return Failure(Reason.EXPIRED, "the CA that issued the certificate has expired")
    if not gate.rules.allow(who):
        names = _one_line(", ".join((*who.cn, *who.san_dns, *who.san_uri))) or "none"
        return Failure(Reason.NOT_ALLOWED, f"names in the certificate: {names}; SHA-256 {who.fingerprint}")
    return None
