"""One certificate of a configured file, as OpenSSL parsed it.

Every certificate that OpenSSL verifies has its names, dates, serial number, key and
extensions here, even if cryptography refuses to parse it.

Never: decides what a certificate may be used for (that is `tls.certificates.extensions`
and `tls.certificates.openssl`).
"""

from __future__ import annotations

import warnings
from collections import Counter
from datetime import UTC, datetime
from functools import cached_property
from typing import NamedTuple

from cryptography import x509

from relay.core.untrusted import clip
from relay.tls.certificates.der import OID, SEQUENCE, DerError, Fields, dotted, inside, read
from relay.tls.certificates.names import (
    SUBJECT_ALT_NAME,
    AltNames,
    alt_names_of,
    attributes_of,
    render,
    serial_text,
    unix_time,
)
from relay.tls.certificates.x509_fields import fields_of, key_bits, openssl_error_text, to_der
from relay.tls.raw import NULL, Pointer, ffi, lib


class Key(NamedTuple):
    """A public key: the OIDs of its algorithm and its curve, and its size.

    `bits` is 0 if OpenSSL cannot read the key.
    """

    algorithm: str
    curve: str
    bits: int


class Name:
    """A subject or an issuer; two are equal if OpenSSL considers them equal.

    String types, case and repeated spaces do not matter (RFC 5280, 7.1).
    """

    __slots__ = ("_der", "_key")

    def __init__(self, der: bytes) -> None:
        self._der = der
        self._key: object = None

    def public_bytes(self) -> bytes:
        """The name's DER."""
        return self._der

    def rfc4514_string(self) -> str:
        """The name for people, clipped to one line."""
        try:
            return render(attributes_of(self._der))
        except DerError as error:
            return f"(unreadable: {error})"

    @property
    def key(self) -> object:
        """A value that is equal for equal names."""
        if self._key is None:
            try:
                self._key = tuple(
                    (each.rdn, each.oid, _folded(each.value, each.raw))
                    for each in attributes_of(self._der)
                )
            except DerError:
                self._key = self._der
        return self._key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Name) and (self._der == other._der or self.key == other.key)

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"Name({self.rfc4514_string()!r})"


class Certificate:
    """A certificate of a configured file; two are equal if their bytes are.

    `of` raises ValueError if the dates cannot be read: no peer accepts such a
    certificate.
    """

    def __init__(self, pointer: Pointer, der: bytes, fields: Fields) -> None:
        self.pointer = pointer  # an X509 *, freed with this object
        self.der = der
        self._fields = fields
        self.subject = Name(fields.subject)
        self.issuer = Name(fields.issuer)
        self.not_valid_before_utc = _instant(*fields.not_before)
        self.not_valid_after_utc = _instant(*fields.not_after)

    @classmethod
    def of(cls, pointer: Pointer) -> Certificate:
        """From an `X509 *`; the new object owns it. Raises ValueError."""
        owned = ffi.gc(pointer, lib.X509_free)
        der = to_der(owned)
        return cls(owned, der, fields_of(owned, der))

    @classmethod
    def from_der(cls, der: bytes) -> Certificate:
        """Parse a certificate. Raises ValueError with OpenSSL's error text."""
        lib.ERR_clear_error()
        bio = lib.BIO_new_mem_buf(ffi.from_buffer(der), len(der))
        try:
            pointer = lib.d2i_X509_bio(bio, NULL)
            if pointer == NULL:
                raise ValueError(openssl_error_text())
            return cls.of(pointer)
        finally:
            lib.BIO_free(bio)
            lib.ERR_clear_error()

    @cached_property
    def as_cryptography(self) -> x509.Certificate | None:
        """The certificate as cryptography's object; None if it refuses to parse it."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about harmless violations of RFC 5280
                return x509.load_der_x509_certificate(self.der)
        except Exception:  # noqa: BLE001 (cryptography does not document them all)
            return None

    @property
    def serial(self) -> bytes:
        """The serial number, as the DER of the INTEGER contains it."""
        return self._fields.serial

    @property
    def serial_text(self) -> str:
        """The serial number as `openssl x509 -serial` prints it."""
        return serial_text(self._fields.serial)

    @property
    def version(self) -> int:
        """1 to 3; OpenSSL also accepts 4."""
        return self._fields.version

    @property
    def spki(self) -> bytes:
        """The SubjectPublicKeyInfo, DER."""
        return self._fields.spki

    @property
    def signature_algorithm(self) -> str:
        """The OID of the signature algorithm; "" if it cannot be read."""
        return algorithm_of(self._fields.signature)[0]

    @property
    def readable(self) -> bool:
        """Whether the list of extensions can be read."""
        return self._fields.extensions is not None

    def extension(self, oid: bytes) -> bytes | None:
        """The value of an extension; None if it is missing, repeated or unreadable."""
        found = [each.value for each in self._fields.extensions or () if each.oid == oid]
        return found[0] if len(found) == 1 else None

    def has_extension(self, oid: bytes) -> bool:
        """Whether the extension is present at least once."""
        return any(each.oid == oid for each in self._fields.extensions or ())

    def repeated_extensions(self) -> list[str]:
        """The OIDs of extensions that are present more than once."""
        counts = Counter(each.oid for each in self._fields.extensions or ())
        return [dotted(oid) for oid, count in counts.items() if count > 1]

    @cached_property
    def alt_names(self) -> AltNames | None:
        """The subject alternative names; None if they are missing or malformed."""
        value = self.extension(SUBJECT_ALT_NAME)
        try:
            return None if value is None else alt_names_of(value)
        except DerError:
            return None

    @cached_property
    def key(self) -> Key:
        """The kind and size of the public key."""
        algorithm, curve = _key_kind(self.spki)
        return Key(algorithm, curve, key_bits(self.pointer))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Certificate) and self.der == other.der

    def __hash__(self) -> int:
        return hash(self.der)

    def __repr__(self) -> str:
        return f"Certificate({self.subject.rfc4514_string()!r})"


def subject_of(certificate: Certificate) -> str:
    """The subject for people; it may be empty (RFC 5280, 4.1.2.6)."""
    return certificate.subject.rfc4514_string() or "(no subject)"


def names_issuer(certificate: Certificate, issuer: Certificate) -> bool:
    """Whether the names match, ignoring case (RFC 5280, 7.1)."""
    wanted = lib.X509_get_issuer_name(certificate.pointer)
    return bool(lib.X509_NAME_cmp(wanted, lib.X509_get_subject_name(issuer.pointer)) == 0)


def algorithm_of(identifier: bytes) -> tuple[str, str]:
    """The OID of an AlgorithmIdentifier, and its parameter if that is an OID too."""
    try:
        parts = inside(identifier, SEQUENCE, 2)
    except DerError:
        return "", ""
    oids = [dotted(identifier[each.start : each.stop]) for each in parts if each.tag == OID]
    return (oids[0] if oids else ""), (oids[1] if len(oids) > 1 else "")


def _key_kind(spki: bytes) -> tuple[str, str]:
    try:
        start = read(spki, 0, len(spki)).start
        return algorithm_of(spki[start : read(spki, start, len(spki)).after])
    except DerError:
        return "", ""


def _folded(value: str | None, raw: bytes) -> object:
    return raw if value is None else " ".join(value.lower().split())


def _instant(tag: int, text: bytes) -> datetime:
    at = unix_time(tag, text)
    if at is None:
        shown = clip(text.decode("latin-1"), 40)
        raise ValueError(f"its validity has a date in a format that no TLS peer accepts: {shown}")
    return datetime.fromtimestamp(at, UTC)
