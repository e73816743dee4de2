"""Reads revocation lists, and finds the CA that signed each one.

A list that cannot be used is refused with a reason. It is never ignored: somebody that
it revokes would be admitted.

Never: decides which of several lists counts (that is `tls.revocation.selection`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from relay.credentials import shown
from relay.errors import Problem
from relay.files import Files
from relay.tls.certificates.certificate import Certificate, Name
from relay.tls.certificates.der import SEQUENCE, DerError, Extension, dotted, inside
from relay.tls.certificates.extension_values import KEY_USAGE, usages_in
from relay.tls.certificates.findings import day, quoted
from relay.tls.certificates.names import unix_time
from relay.tls.certificates.pem_blocks import Block, read_blocks
from relay.tls.revocation.distribution_points import Scope, read_issuing_point
from relay.tls.revocation.fields import (
    CrlError,
    CrlFields,
    RevokedEntry,
    integer,
    read_entries,
    read_fields,
)
from relay.tls.revocation.signatures import check_algorithm, is_signed_with

MAX_LIST_BYTES = 64 * 1024 * 1024
# A list may be signed on a machine whose clock is ahead of this one's.
FUTURE_S = 300

_NUMBER, _DELTA, _SCOPE = (bytes.fromhex(oid) for oid in ("551d14", "551d1b", "551d1c"))
_AUTHORITY_KEY, _SUBJECT_KEY = bytes.fromhex("551d23"), bytes.fromhex("551d0e")
_NEXT_PUBLISH = bytes.fromhex("2b0601040182371504")
_KNOWN = frozenset((_NUMBER, _DELTA, _SCOPE, _AUTHORITY_KEY))
_CRL_LABEL = "X509 CRL"
_FETCH_AGAIN = "get the list from the CA again, as a DER or PEM file"


@dataclass(frozen=True, slots=True)
class RevocationList:
    """One list whose signature is not verified yet.

    `source` says where it is from. Times are Unix time; without `next_update` it does
    not expire. With `base_number` it is a delta: it has only the changes since the
    complete list of that number.
    """

    source: str
    der: bytes = field(repr=False)
    fields: CrlFields = field(repr=False)
    issuer: Name
    number: int | None
    base_number: int | None
    scope: Scope
    authority_key: bytes | None
    next_publish: float | None
    """When the CA intends to publish the next one (a Microsoft extension)."""

    @property
    def this_update(self) -> float:
        """When it was issued."""
        return self.fields.this_update

    @property
    def next_update(self) -> float | None:
        """When the next one is due: the list has expired then."""
        return self.fields.next_update

    def __str__(self) -> str:
        """For messages."""
        kind = "delta CRL" if self.base_number is not None else "CRL"
        number = "" if self.number is None else f" {self.number}"
        return f"{kind}{number} of {quoted(self.issuer.rfc4514_string())} in {self.source}"


def read_lists(
    where: str, file: Path, problems: list[Problem], files: Files
) -> list[RevocationList]:
    """The lists of a PEM or DER file. Adds to `problems` what is wrong."""
    try:
        data, _ = files.read(file, MAX_LIST_BYTES)
        files.leave_out(file, MAX_LIST_BYTES)  # other processes get the revoked set
    except OSError as error:
        what = f"{shown(file)} cannot be read: {error.strerror}"
        remedy = "give the path of a revocation list that the user who starts the relay may read"
        problems.append(Problem(where, what, remedy))
        return []
    return parse_lists(where, shown(file), data, problems)


def parse_lists(
    where: str, source: str, data: bytes, problems: list[Problem]
) -> list[RevocationList]:
    """The lists in the bytes of a PEM or DER file. Adds to `problems` what is wrong."""
    found: list[RevocationList] = []
    try:
        encoded = _encoded_lists(data)
    except CrlError as error:
        problems.append(Problem(where, f"{source} {error.what}", error.remedy))
        return []
    for number, (der, fault) in enumerate(encoded, 1):
        name = source if len(encoded) == 1 else f"{source} (list {number})"
        try:
            if fault:
                raise CrlError(fault, _FETCH_AGAIN)
            found.append(parse_list(name, der))
        except CrlError as error:
            problems.append(Problem(where, f"{name} {error.what}", error.remedy))
    return found


def parse_list(source: str, der: bytes) -> RevocationList:
    """One list in DER. Raises CrlError if the relay cannot use such a list."""
    try:
        fields = read_fields(der)
        extensions = _unique(fields.extensions)
        number, base = (
            None if (value := extensions.get(oid)) is None else integer(value)
            for oid in (_NUMBER, _DELTA)
        )
        scope = extensions.get(_SCOPE)
        point = None if scope is None else read_issuing_point(scope)
        key = extensions.get(_AUTHORITY_KEY)
        authority_key = None if key is None else _key_in(key)
    except DerError as error:
        raise CrlError(
            f"is not a revocation list that can be read: it {error}", _FETCH_AGAIN
        ) from None
    for each in fields.extensions:
        if each.critical and each.oid not in _KNOWN:
            raise CrlError(
                f"has a critical extension that the relay does not know: {dotted(each.oid)}",
                "have the CA issue the list without it",
            )
    if point is not None and point.refused:
        remedy = "use a complete list that the CA signs for its own certificates"
        raise CrlError(f"cannot be used: it {point.refused}", remedy)
    check_algorithm(fields.algorithm)
    if base is not None and number is None:
        raise CrlError("is a delta without a number (cRLNumber)", _FETCH_AGAIN)
    return RevocationList(
        source,
        der,
        fields,
        Name(fields.issuer),
        number,
        base,
        Scope() if point is None else point.scope,
        authority_key,
        _next_publish(extensions),
    )


def check_date(crl: RevocationList, now_at: float) -> None:
    """Raise CrlError if a list was issued in the future."""
    if crl.this_update > now_at + FUTURE_S:
        raise CrlError(
            f"{crl} was issued in the future, at {at_text(crl.this_update)}",
            "compare this machine's clock with the CA's",
        )


def entries_of(crl: RevocationList) -> Iterator[RevokedEntry]:
    """The entries of a list. Raises CrlError if one of them cannot be used."""
    try:
        yield from read_entries(crl.der, crl.fields.entries)
    except DerError as error:
        raise CrlError(f"{crl} cannot be used: it {error}", _FETCH_AGAIN) from None
    except CrlError as error:
        raise CrlError(f"{crl} {error.what}", error.remedy) from None


def find_signer(crl: RevocationList, cas: Iterable[Certificate]) -> Certificate:
    """The CA that signed the list. Raises CrlError if none of them did, or may."""
    namesakes = [each for each in cas if each.subject == crl.issuer]
    if not namesakes:
        raise CrlError(
            f"{crl} belongs to no CA that is trusted here",
            "remove it, or add its CA to the CA file",
        )
    alike = [each for each in namesakes if _may_have_key(each, crl.authority_key)]
    signed = crl.der[slice(*crl.fields.signed)]
    tried: dict[bytes, bool] = {}
    for each in alike:
        if each.spki not in tried:
            tried[each.spki] = is_signed_with(
                each.spki, crl.fields.algorithm, crl.fields.signature, signed
            )
    signers = [each for each in alike if tried[each.spki]]
    if not signers:
        why = (
            "its signature does not verify with the CA's key"
            if alike
            else "its authority key identifier is not that of the CA's key"
        )
        raise CrlError(
            f"{crl} was not signed by this CA: {why}",
            "get the list from the CA again; if it comes from another CA of the same name,"
            " add that CA's certificate to the CA file",
        )
    for each in signers:
        if _may_sign(each):
            return each
    raise CrlError(
        f"{crl} was signed by a CA whose keyUsage lacks cRLSign",
        "reissue the CA's certificate with keyUsage cRLSign",
    )


def key_id(spki: bytes) -> bytes:
    """The id of an issuer's key: the SHA-256 of its SubjectPublicKeyInfo."""
    return hashlib.sha256(spki).digest()


