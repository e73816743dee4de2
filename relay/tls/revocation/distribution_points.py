"""Distribution points: which certificates a revocation list covers (RFC 5280).

A CA with many certificates may split its list. Each part, a shard, then names its
distribution point, and covers only the certificates that name the same one.

Never: fetches anything, or raises anything but DerError.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relay.tls.certificates.der import SEQUENCE, DerError, Element, children, inside, read

_MOST_POINTS, _MOST_NAMES = 64, 64
# Context tags: of a DistributionPoint, a DistributionPointName and a GeneralName.
_POINT_NAME, _REASONS, _CRL_ISSUER = 0xA0, 0x81, 0xA2
_FULL_NAME, _RELATIVE_NAME = 0xA0, 0xA1
_URI = 0x86
# Context tags of an IssuingDistributionPoint.
_ONLY_USERS, _ONLY_CAS, _SOME_REASONS, _INDIRECT, _ONLY_ATTRIBUTES = 0x81, 0x82, 0x83, 0x84, 0x85


@dataclass(frozen=True, slots=True)
class Scope:
    """The certificates of an issuer that one list covers.

    With `uris` the list is a shard. `only` is "user" (no CA certificates), "ca" (only
    CA certificates) or "" (all).
    """

    uris: tuple[str, ...] = ()
    only: str = ""

    def covers(self, *, is_ca: bool, uris: Sequence[str]) -> bool:
        """Whether a certificate with these distribution points is in the scope."""
        if self.only and is_ca is not (self.only == "ca"):
            return False
        return not self.uris or any(uri in self.uris for uri in uris)

    def is_covered_by(self, others: Sequence[Scope]) -> bool:
        """Whether others, shards or not, are about its kinds of certificates."""
        kinds = (self.only,) if self.only else ("user", "ca")
        return all(any(other.only in {"", kind} for other in others) for kind in kinds)

    def __str__(self) -> str:
        """For people; "" for a complete list."""
        shard = f"the certificates of {self.uris[0]}" if self.uris else ""
        kind = {"user": "no CA certificates", "ca": "only CA certificates"}.get(self.only, "")
        return ", ".join(filter(None, (shard, kind)))


@dataclass(frozen=True, slots=True)
class IssuingPoint:
    """A list's issuingDistributionPoint. `refused` says why it cannot be used."""

    scope: Scope
    refused: str = ""


def uris_of(value: bytes) -> tuple[str, ...]:
    """The URIs in a certificate's cRLDistributionPoints. Raises DerError.

    A point for some reasons only, or with a list from another issuer, does not count:
    the relay uses no such list.
    """
    found: list[str] = []
    for point in inside(value, SEQUENCE, _MOST_POINTS):
        parts = {each.tag: each for each in children(value, point.start, point.stop, 3)}
        if point.tag != SEQUENCE:
            raise DerError("has a malformed distribution point")
        if _POINT_NAME in parts and not parts.keys() & {_REASONS, _CRL_ISSUER}:
            found += _uris_in(value, parts[_POINT_NAME])
    return tuple(dict.fromkeys(found))


def read_issuing_point(value: bytes) -> IssuingPoint:
    """Decode an issuingDistributionPoint. Raises DerError."""
    parts = {each.tag: each for each in inside(value, SEQUENCE, 6)}
    allowed = {_POINT_NAME, _ONLY_USERS, _ONLY_CAS, _SOME_REASONS, _INDIRECT, _ONLY_ATTRIBUTES}
    if parts.keys() - allowed:
        raise DerError("has a malformed issuingDistributionPoint")
    flags = {tag for tag, each in parts.items() if any(value[each.start : each.stop])}
    if _INDIRECT in flags:
        return IssuingPoint(Scope(), "is an indirect list, which has certificates of other CAs")
    if _ONLY_ATTRIBUTES in flags:
        return IssuingPoint(Scope(), "is only about attribute certificates")
    if _SOME_REASONS in parts:
        return IssuingPoint(Scope(), "is only about some reasons for a revocation")
    if flags >= {_ONLY_USERS, _ONLY_CAS}:
        return IssuingPoint(Scope(), "excludes CA certificates and all others, too")
    only = "user" if _ONLY_USERS in flags else "ca" if _ONLY_CAS in flags else ""
    if _POINT_NAME not in parts:
        return IssuingPoint(Scope(only=only))
    uris = _uris_in(value, parts[_POINT_NAME])
    if not uris:
        return IssuingPoint(Scope(), "names its distribution point in another way than by a URI")
    return IssuingPoint(Scope(tuple(uris), only))


def _uris_in(value: bytes, name: Element) -> list[str]:
    choice = read(value, name.start, name.stop)
    if choice.tag == _RELATIVE_NAME:
        return []
    if choice.tag != _FULL_NAME:
        raise DerError("has a malformed distribution point")
    names = children(value, choice.start, choice.stop, _MOST_NAMES)
    return [
        value[each.start : each.stop].decode("ascii")
        for each in names
        if each.tag == _URI and value[each.start : each.stop].isascii()
    ]
