"""Who the peer is: the facts of its certificate, and whether a route's rules let it in.

The chain is OpenSSL's business. What OpenSSL does not do on a resumed handshake is judged here, on every handshake:
the dates of the leaf and of the CA that issued it, and the allow rules.

Parsing is remembered by the certificate's SHA-256 (a certificate never changes); verdicts that
depend on the time are not. What is remembered is bounded in number and bytes, and only of
certificates that a trusted CA has signed. A refused certificate is described for the log: above
LARGE_BYTES by size, fingerprint and common name alone, as anybody can make one that is costly
to read.

Names that cannot be read match no rule by name; a rule by fingerprint needs no names.

Never: trusts a certificate that OpenSSL has not verified, now or when the resumed session began.
Next: `relay.worker.outbound.choose`
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from relay.config.model import Allow
from relay.core.untrusted import clip_names
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
    render,
    serial_text,
    unix_time,
    values_of,
)
from relay.tls.certificates.x509_fields import common_name, fields_of, to_der
from relay.tls.explain import Failure
from relay.tls.patterns import UriPattern, dns_pattern
from relay.tls.raw import NULL, Pointer, ffi, lib

LARGE_BYTES = 8192
_REMEMBERED = 4096
_REMEMBERED_BYTES = 16 * 1024 * 1024
_SHA256 = lib.EVP_get_digestbyname(b"sha256")
_digest: Any = ffi.new("unsigned char[32]")
_digest_view = ffi.buffer(_digest, 32)


@dataclass(frozen=True, slots=True)
class Identity:
    """A leaf certificate's facts; instants are Unix time.

    `serial` (as `openssl x509 -serial` prints it) and `fingerprint` are upper-case hex, `subject`
    and `issuer` follow RFC 4514; these three are clipped and for people. The tuples of names are
    exact, for rules. Of a large certificate that was refused there is only `subject`, which
    tells its size and fingerprint, and `fingerprint`.
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
    """The hash of its public key, which may outlive the certificate; b"" when it is unknown."""
    unread: str = ""
    """Which names the certificate has that cannot be read, for people; "" when all can be."""


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
    entries: Iterable[object] = (
        *allow.cn,
        *allow.ou,
        *allow.san_dns,
        *allow.san_uri,
        *allow.fingerprint_sha256,
    )
    return AllowRules(
        frozenset(allow.cn),
        frozenset(allow.ou),
        fingerprints,
        dns,
        uri,
        any_entry=any(True for _ in entries),
    )


_known: dict[bytes, Identity] = {}
_known_bytes = 0


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
    """The facts of an `X509 *`, which stays the caller's.

    Not to be remembered, and not read whole when it is large: a certificate that was not verified.
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
    _known_bytes += (
        1024 + size + 64 * (len(who.cn) + len(who.ou) + len(who.san_dns) + len(who.san_uri))
    )
    if len(_known) >= _REMEMBERED or _known_bytes > _REMEMBERED_BYTES:
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
        # Dates that cannot be read let nobody in; OpenSSL has refused them before.
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
    )


def _or_never(at: float | None, never: float) -> float:
    return never if at is None else at


def _subject(certificate: Pointer, fields: Fields) -> tuple[list[Attribute], str, str]:
    """The subject's attributes, the same for people, and what cannot be read of it."""
    try:
        attributes = attributes_of(fields.subject)
    except DerError as error:
        name = common_name(certificate)
        shown = f"{f'CN={name} ' if name else ''}(not read: the subject {error})"
        return [], shown, f"its subject {error}"
    return attributes, render(attributes), ""


def _shown(name: bytes) -> str:
    try:
        return render(attributes_of(name))
    except DerError as error:
        return f"(unreadable: {error})"


def _alt_names(fields: Fields) -> tuple[AltNames, str]:
    if fields.extensions is None:
        return AltNames(), "its extensions cannot be read"
    found = [each.value for each in fields.extensions if each.oid == SUBJECT_ALT_NAME]
    if not found:
        return AltNames(), ""
    if len(found) > 1:
        return AltNames(), "it has several subjectAltName extensions"
    try:
        return alt_names_of(found[0]), ""
    except DerError as error:
        return AltNames(), f"its subjectAltName {error}"


class ClientRules(Protocol):
    """What a route asks of its clients; `ca_valid_until` maps the subject (DER) of every trusted CA to the end of its and its issuers' validity."""

    @property
    def rules(self) -> AllowRules: ...  # noqa: D102
    @property
    def ca_valid_until(self) -> dict[bytes, float]: ...  # noqa: D102


def admit(who: Identity | None, gate: ClientRules, now_at: float) -> Failure | None:
    """What OpenSSL left to us, on full and resumed handshakes alike; None lets the client in."""
    if who is None:
        return Failure(Reason.NO_CERTIFICATE)
    if now_at > who.not_after_at:
        return Failure(Reason.EXPIRED, "certificate has expired")
    if now_at < who.not_before_at:
        return Failure(Reason.NOT_YET_VALID, "certificate is not yet valid")
    if now_at > gate.ca_valid_until.get(who.issuer_der, now_at):
        return Failure(Reason.EXPIRED, "the CA that issued the certificate has expired")
    if not gate.rules.allow(who):
        names = clip_names((*who.cn, *who.san_dns, *who.san_uri)) + (
            who.unread and f" ({who.unread})"
        )
        return Failure(
            Reason.NOT_ALLOWED,
            f"names in the certificate: {names}; SHA-256 {who.fingerprint}",
        )
    return None
