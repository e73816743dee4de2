"""Decides whether a certificate, or a CA above it, is revoked.

This runs in every handshake, full and resumed, and for open sessions after a change. A
full handshake has shown the verified chain: each certificate in it is looked up under
the key of the one above, except the last, which is trusted itself. A resumed one has
only the leaf. Its issuer is found among the trusted CAs, because a client whose issuer
is not there gets no ticket. A CA that is revoked is no longer among them, and another
trust generation does not count its tickets.

A certificate that no list covers is refused, unless the policy accepts it. Being on a
list counts even if the list has expired, or covers other certificates.

Never: trusts a name where the key is known; raises because of a certificate.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from relay.dates import minute
from relay.errors import Reason, Side
from relay.tls.certificates.der import DerError
from relay.tls.explain import Failure
from relay.tls.identity import Identity
from relay.tls.revocation.distribution_points import Scope, uris_of
from relay.tls.revocation.revoked_set import Entry, ListInfo, RevokedSet
from relay.tls.trust import CaTrust, CrlPolicy
from relay.tls.verification import Chain

FOREVER, NEVER = float("inf"), float("-inf")
# What is kept of earlier judgements with the same set.
_MOST_PASSED, _MOST_COVERED = 256, 8192


class _Reasons(NamedTuple):
    untrusted: Reason
    revoked: Reason
    missing: Reason
    expired: Reason


_REASONS = {
    Side.INBOUND: _Reasons(
        Reason.UNKNOWN_CA, Reason.REVOKED, Reason.CRL_MISSING, Reason.CRL_EXPIRED
    ),
    Side.OUTBOUND: _Reasons(
        Reason.BACKEND_UNKNOWN_CA,
        Reason.BACKEND_REVOKED,
        Reason.BACKEND_CRL_MISSING,
        Reason.BACKEND_CRL_EXPIRED,
    ),
}


class Trust(Protocol):
    """What a `ClientTrust` and a `BackendTrust` have in common."""

    @property
    def cas(self) -> CaTrust: ...  # noqa: D102
    @property
    def crl(self) -> CrlPolicy | None: ...  # noqa: D102


def why_revoked(
    side: Side,
    who: Identity,
    chain: Chain,
    trust: Trust,
    revoked: RevokedSet | None,
    now_at: float,
) -> Failure | None:
    """Why this peer is refused; None if it is not.

    `chain` are the certificates above `who` that a full handshake has verified, or ()
    after a resumed one. Without a set, no list covers anything.
    """
    policy = trust.crl
    if policy is None:
        return None
    if not chain:
        return _judge_leaf(side, who, trust.cas, policy, revoked, now_at)
    if chain[-1].spki_sha256 not in trust.cas.key_ids:
        return _untrusted(side, chain[-1], trust.cas)
    found = _judge(side, who, 0, chain[0].spki_sha256, policy, revoked, now_at)
    if isinstance(found, Failure):
        return found
    return None if len(chain) == 1 else _judge_above(side, chain, policy, revoked, now_at)


def why_revoked_since(
    side: Side, who: Identity, chain: Chain, cas: CaTrust, revoked: RevokedSet | None
) -> Failure | None:
    """Why a peer that was admitted earlier is revoked now.

    A list that is missing or has expired meanwhile ends no session: it cannot show that
    anything is wrong with the peer. It keeps new ones out.
    """
    if revoked is None:
        return None
    fields = who.for_lists
    if chain:
        keys: tuple[bytes, ...] = (chain[0].spki_sha256,)
    else:
        keys = cas.issuers_of(who.issuer_der, fields.issuer_key_id)
    for key in keys:
        entry = revoked.find(key, fields.serial)
        if entry is not None:
            return _revoked(side, who, 0, entry)
    for depth in range(1, len(chain)):
        each = chain[depth - 1]
        entry = revoked.find(chain[depth].spki_sha256, each.for_lists.serial)
        if entry is not None:
            return _revoked(side, each, depth, entry)
    return None


def _judge_leaf(
    side: Side,
    who: Identity,
    cas: CaTrust,
    policy: CrlPolicy,
    revoked: RevokedSet | None,
    now_at: float,
) -> Failure | None:
    """Look a leaf up under every key that may have signed it."""
    keys = cas.issuers_of(who.issuer_der, who.for_lists.issuer_key_id)
    for key in keys:
        found = _judge(side, who, 0, key, policy, revoked, now_at)
        if isinstance(found, Failure):
            return found
    if keys or policy.accepts_missing:
        return None
    detail = f'the CA that issued it, "{who.issuer}", is not trusted here, so no list covers it'
    return Failure(_REASONS[side].missing, detail)


def _judge_above(
    side: Side, chain: Chain, policy: CrlPolicy, revoked: RevokedSet | None, now_at: float
) -> Failure | None:
    """Look the CAs above a leaf up, except the last: many leaves have the same ones."""
    passed = None if revoked is None else revoked.passed.get(chain[0].fingerprint)
    if passed is not None and now_at <= passed[2] and passed[0] == chain and passed[1] == policy:
        return None
    until_at = FOREVER
    for depth, each in enumerate(chain[:-1], 1):
        found = _judge(side, each, depth, chain[depth].spki_sha256, policy, revoked, now_at)
        if isinstance(found, Failure):
            return found
        until_at = min(until_at, found)
    if revoked is not None:
        if len(revoked.passed) >= _MOST_PASSED:
            revoked.passed.clear()
        revoked.passed[chain[0].fingerprint] = (chain, policy, until_at)
    return None


def _judge(
    side: Side,
    who: Identity,
    depth: int,
    issuer_key: bytes,
    policy: CrlPolicy,
    revoked: RevokedSet | None,
    now_at: float,
) -> Failure | float:
    """Look one certificate up under the key of its issuer.

    Returns until when it passes, if it does and the set stays the same.
    """
    covered_until_at = NEVER
    if revoked is not None:
        entry = revoked.find(issuer_key, who.for_lists.serial)
        if entry is not None:
            return _revoked(side, who, depth, entry)
        end_at = revoked.ends.get(issuer_key)
        covered_until_at = _covered_until(revoked, who, issuer_key) if end_at is None else end_at
    until_at = covered_until_at + policy.grace_s
    if now_at <= until_at:
        return until_at
    lists = () if revoked is None else _lists_of(revoked, who, issuer_key)
    if covered_until_at != NEVER:
        return _expired(side, who, depth, lists, now_at)
    return FOREVER if policy.accepts_missing else _missing(side, who, depth, lists)


def _covered_until(revoked: RevokedSet, who: Identity, issuer_key: bytes) -> float:
    """Until when a list covers a certificate; NEVER if none does."""
    key = who.fingerprint, issuer_key
    until_at = revoked.covered.get(key)
    if until_at is None:
        covering = _covering(_lists_of(revoked, who, issuer_key), who)
        until_at = max((each.ends_at for each in covering), default=NEVER)
        if len(revoked.covered) >= _MOST_COVERED:
            revoked.covered.clear()
        revoked.covered[key] = until_at
    return until_at


def _lists_of(revoked: RevokedSet, who: Identity, issuer_key: bytes) -> tuple[ListInfo, ...]:
    """The lists of a certificate's issuer, by its key, and by its name if need be."""
    lists = revoked.lists_of(issuer_key)
    return tuple(each for each in lists if not each.shares_key or each.issuer == who.issuer)


