"""Finds the extension that forbids the use of a peer's certificate.

OpenSSL has one error for all of them ("unsuitable certificate purpose"), but the
operator needs to know which extension to change when reissuing the certificate.

Never: decides whether a certificate is accepted (OpenSSL has already refused it), or
raises because of what a peer sent.
"""

from __future__ import annotations

from relay.core.untrusted import clip
from relay.errors import Side
from relay.tls.certificates.der import DerError, Fields, read_certificate
from relay.tls.certificates.extension_values import (
    BASIC_CONSTRAINTS,
    EXTENDED_KEY_USAGE,
    KEY_USAGE,
    NETSCAPE_TYPE,
    is_ca_in,
    usages_in,
    uses_in,
)
from relay.tls.certificates.names import attributes_of, render

# Microsoft's and Netscape's "server gated crypto" count as serverAuth.
_SERVER_USES = frozenset(("serverAuth", "1.3.6.1.4.1.311.10.3.3", "2.16.840.1.113730.4.1"))
_CLIENT_USES = frozenset(("clientAuth",))
_MAX_USES = 8
NAME_CHARACTERS = 128  # of one name in a message


def subject_in(der: bytes) -> str:
    """The subject of a DER certificate, or "unreadable", for a message."""
    try:
        return clip(render(attributes_of(read_certificate(der).subject)), NAME_CHARACTERS)
    except DerError:
        return "unreadable"


def forbidding_extension(der: bytes, side: Side, *, issuer: bool) -> str:
    """Why the peer of this side may not use the certificate; "" if that is unknown.

    With `issuer`, the certificate is that of the peer's issuer.
    """
    try:
        fields = read_certificate(der)
        if fields.extensions is None:
            return ""
        return _issuer_fault(fields, side) if issuer else _leaf_fault(fields, side)
    except DerError:
        return ""


def _leaf_fault(fields: Fields, side: Side) -> str:
    fault = _extended_fault(fields, side)
    if fault:
        return fault
    usage = _value(fields, KEY_USAGE)
    if usage is not None:
        # OpenSSL also accepts keyAgreement, and keyEncipherment for a server. But no
        # current cipher suite can use a certificate without digitalSignature.
        found = usages_in(usage)
        if "digitalSignature" not in found:
            return f"its keyUsage ({', '.join(found) or 'empty'}) lacks digitalSignature"
    return _netscape_fault(fields)


def _issuer_fault(fields: Fields, side: Side) -> str:
    basic = _value(fields, BASIC_CONSTRAINTS)
    if basic is None:
        return "it is not a CA: it has no basicConstraints"
    if not is_ca_in(basic):
        return "it is not a CA: its basicConstraints say CA:FALSE"
    usage = _value(fields, KEY_USAGE)
    if usage is not None:
        found = usages_in(usage)
        if "keyCertSign" not in found:
            return f"its keyUsage ({', '.join(found) or 'empty'}) lacks keyCertSign"
    return _extended_fault(fields, side) or _netscape_fault(fields)


def _extended_fault(fields: Fields, side: Side) -> str:
    value = _value(fields, EXTENDED_KEY_USAGE)
    if value is None:
        return ""
    uses = uses_in(value)
    needed = _CLIENT_USES if side is Side.INBOUND else _SERVER_USES
    if not needed.isdisjoint(uses):
        return ""
    shown = uses[:_MAX_USES]
    if len(uses) > _MAX_USES:
        shown.append("…")
    lacks = "clientAuth" if side is Side.INBOUND else "serverAuth"
    return f"its extendedKeyUsage ({', '.join(shown)}) lacks {lacks}"


def _netscape_fault(fields: Fields) -> str:
    present = _value(fields, NETSCAPE_TYPE) is not None
    return "its nsCertType forbids it; reissue it without this extension" if present else ""


def _value(fields: Fields, oid: bytes) -> bytes | None:
    return next((each.value for each in fields.extensions or () if each.oid == oid), None)
