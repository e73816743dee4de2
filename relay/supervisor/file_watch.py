"""Decides from fingerprints which sets of files have changed and are complete.

A set has changed when its fingerprints differ from those that are known. It counts only
if they are the same in two polls, because files are written one after the other: a
certificate before its key, or one link after the other.

Never: looks at a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from relay.files import Fingerprint

_Seen = tuple[Fingerprint | None, ...]


class FileWatch:
    """The sets of files of one configuration, and what is known of them.

    `known` has the fingerprints of the files in use. A file without one is taken as it
    is found first.
    """

    def __init__(
        self, sets: Iterable[Sequence[Path]], known: Mapping[Path, Fingerprint] | None = None
    ) -> None:
        self._sets = [tuple(paths) for paths in sets]
        known = known or {}
        self._known: list[_Seen] = [tuple(map(known.get, paths)) for paths in self._sets]
        self._before: list[_Seen] = [()] * len(self._sets)

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files, each once."""
        return tuple(dict.fromkeys(path for paths in self._sets for path in paths))

    def poll(self, seen: Mapping[Path, Fingerprint]) -> list[int]:
        """Take one look at all files. Returns the sets that have changed, once each."""
        changed = []
        for number, paths in enumerate(self._sets):
            now = tuple(seen[path] for path in paths)
            known = tuple(
                new if old is None else old
                for old, new in zip(self._known[number], now, strict=True)
            )
            if now != known and now == self._before[number]:
                changed.append(number)
                known = now
            self._known[number], self._before[number] = known, now
        return changed