def at_text(at: float) -> str:
    """A time for people."""
    return day(datetime.fromtimestamp(at, UTC))


def _encoded_lists(data: bytes) -> list[tuple[bytes, str]]:
    """The DER of each list of a file, or why there is none."""
    if len(data) > MAX_LIST_BYTES:
        raise CrlError(
            f"is larger than {MAX_LIST_BYTES // 1024 // 1024} MiB",
            "have the CA split its list by distribution points, or drop expired certificates",
        )
    if data[:1] == b"\x30":
        return [(data, "")]
    blocks = read_blocks(data)
    lists = [block for block in blocks if block.label == _CRL_LABEL]
    if lists:
        return [(block.data, block.fault) for block in lists]
    raise CrlError(f"has no revocation list in it: {_describe(data, blocks)}", _FETCH_AGAIN)


def _describe(data: bytes, blocks: list[Block]) -> str:
    if not data.strip():
        return "it is empty"
    if blocks:
        return f"it has a block named {blocks[0].label}"
    if data.lstrip(b"\xef\xbb\xbf\r\n\t ")[:1] == b"<":
        return "it looks like an HTML page"
    if data[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        return "it is UTF-16 text"
    # A few of its bytes would help, but a link may lead to a secret file.
    return "it is neither DER nor PEM"


def _unique(extensions: tuple[Extension, ...]) -> dict[bytes, bytes]:
    found = {each.oid: each.value for each in extensions}
    if len(found) != len(extensions):
        raise DerError("has an extension twice")
    return found


def _key_in(value: bytes) -> bytes | None:
    """The key identifier of an authorityKeyIdentifier; None if it has none."""
    for each in inside(value, SEQUENCE, 3):
        if each.tag == 0x80:
            return value[each.start : each.stop]
    return None


def _may_have_key(ca: Certificate, authority_key: bytes | None) -> bool:
    """Whether the key identifiers match, or one of them is missing."""
    own = ca.extension(_SUBJECT_KEY)
    if authority_key is None or own is None:
        return True
    return own[2:] == authority_key  # after tag and length


def _may_sign(ca: Certificate) -> bool:
    value = ca.extension(KEY_USAGE)
    try:
        return value is None or "cRLSign" in usages_in(value)
    except DerError:
        return False


def _next_publish(extensions: dict[bytes, bytes]) -> float | None:
    value = extensions.get(_NEXT_PUBLISH, b"")
    return unix_time(value[0], value[2:]) if len(value) > 2 else None
