"""The files of this machine, as the parser reads them.

Never: follows a directory deeper than httpd would, or writes a file.
"""

from __future__ import annotations

import glob
from pathlib import Path

from relay.files import read_regular

MAX_FILE_BYTES = 4 * 1024 * 1024
_MOST_FILES = 2_000
_DEEPEST = 10


class Disk:
    """Reads regular files only."""

    def read(self, path: str) -> bytes:
        """The bytes of a file. Raises OSError."""
        try:
            data, _ = read_regular(Path(path), MAX_FILE_BYTES)
        except ValueError as error:  # a NUL in the name
            raise OSError(None, str(error)) from None
        if len(data) > MAX_FILE_BYTES:
            raise OSError(None, f"it is larger than {MAX_FILE_BYTES} bytes")
        return data

    def expand(self, pattern: str) -> list[str]:
        """The files that a pattern or a directory stands for, sorted."""
        try:
            found = sorted(glob.glob(pattern, recursive=False))  # noqa: PTH207  a sorted text
            return [path for each in found for path in _files_below(Path(each), 0)][:_MOST_FILES]
        except (OSError, ValueError):
            return []

    def exists(self, path: str) -> bool:
        """Whether a file or directory is there."""
        try:
            return Path(path).exists()
        except (OSError, ValueError):
            return False


def _files_below(path: Path, depth: int) -> list[str]:
    if not path.is_dir():
        return [str(path)]
    if depth > _DEEPEST:
        return []
    return [file for each in sorted(path.iterdir()) for file in _files_below(each, depth + 1)]
