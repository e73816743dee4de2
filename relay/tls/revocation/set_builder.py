"""Reads and verifies the lists of trust sets, and builds their revoked certificates.

It runs in the child that inspects the configuration: a list of a million entries takes
3 s of CPU. Each file is read and each list is packed once, for all sets.

Never: decides whether a start goes on (that is `tls.revocation.lint_lists`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from relay.errors import Problem
from relay.files import Files
from relay.tls.certificates.certificate import Certificate
from relay.tls.revocation.crl import RevocationList, entries_of, read_lists
from relay.tls.revocation.revoked_set import ListInfo, Packed, RevokedSet, build, pack
from relay.tls.revocation.selection import Accepted, Key, select
from relay.tls.revocation.trust_sets import TrustSet

NONE: Mapping[Path, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class BuiltSet:
    """The revoked certificates of a set, and what was found on the way.

    With `errors` it must not be used. `unused` are lists that do no harm.
    """

    buffer: bytes
    lists: tuple[ListInfo, ...]
    errors: tuple[Problem, ...] = ()
    unused: tuple[Problem, ...] = ()


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
        fetched: Mapping[Path, str] = NONE,
        accepted: Mapping[Key, Accepted] | None = None,
    ) -> BuiltSet:
        """Build a set.

        `fetched` are files with lists that may be missing or unusable: then they do not
        count; the values are their URLs. `accepted` is what the set in use has.
        """
        use = trust_set.uses[0]
        errors: list[Problem] = []
        unused: list[Problem] = []
        lists: list[RevocationList] = []
        fetched_lists: list[RevocationList] = []
        for index, file in enumerate(trust_set.files):
            found, problems = self._read(file)
            lists += found
            where = f"{use.files_where}[{index}]"
            errors += [replace(problem, where=where) for problem in problems]
        for file, url in fetched.items():
            if file.exists():
                found, problems = self._read(file, url)
                fetched_lists += found
                unused += [replace(problem, where=use.where) for problem in problems]
        selection = select(
            lists, tuple(cas), self._now_at, self._pack, accepted, fetched=fetched_lists
        )
        errors += [Problem(use.where, each.what, each.remedy) for each in selection.errors]
        unused += [Problem(use.where, each.what, each.remedy) for each in selection.unused]
        buffer = build([] if errors else selection.lists)
        return BuiltSet(buffer, RevokedSet(buffer).lists, tuple(errors), tuple(unused))

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
