"""The fields of a certificate that a revocation list is compared with.

Never: decides whether a certificate is revoked (see `tls.revocation.judge`), or raises
because of what a certificate contains.
"""

from __future__ import annotations

from typing import NamedTuple

from relay.tls.certificates.der import SEQUENCE, DerError, Fields, inside
from relay.tls.certificates.extension_values import BASIC_CONSTRAINTS, is_ca_in

AUTHORITY_KEY_ID = bytes.fromhex("551d23")
SUBJECT_KEY_ID = bytes.fromhex("551d0e")
DISTRIBUTION_POINTS = bytes.fromhex("551d1f")
_KEY_IDENTIFIER = 0x80  # the tag of RFC 5280, 4.2.1.1


class RevocationFields(NamedTuple):
    """See the module."""

    subject: bytes = b""
    """The subject, in DER."""
    serial: bytes = b""
    """The contents of the INTEGER."""
    issuer_key_id: bytes = b""
    """The key identifier of the authorityKeyIdentifier; b"" if it is not known."""
    points: bytes = b""
    """The value of cRLDistributionPoints; b"" if there is none."""
    is_ca: bool | None = False
    """Whether it is the certificate of a CA; None if that cannot be read."""


NO_FIELDS = RevocationFields()


def revocation_fields(fields: Fields) -> RevocationFields:
    """Take them from the fields of a certificate."""
    if fields.extensions is None:
        return RevocationFields(fields.subject, fields.serial, is_ca=None)
    values = {each.oid: each.value for each in fields.extensions}
    return RevocationFields(
        fields.subject,
        fields.serial,
        _key_identifier(values.get(AUTHORITY_KEY_ID, b"")),
        values.get(DISTRIBUTION_POINTS, b""),
        _is_ca(values.get(BASIC_CONSTRAINTS, b"")),
    )


def _key_identifier(value: bytes) -> bytes:
    try:
        for part in inside(value, SEQUENCE, 3) if value else ():
            if part.tag == _KEY_IDENTIFIER:
                return value[part.start : part.stop]
    except DerError:
        pass
    return b""


def _is_ca(value: bytes) -> bool | None:
    try:
        return is_ca_in(value) if value else False
    except DerError:
        return None
