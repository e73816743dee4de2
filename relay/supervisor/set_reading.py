"""Reads sets of files so that what was read belongs together.

Never: knows what is in a file.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from relay.files import Files, Fingerprint, fingerprint
from relay.tls.certificates.file_sets import FileSet, SetKey

# A file that was changed a moment ago may not be complete. It is read again after a
# while, until two readings are the same.
FRESH_S = 1.0
SETTLE_S = 0.2
READINGS = 4


Digests = Mapping[SetKey, tuple[bytes | None, ...]]
"""The SHA-256 of every file of each set."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The files as they were read, and the sets that have changed."""

    files: Files
    digests: Digests
    changed: list[FileSet]
    unsteady: frozenset[Path]  # that changed while they were read


def read_steadily(sets: Collection[FileSet], before: Digests) -> Reading:
    """Read until no changed file changes meanwhile, at most READINGS times."""
    reading = _read(sets, before)
    for _ in range(READINGS - 1):
        if not reading.unsteady:
            break
        time.sleep(SETTLE_S)
        reading = _read(sets, before)
    return reading


def _read(sets: Collection[FileSet], before: Digests) -> Reading:
    files = Files()
    for each in sets:
        for path in each.files:
            # A file that cannot be read is reported by the check.
            with contextlib.suppress(OSError):
                files.read(path, each.read_bytes(path))
    digests = digests_of(sets, files)
    changed = [each for each in sets if digests[each.key] != before.get(each.key)]
    paths = {path for each in changed for path in each.files if path in files.fingerprints}
    now_at = time.time()
    if any(abs(now_at - _changed_at(files.fingerprints[path])) < FRESH_S for path in paths):
        time.sleep(SETTLE_S)
    unsteady = frozenset(path for path in paths if fingerprint(path) != files.fingerprints[path])
    return Reading(files, digests, changed, unsteady)


def _changed_at(seen: Fingerprint) -> float:
    """When the file was changed last, by the clock of its file system."""
    return seen[-1] / 1e9


def other_digests(sets: Iterable[FileSet], files: Files) -> dict[tuple[Path, int], bytes]:
    """The SHA-256 of the files that were read and are in no set."""
    paths = {path for each in sets for path in each.files}
    found = files.digests_by_limit()
    return {key: digest for key, digest in found.items() if key[0] not in paths}


def are_unchanged(digests: Mapping[tuple[Path, int], bytes]) -> bool:
    """Whether all these files are as they were."""
    files = Files()
    for path, limit_bytes in digests:
        with contextlib.suppress(OSError):
            files.read(path, limit_bytes)
    return files.digests_by_limit() == digests


def digests_of(sets: Iterable[FileSet], files: Files) -> Digests:
    """The SHA-256 of every file of each set; None for a file that was not read."""
    found = files.digests()
    return {each.key: tuple(map(found.get, each.files)) for each in sets}


def other_files(each: FileSet, before: Digests, now: Digests) -> tuple[Path, ...]:
    """The files of a set whose bytes are not those in use."""
    pairs = zip_longest(each.files, now[each.key], before.get(each.key, ()))
    changed = {path for path, new, old in pairs if new != old}
    return tuple(path for path in each.own_files if path in changed)


def pending_files(each: FileSet, others: tuple[Path, ...]) -> tuple[Path, ...]:
    """The files of a refused set that operators see: of many lists, those that differ.

    A certificate and its key are shown together, because one may be bad for the other.
    """
    return (others if each.kind == "crl" else ()) or each.own_files
