"""The identity in a peer's certificate, and whether a route admits it.

OpenSSL verifies the chain. On a resumed handshake it skips that, so this module checks
on every handshake: the dates of the leaf and of the CA that issued it, and the allow
rules.

Parsed identities are cached by the certificate's SHA-256. The cache is bounded in
number and bytes, and holds only certificates that a trusted CA signed. Results that
depend on the time are not cached. A refused certificate is parsed for the log only up
to LARGE_BYTES: any client can send a larger one that is costly to parse, so only its
size, fingerprint and common name are logged.

`relay.tls.access_rules` compares the names. A certificate can have names that cannot be
read: `Identity.unreadable` says of which kinds.

Never: trusts a certificate that OpenSSL did not verify, now or when the resumed session
was established.
Next: `relay.worker.outbound.connect`
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from relay.errors import Reason
from relay.tls.certificates.der import DerError, Fields
from relay.tls.certificates.names import (
    COMMON_NAME,
    ORGANIZATIONAL_UNIT,
    SUBJECT_ALT_NAME,
    AltNames,
    Attribute,
    alt_names_of,
    attributes_of,
    has_unreadable,
    render,
    serial_text,
    unix_time,
    values_of,
)
from relay.tls.certificates.purpose import ANY_USE, TlsUse, tls_use_of
from relay.tls.certificates.revocation_fields import (
    NO_FIELDS,
    RevocationFields,
    revocation_fields,
)
from relay.tls.certificates.x509_fields import common_name, fields_of, to_der
from relay.tls.explain import Failure
from relay.tls.raw import NULL, Pointer, ffi, lib

LARGE_BYTES = 8192
_CACHE_ENTRIES = 4096
_CACHE_BYTES = 16 * 1024 * 1024
_SHA256 = lib.EVP_get_digestbyname(b"sha256")
_digest: Any = ffi.new("unsigned char[32]")
_digest_view = ffi.buffer(_digest, 32)


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity in a leaf certificate. Times are Unix time.

    `serial` (as `openssl x509 -serial` prints it) and `fingerprint` are upper-case hex.
    `subject` and `issuer` follow RFC 4514. `serial`, `subject` and `issuer` are
    clipped, for people; the tuples of names are exact, for rules. A large certificate
    that was refused has only `fingerprint` and a `subject` with its size and
    fingerprint.
    """

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
    """The hash of the public key, which may outlive the certificate; b"" if unknown."""
    unread: str = ""
    """Which of the names cannot be read, for people; "" if all can be."""
    for_lists: RevocationFields = NO_FIELDS
    """What a revocation list is compared with."""
    san_ip: tuple[bytes, ...] = ()
    san_email: tuple[str, ...] = ()
    tls_use: TlsUse = ANY_USE
    unreadable: frozenset[str] = frozenset()
    """The keys of `allow` for which the certificate has a value that cannot be read."""


_known: dict[bytes, Identity] = {}
_known_bytes = 0


def peer_identity(ssl: Pointer) -> Identity | None:
    """The identity in the peer's leaf certificate; None if it sent none."""
    certificate = lib.SSL_get_peer_certificate(ssl)
    if certificate == NULL:
        return None
    try:
        return identity_of(certificate)
    finally:
        lib.X509_free(certificate)


def peer_der(ssl: Pointer) -> bytes:
    """The peer's leaf certificate, DER; b"" if it sent none."""
    certificate = lib.SSL_get_peer_certificate(ssl)
    if certificate == NULL:
        return b""
    try:
        return to_der(certificate)
    finally:
        lib.X509_free(certificate)


def identity_of(certificate: Pointer, *, remember: bool = True) -> Identity:
    """The identity in an `X509 *`, which the caller keeps and frees.

    Pass remember=False for a certificate that was not verified: it is not cached, and
    not parsed if it is large.
    """
    lib.X509_digest(certificate, _SHA256, _digest, NULL)
    fingerprint = _digest_view[:]
    who = _known.get(fingerprint)
    if who is not None:
        return who
    der = to_der(certificate)
    if not remember:
        if len(der) > LARGE_BYTES:
            return _describe_large(certificate, len(der), fingerprint)
        return _parse(certificate, der, fingerprint)
    return _remember(_parse(certificate, der, fingerprint), len(der), fingerprint)


def _remember(who: Identity, size: int, fingerprint: bytes) -> Identity:
    global _known_bytes
    names = len(who.cn) + len(who.ou) + len(who.san_dns) + len(who.san_uri)
    _known_bytes += 1024 + size + 64 * (names + len(who.san_ip) + len(who.san_email))
    if len(_known) >= _CACHE_ENTRIES or _known_bytes > _CACHE_BYTES:
        _known.clear()
        _known_bytes = 0
    _known[fingerprint] = who
    return who


