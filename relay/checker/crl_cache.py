"""The last good revocation list of each URL, on disk.

So a start without a network has lists, and a restarted checker asks a server only
whether its list has changed. Beside each list is a small file of what the server said
about it.

The preparer reads the lists and verifies each again: this directory belongs to the
checker's user, and a list counts because of its signature only.

Never: trusts what it reads.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relay.checker.crl_download import MOST_BYTES, Validators
from relay.checker.own_directory import names_in, read_in, remove_from, replace_in
from relay.shared.backends_view import HEALTH_FILE

_PREFIX, _LIST, _NOTE = "crl-", ".crl", ".json"
_MOST_NOTE_BYTES = 16_384
_FIRST, _LAST = 0.0, 253_402_300_799.0  # the years 1970 to 9999


@dataclass(frozen=True, slots=True)
class Note:
    """What is known of a kept list besides the list: it may be missing or wrong."""

    validators: Validators
    fetched_at: float
    """When the server last confirmed the list; Unix time, 0 if not known."""


_NOTHING = Note(Validators(), 0.0)


def cached_list(state_dir: Path, url: str) -> Path:
    """Where the list of a URL is kept, if there is one."""
    return (state_dir / HEALTH_FILE).with_name(_name(url) + _LIST)


class CrlCache:
    """The lists in the checker's directory."""

    def __init__(self, directory_fd: int) -> None:
        self._fd = directory_fd

    def load(self, url: str) -> tuple[bytes, Note] | None:
        """The list of a URL and its note; None if there is none."""
        name = _name(url)
        try:
            body = read_in(self._fd, name + _LIST, MOST_BYTES)
        except OSError:
            return None
        return body, self._note(name, body)

    def _note(self, name: str, body: bytes) -> Note:
        try:
            found: Any = json.loads(read_in(self._fd, name + _NOTE, _MOST_NOTE_BYTES))
            etag, modified, at, digest = (
                found[key] for key in ("etag", "last_modified", "fetched_at", "sha256")
            )
        except (OSError, ValueError, TypeError, LookupError, RecursionError):
            return _NOTHING
        # Without this comparison, a note of another list would keep this one for ever.
        if digest != _sha256(body) or not isinstance(at, int | float):
            return _NOTHING
        if not _FIRST <= at <= _LAST or not all(map(_is_header, (etag, modified))):
            return _NOTHING
        return Note(Validators(etag, modified), float(at))

    def has(self, url: str) -> bool:
        """Whether there is a list of this URL."""
        try:
            return stat.S_ISREG(
                os.stat(_name(url) + _LIST, dir_fd=self._fd, follow_symlinks=False).st_mode
            )
        except OSError:
            return False

    def touch(self, url: str) -> None:
        """Let the supervisor read the list of a URL again. Raises OSError."""
        os.utime(_name(url) + _LIST, dir_fd=self._fd, follow_symlinks=False)

    def store(self, url: str, body: bytes) -> None:
        """Replace the list of a URL. Raises OSError."""
        replace_in(self._fd, _name(url) + _LIST, body, durable=True)

    def annotate(self, url: str, digest: str, note: Note) -> None:
        """Keep the note of the list with this digest. Raises OSError."""
        values = {
            "url": url,
            "etag": note.validators.etag,
            "last_modified": note.validators.last_modified,
            "fetched_at": note.fetched_at,
            "sha256": digest,
        }
        replace_in(self._fd, _name(url) + _NOTE, json.dumps(values).encode())

    def keep_only(self, urls: Iterable[str]) -> None:
        """Remove the lists of all other URLs."""
        kept = {_name(url) + end for url in urls for end in (_LIST, _NOTE)}
        with contextlib.suppress(OSError):
            for name in names_in(self._fd):
                if name.startswith(_PREFIX) and name not in kept:
                    remove_from(self._fd, name)


def _name(url: str) -> str:
    return _PREFIX + _sha256(url.encode())[:32]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _is_header(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and (not value or value.isprintable())
