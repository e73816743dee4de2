"""Chooses which lists count for the CAs of one trust set, and applies deltas.

For each key of a CA, and each scope, the newest complete list counts, with the newest
delta that fits it. A list that would go back behind the one in use is refused: an old
list is genuine, and lacks the newest revocations. What it would have replaced stays in
use, and the lists of other CAs do not wait.

Never: reads a file, or knows the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from relay.tls.certificates.certificate import Certificate, Name
from relay.tls.certificates.findings import quoted
from relay.tls.revocation.crl import RevocationList, at_text, check_date, find_signer, key_id
from relay.tls.revocation.distribution_points import Scope
from relay.tls.revocation.fields import CrlError
from relay.tls.revocation.revoked_set import ListInfo, Packed, RevokedSet, with_delta

Key = tuple[bytes, str, Scope]
"""The id of the issuer's key, its name, and what the list covers.

A CA that got another name may have kept its key, and each name has its own lists.
"""

Pack = Callable[[RevocationList, bytes], Packed]
"""Packs the entries of a list, for the issuer with this key id. Raises CrlError."""


class Accepted(NamedTuple):
    """The number and the date of the list in use; an older one is refused."""

    number: int | None
    this_update: float
    name: str


@dataclass(slots=True)
class Selection:
    """The lists that count, with their entries, and what was found on the way.

    With `errors` the selection must not be used, unless it `is_partial`: then `lists`
    has newer ones, and for the bad ones what is in use. `unused` lists do no harm.
    """

    lists: list[tuple[ListInfo, Packed]] = field(default_factory=list)
    errors: list[CrlError] = field(default_factory=list)
    unused: list[CrlError] = field(default_factory=list)
    is_partial: bool = False

    @contextmanager
    def noting(self, group: _Group, *, in_use: bool) -> Iterator[None]:
        """Note a CrlError about the lists of a group, of which one may be in use."""
        try:
            yield
        except CrlError as error:
            (self.errors if group.needed or in_use else self.unused).append(error)


@dataclass(slots=True)
class _Group:
    """The lists of one CA key, name and scope."""

    shares_key: bool
    needed: bool = False
    complete: list[RevocationList] = field(default_factory=list)
    deltas: list[RevocationList] = field(default_factory=list)


def accepted_of(lists: Iterable[ListInfo]) -> dict[Key, Accepted]:
    """What a set in use has accepted."""
    return {_key(each): Accepted(each.number, each.this_update, each.name) for each in lists}


def _key(info: ListInfo) -> Key:
    return info.issuer_key, info.issuer, info.scope


def select(
    lists: Iterable[RevocationList],
    cas: Sequence[Certificate],
    now_at: float,
    pack: Pack,
    accepted: Mapping[Key, Accepted] | None = None,
    *,
    fetched: Iterable[RevocationList] = (),
    learned: Sequence[Certificate] = (),
    in_use: RevokedSet | None = None,
    unread: bool = False,
) -> Selection:
    """Choose the lists that count for these CAs.

    A list of `lists` that cannot be used is an error; one of `fetched` is unused. The
    intermediates in `learned` may have signed lists, too. With the set `in_use`, the
    good lists count although others are bad, or `unread`.
    """
    selection = Selection()
    accepted = accepted_of(in_use.lists) if in_use is not None else accepted or {}
    named = {each.subject for each in cas}
    names: dict[bytes, set[Name]] = {}
    for each in (*cas, *learned):
        names.setdefault(key_id(each.spki), set()).add(each.subject)
    groups: dict[Key, _Group] = {}
    every = [(crl, True) for crl in lists] + [(crl, False) for crl in fetched]
    for crl, needed in every:
        try:
            signer = find_signer(crl, (*cas, *learned))
            check_date(crl, now_at)
        except CrlError as error:
            failed = needed and crl.issuer in named
            (selection.errors if failed else selection.unused).append(error)
        else:
            key = (key_id(signer.spki), signer.subject.rfc4514_string(), crl.scope)
            group = groups.setdefault(key, _Group(len(names[key[0]]) > 1))
            group.needed = group.needed or needed
            (group.complete if crl.base_number is None else group.deltas).append(crl)
    chosen: list[tuple[Key, _Group, _Choice]] = []
    for key, group in groups.items():
        with selection.noting(group, in_use=key in accepted):
            choice = _choose(key, group, selection.unused)
            _check_progress(choice.info, accepted.get(key))
            chosen.append((key, group, choice))
    gone = list(_gone([choice.info for _, _, choice in chosen], cas, accepted))
    if not (selection.errors or unread):  # otherwise the reason is known
        selection.errors += [_lost(accepted[key]) for key in gone]
    # Packing is costly, and a bad list is looked at again and again.
    news = in_use is not None and any(_is_newer(each.info, accepted) for _, _, each in chosen)
    for key, group, choice in chosen if news or not (selection.errors or unread) else ():
        with selection.noting(group, in_use=key in accepted):
            selection.lists.append((choice.info, choice.pack(pack)))
    if in_use is not None and (selection.errors or unread):
        selection.is_partial = any(_is_newer(info, accepted) for info, _ in selection.lists)
        _keep(selection, in_use, {*gone, *groups})
    return selection


def _keep(selection: Selection, in_use: RevokedSet, failed: set[Key]) -> None:
    """Add what is in use of those lists of which no successor can be used."""
    failed -= {_key(info) for info, _ in selection.lists}
    kept = {index: info for index, info in enumerate(in_use.lists) if _key(info) in failed}
    packed = in_use.packed(kept)
    selection.lists += [(info, packed[index]) for index, info in kept.items()]


def _is_newer(info: ListInfo, accepted: Mapping[Key, Accepted]) -> bool:
    before = accepted.get(_key(info))
    return before is None or before[:2] != (info.number, info.this_update)


def _gone(
    lists: Iterable[ListInfo],
    cas: Iterable[Certificate],
    accepted: Mapping[Key, Accepted],
) -> Iterator[Key]:
    """The lists that are gone: what they revoke would be forgotten.

    A complete list takes the place of all others of its CA. New scopes do so too if
    they are about the same kind of certificates: the CA may have split its lists in
    another way.
    """
    trusted = {key_id(each.spki) for each in cas}
    found = set(map(_key, lists))
    for key in accepted:
        *issuer, scope = key
        new = [each for *other, each in found - accepted.keys() if other == issuer]
        is_whole = (*key[:2], Scope()) in found or scope.is_covered_by(new)
        if key[0] in trusted and key not in found and not is_whole:
            yield key


def _lost(before: Accepted) -> CrlError:
    return CrlError(
        f"{before.name} is in use, and no list has taken its place",
        "put back the list of this CA",
    )


@dataclass(frozen=True, slots=True)
class _Choice:
    """The lists of a group that count."""

    info: ListInfo
    complete: RevocationList
    delta: RevocationList | None

    def pack(self, pack: Pack) -> Packed:
        """Their entries together."""
        packed = pack(self.complete, self.info.issuer_key)
        if self.delta is None:
            return packed
        return with_delta(packed, pack(self.delta, self.info.issuer_key))


def _choose(key: Key, group: _Group, unused: list[CrlError]) -> _Choice:
    if not group.complete:
        raise CrlError(
            f"{group.deltas[0]} has only changes, and there is no complete list of this CA",
            "add the CA's complete list",
        )
    newest = max(group.complete, key=_age)
    unused += [_superseded(each, newest) for each in group.complete if each is not newest]
    delta = _delta_for(newest, group.deltas, unused)
    info = ListInfo(
        issuer_key=key[0],
        issuer=key[1],
        number=newest.number,
        this_update=newest.this_update,
        next_update=newest.next_update,
        scope=newest.scope,
        source=newest.source,
        shares_key=group.shares_key,
    )
    if delta is not None:
        info = replace(
            info,
            number=delta.number,
            this_update=max(newest.this_update, delta.this_update),
            source=f"{newest.source} and {delta.source}",
            delta=delta.number,
        )
    return _Choice(info, newest, delta)


def _delta_for(
    complete: RevocationList, deltas: list[RevocationList], unused: list[CrlError]
) -> RevocationList | None:
    """The newest delta that adds something to a complete list."""
    newer: list[RevocationList] = []
    for delta in deltas:
        if complete.number is None or delta.number is None or delta.base_number is None:
            raise CrlError(
                f"{delta} cannot be applied: {complete} has no number",
                "have the CA number its lists, or use complete lists alone",
            )
        if delta.base_number > complete.number:
            raise CrlError(
                f"{delta} cannot be applied: it needs the complete list of number"
                f" {delta.base_number} or later, and the newest is {complete}",
                "get the CA's newest complete list",
            )
        if delta.number <= complete.number:
            unused.append(_superseded(delta, complete))
        else:
            newer.append(delta)
    newest = max(newer, key=_age, default=None)
    unused += [_superseded(each, newest) for each in newer if newest and each is not newest]
    return newest


def _age(crl: RevocationList) -> tuple[int, float]:
    return -1 if crl.number is None else crl.number, crl.this_update


def _superseded(crl: RevocationList, newer: RevocationList) -> CrlError:
    return CrlError(f"{crl} is not used: {newer} is newer", "remove the older list")


def _check_progress(info: ListInfo, before: Accepted | None) -> None:
    """Raise CrlError if a list is older than the one in use."""
    if before is None:
        return
    remedy = "find out why the list went back; the newer list stays in use"
    if info.number is not None and before.number is not None and info.number < before.number:
        what = f"the list in use has the number {before.number}"
    elif info.this_update < before.this_update:
        what = (
            f"it was issued on {at_text(info.this_update)}, and the list in use on"
            f" {at_text(before.this_update)}"
        )
    else:
        return
    raise CrlError(
        f"CRL{_number(info)} of {quoted(info.issuer)} in {info.source} is older: {what}", remedy
    )


def _number(info: ListInfo) -> str:
    return "" if info.number is None else f" {info.number}"