def _covering(lists: tuple[ListInfo, ...], who: Identity) -> list[ListInfo]:
    """The lists whose scope has a certificate."""
    is_ca = who.for_lists.is_ca
    if is_ca is None:  # it cannot be read: only complete lists have it for certain
        return [each for each in lists if each.scope == Scope()]
    uris = _uris_of(who)
    return [each for each in lists if each.scope.covers(is_ca=is_ca, uris=uris)]


def _uris_of(who: Identity) -> tuple[str, ...]:
    points = who.for_lists.points
    try:
        return uris_of(points) if points else ()
    except DerError:
        return ()


# Sentences.


def _untrusted(side: Side, end: Identity, cas: CaTrust) -> Failure:
    """The chain ends at a CA that does not count any more."""
    what = f'the CA "{end.subject}", where its chain ends, is'
    if end.spki_sha256 in cas.revoked_ids:
        # A list of the CA above it has it: with partial_chain the chain ends before.
        return Failure(_REASONS[side].revoked, f"{what} revoked itself")
    return Failure(_REASONS[side].untrusted, f"{what} no longer trusted")


def _revoked(side: Side, who: Identity, depth: int, entry: Entry) -> Failure:
    detail = f"{entry.sentence}, {_next_update(entry.source)}"
    return Failure(_REASONS[side].revoked, _which(who, depth) + detail)


def _which(who: Identity, depth: int) -> str:
    return f'its issuer "{who.subject}" (certificate {depth} of its chain) is ' if depth else ""


def _next_update(each: ListInfo) -> str:
    return (
        "no next update" if each.next_update is None else f"next update {minute(each.next_update)}"
    )


def _missing(side: Side, who: Identity, depth: int, lists: tuple[ListInfo, ...]) -> Failure:
    what = f'the certificate "{who.subject}" (number {depth} of its chain)' if depth else "it"
    if not lists:
        detail = f'there is no revocation list of "{who.issuer}", which issued {what}'
        return Failure(_REASONS[side].missing, detail)
    named = ", ".join(_uris_of(who)[:2])
    scopes = "; ".join(f"{each.name}: {each.scope}" for each in lists[:2])
    detail = (
        f"no revocation list covers {what}: its distribution points are {named or 'none'},"
        f" and the lists of its issuer have only a part ({scopes})"
    )
    return Failure(_REASONS[side].missing, detail)


def _expired(
    side: Side, who: Identity, depth: int, lists: tuple[ListInfo, ...], now_at: float
) -> Failure:
    newest = max(_covering(lists, who), key=lambda each: each.ends_at)
    ended_at = newest.ends_at
    hours = int((now_at - ended_at) // 3600)
    ago = f"{hours // 24} days" if hours >= 48 else f"{hours} hours"
    what = f' for the certificate "{who.subject}" (number {depth} of its chain)' if depth else ""
    detail = f"{newest.name}{what} has expired {minute(ended_at)}, {ago} ago"
    return Failure(_REASONS[side].expired, detail)
