"""Which extension of a certificate forbids the use that it was shown for.

OpenSSL has one word for all of them ("unsuitable certificate purpose"), and the operator
needs to know which one to reissue the certificate with.

Never: judges a certificate; OpenSSL has done that before. Raises for what a peer has sent.
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

# For a server, Microsoft's and Netscape's "server gated crypto" count as serverAuth.
_SERVER_USES = frozenset(("serverAuth", "1.3.6.1.4.1.311.10.3.3", "2.16.840.1.113730.4.1"))
_CLIENT_USES = frozenset(("clientAuth",))
_MAX_WORDS = 8
NAME_CHARACTERS = 128  # of one name in a message


def subject_of(der: bytes) -> str:
    """The subject of a certificate for a message; "unreadable" when it has none that is."""
    try:
        return clip(render(attributes_of(read_certificate(der).subject)), NAME_CHARACTERS)
    except DerError:
        return "unreadable"


def forbidding_extension(der: bytes, side: Side, *, issuer: bool) -> str:
    """What forbids the peer of this side, or its issuer, to use the certificate; "" when unknown.

    A certificate that cannot be read gives "": OpenSSL's words have to do.
    """
    try:
        fields = read_certificate(der)
        if fields.extensions is None:
            return ""
        return _issuer_fault(fields, side) if issuer else _leaf_fault(fields, side)
    except DerError:
        return ""


def _leaf_fault(fields: Fields, side: Side) -> str:
    wrong = _extended_fault(fields, side)
    if wrong:
        return wrong
    usage = _value(fields, KEY_USAGE)
    if usage is not None:
        # OpenSSL also takes keyAgreement, and keyEncipherment of a server; no cipher of today
        # can use a certificate without digitalSignature.
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
    words = uses[:_MAX_WORDS]
    if len(uses) > _MAX_WORDS:
        words.append("…")
    lacks = "clientAuth" if side is Side.INBOUND else "serverAuth"
    return f"its extendedKeyUsage ({', '.join(words)}) lacks {lacks}"


def _netscape_fault(fields: Fields) -> str:
    there = _value(fields, NETSCAPE_TYPE) is not None
    return "its nsCertType forbids it; reissue it without this extension" if there else ""


def _value(fields: Fields, oid: bytes) -> bytes | None:
    return next((each.value for each in fields.extensions or () if each.oid == oid), None)