def _describe_large(certificate: Pointer, size: int, fingerprint: bytes) -> Identity:
    name = common_name(certificate)
    sha256 = fingerprint.hex().upper()
    shown = f"CN={name} " if name else ""
    subject = f"{shown}(a certificate of {size} bytes, not read; SHA-256 {sha256})"
    return Identity(subject, "", "", 0, 0, (), (), (), (), sha256, b"")


def _parse(certificate: Pointer, der: bytes, fingerprint: bytes) -> Identity:
    fields = fields_of(certificate, der)
    subject, shown, unread = _subject(certificate, fields)
    names, broken = _alt_names(fields)
    return Identity(
        subject=shown,
        issuer=_shown(fields.issuer),
        serial=serial_text(fields.serial),
        # Dates that cannot be read admit no client; OpenSSL has already refused them.
        not_before_at=_or_never(unix_time(*fields.not_before), float("inf")),
        not_after_at=_or_never(unix_time(*fields.not_after), 0.0),
        cn=values_of(subject, COMMON_NAME),
        ou=values_of(subject, ORGANIZATIONAL_UNIT),
        san_dns=names.dns,
        san_uri=names.uri,
        fingerprint=fingerprint.hex().upper(),
        issuer_der=fields.issuer,
        spki_sha256=hashlib.sha256(fields.spki).digest() if fields.spki else b"",
        unread=", ".join(filter(None, (unread, broken))),
        for_lists=revocation_fields(fields),
        tls_use=tls_use_of(fields),
        san_ip=names.ip,
        san_email=names.email,
        unreadable=names.skipped | _unreadable(subject, unread),
    )


def _or_never(at: float | None, never: float) -> float:
    return never if at is None else at


def _subject(certificate: Pointer, fields: Fields) -> tuple[list[Attribute], str, str]:
    """The subject's attributes, its text for people, and what cannot be read of it."""
    try:
        attributes = attributes_of(fields.subject)
    except DerError as error:
        name = common_name(certificate)
        shown = f"{f'CN={name} ' if name else ''}(not read: the subject {error})"
        return [], shown, f"its subject {error}"
    return attributes, render(attributes), ""


def _unreadable(subject: list[Attribute], unread: str) -> frozenset[str]:
    kinds = {"cn": COMMON_NAME, "ou": ORGANIZATIONAL_UNIT}
    return frozenset(kind for kind, oid in kinds.items() if unread or has_unreadable(subject, oid))


@lru_cache(maxsize=256)  # the issuers
def _shown(name: bytes) -> str:
    try:
        return render(attributes_of(name))
    except DerError as error:
        return f"(unreadable: {error})"


_NO_ALT_NAMES = AltNames(skipped=frozenset(("san_dns", "san_uri", "ip", "email")))


def _alt_names(fields: Fields) -> tuple[AltNames, str]:
    if fields.extensions is None:
        return _NO_ALT_NAMES, "its extensions cannot be read"
    found = [each.value for each in fields.extensions if each.oid == SUBJECT_ALT_NAME]
    if not found:
        return AltNames(), ""
    if len(found) > 1:
        return _NO_ALT_NAMES, "it has several subjectAltName extensions"
    try:
        return alt_names_of(found[0]), ""
    except DerError as error:
        return _NO_ALT_NAMES, f"its subjectAltName {error}"


class AccessRules(Protocol):
    """A route's `allow` and `deny`; see `tls.access_rules`."""

    def allow(self, who: Identity) -> bool: ...  # noqa: D102
    def why_not(self, who: Identity) -> str: ...  # noqa: D102


class ClientRules(Protocol):
    """What a route requires of its clients.

    `ca_valid_until` maps the subject (DER) of every trusted CA to the time until which
    it and its issuers are valid.
    """

    @property
    def rules(self) -> AccessRules: ...  # noqa: D102
    @property
    def ca_valid_until(self) -> Mapping[bytes, float]: ...  # noqa: D102


def admit(who: Identity | None, trust: ClientRules, now_at: float) -> Failure | None:
    """Why the route does not admit a client, after a full or a resumed handshake.

    None admits it.
    """
    if who is None:
        return Failure(Reason.NO_CERTIFICATE)
    if now_at > who.not_after_at:
        return Failure(Reason.EXPIRED, "certificate has expired")
    if now_at < who.not_before_at:
        return Failure(Reason.NOT_YET_VALID, "certificate is not yet valid")
    if now_at > trust.ca_valid_until.get(who.issuer_der, now_at):
        return Failure(Reason.EXPIRED, "the CA that issued the certificate has expired")
    if not trust.rules.allow(who):
        return Failure(Reason.NOT_ALLOWED, trust.rules.why_not(who))
    return None
