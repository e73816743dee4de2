"""Reads and verifies the lists of trust sets, and builds their revoked certificates.

It runs in the child that inspects the configuration: a list of a million entries takes
3 s of CPU. Each file is read and each list is packed once, for all sets.

Never: decides whether a start goes on (that is `tls.revocation.lint_lists`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from relay.errors import Problem
from relay.files import Files
from relay.tls.certificates.certificate import Certificate
from relay.tls.revocation.crl import (
    FUTURE_S,
    MAX_LIST_BYTES,
    RevocationList,
    entries_of,
    find_signer,
    read_lists,
)
from relay.tls.revocation.fetched import FetchedLists, learned_issuers
from relay.tls.revocation.fields import CrlError
from relay.tls.revocation.revoked_set import MOST_LISTS, ListInfo, Packed, RevokedSet, build, pack
from relay.tls.revocation.selection import Accepted, Key, select
from relay.tls.revocation.trust_sets import TrustSet


@dataclass(frozen=True, slots=True)
class BuiltSet:
    """The revoked certificates of a set, and what was found on the way.

    With `errors` it must not be used, unless it `is_partial`: then it has newer lists,
    and for the bad ones what is in use. `unused` are lists that do no harm.
    """

    buffer: bytes
    lists: tuple[ListInfo, ...]
    errors: tuple[Problem, ...] = ()
    unused: tuple[Problem, ...] = ()
    is_partial: bool = False


class SetBuilder:
    """Builds sets at one time (Unix time), from these files."""

    def __init__(self, now_at: float, files: Files) -> None:
        self._now_at = now_at
        self._files = files
        self._read_lists: dict[Path, tuple[list[RevocationList], list[Problem]]] = {}
        self._packed: dict[tuple[int, bytes], Packed] = {}

    def build(
        self,
        trust_set: TrustSet,
        cas: Iterable[Certificate],
        fetched: FetchedLists | None = None,
        accepted: Mapping[Key, Accepted] | None = None,
        in_use: RevokedSet | None = None,
    ) -> BuiltSet:
        """Build a set.

        Of `fetched`, what is missing or unusable does not count. `accepted` is what the
        set in use has, or give it as `in_use`: then the set may be partial.
        """
        use = trust_set.uses[0]
        cas, fetched = tuple(cas), fetched or FetchedLists()
        issuers = learned_issuers(cas, fetched.issuers)
        errors: list[Problem] = []
        unused: list[Problem] = []
        lists: list[RevocationList] = []
        fetched_lists: list[RevocationList] = []
        for index, file in enumerate(trust_set.files):
            found, problems = self._read(file)
            lists += found
            where = f"{use.files_where}[{index}]"
            errors += [replace(problem, where=where) for problem in problems]
        for file, url in fetched.files.items():
            found, problems = self._read_fetched(file, url)
            fetched_lists += found
            unused += [replace(problem, where=use.where) for problem in problems]
        for file, url in fetched.learned.items():
            # Most of them may be of another trust set, which is not worth a word.
            found, _ = self._read_fetched(file, url)
            fetched_lists += [one for one in found if _is_signed(one, (*cas, *issuers))]
        self._forget_early(fetched_lists, fetched)
        selection = select(
            lists,
            cas,
            self._now_at,
            self._pack,
            accepted,
            fetched=_unlike(fetched_lists, lists),
            learned=issuers,
            in_use=in_use,
            unread=bool(errors),
        )
        errors += [Problem(use.where, each.what, each.remedy) for each in selection.errors]
        unused += [Problem(use.where, each.what, each.remedy) for each in selection.unused]
        if len(selection.lists) > MOST_LISTS:
            what = f"there are {len(selection.lists)} lists that count, and {MOST_LISTS} fit"
            errors.append(Problem(use.where, what, "have the CAs split their lists less"))
            selection.is_partial = False
        buffer = build(selection.lists if selection.is_partial or not errors else [])
        count = RevokedSet(buffer).lists
        return BuiltSet(buffer, count, tuple(errors), tuple(unused), selection.is_partial)

    def _forget_early(self, lists: Iterable[RevocationList], fetched: FetchedLists) -> None:
        """Let files whose lists do not count yet be read again when they are touched.

        The clock was behind at the start of the relay, and may be right later.
        """
        early = {each.source for each in lists if each.this_update > self._now_at + FUTURE_S}
        for file, url in (*fetched.files.items(), *fetched.learned.items()):
            if url in early:
                self._files.forget(file, MAX_LIST_BYTES)

    def _read_fetched(self, file: Path, url: str) -> tuple[list[RevocationList], list[Problem]]:
        # Not a link: the directory belongs to another user, and a message could show
        # what the link leads to.
        try:
            is_there = file.is_file() and not file.is_symlink()
        except OSError:  # this user may not look into the directory, as with `relay check`
            is_there = False
        return self._read(file, url) if is_there else ([], [])

    def _read(self, file: Path, url: str = "") -> tuple[list[RevocationList], list[Problem]]:
        if file not in self._read_lists:
            problems: list[Problem] = []
            found = read_lists("", file, problems, self._files)
            if url:
                found = [replace(each, source=url) for each in found]
            self._read_lists[file] = found, problems
        return self._read_lists[file]

    def _pack(self, crl: RevocationList, issuer_key: bytes) -> Packed:
        # The lists live as long as this object, so their ids are their own.
        key = id(crl), issuer_key
        if key not in self._packed:
            self._packed[key] = pack(issuer_key, entries_of(crl))
        return self._packed[key]


def _is_signed(crl: RevocationList, cas: Iterable[Certificate]) -> bool:
    try:
        find_signer(crl, cas)
    except CrlError:
        return False
    return True


def _unlike(
    lists: Iterable[RevocationList], others: Iterable[RevocationList]
) -> Iterator[RevocationList]:
    """Each list once, and none that is among the others: URLs may name one list."""
    seen = {each.der for each in others}
    for each in lists:
        if each.der not in seen:
            seen.add(each.der)
            yield each
