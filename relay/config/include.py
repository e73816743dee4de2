"""`include`: the files of a pattern, and all files of a configuration.

An included file may include others. A file is read only once.

Never: follows `..` or `*` in any other way than a shell does; sorts by anything but the
name.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from relay.config.explain import key_path_of
from relay.config.lines import Loc
from relay.config.places import Places
from relay.config.references import replace_references
from relay.config.sources import Source, read_source, shown_path
from relay.errors import ConfigError, Place, Problem, describe_error

_DEEPEST = 20
_MAGIC = re.compile(r"[*?\[]")


@dataclass
class Reading:
    """All files of a configuration, and what is wrong with them.

    `broken`: files that could not be read. `wrong`: keys that cannot be used.
    `without_match`: patterns that match no file. `directories`: those of the patterns.
    """

    places: Places
    broken: list[Problem]
    wrong: list[Problem]
    without_match: list[Problem]
    directories: list[Path]


def read_all(path: Path) -> Reading:
    """Read a file and all files that it includes. Raises ConfigError.

    The error is about the first file; faults of the others are in the result.
    """
    main = read_source(path)
    wrong = replace_references(main)
    reading = Reading(Places(main), [], wrong, [], [])
    _Including(reading, main).follow(main)
    reading.wrong += reading.places.problems
    return reading


class _Including:
    def __init__(self, reading: Reading, main: Source) -> None:
        self._reading = reading
        # By the real path: a link to a file is the same file.
        self._seen: dict[str, Place] = {_real(main.path): Place(str(main.path), 1)}
        self._depth = 0

    def follow(self, source: Source) -> None:
        patterns = source.tables.get("include", [])
        if not isinstance(patterns, list):
            if source is not self._reading.places.sources[0]:  # else the model reports it
                self._wrong(source, ("include",), "must be a list of strings", "")
            return
        for index, pattern in enumerate(patterns):
            loc: Loc = ("include", index)
            if isinstance(pattern, str):
                self._include(source, loc, pattern)
            elif source is not self._reading.places.sources[0]:
                self._wrong(source, loc, "must be a string", "")

    def _include(self, source: Source, loc: Loc, pattern: str) -> None:
        if not pattern.strip() or not pattern.isprintable():
            remedy = 'write for example include = ["conf.d/*.toml"]'
            self._wrong(source, loc, "does not name a file", remedy)
            return
        place = source.place(loc)
        try:
            files = sorted(self._files(source.path.parent, pattern.strip()))
        except OSError as error:
            what = f"{error.filename} cannot be read: {describe_error(error)}"
            self._wrong(source, loc, what, "change its owner or mode")
            return
        if not files:
            what = f"{pattern} matches no file"
            where, remedy = key_path_of(loc, source.tables), "correct the pattern, or remove it"
            self._reading.without_match.append(Problem(where, what, remedy, place=place))
        for file in files:
            self._read(source, loc, Path(file))

    def _files(self, base: Path, pattern: str) -> Iterator[str]:
        """The files of a pattern; a name without wildcards need not exist."""
        whole = base / pattern
        if not _MAGIC.search(pattern):
            return iter([str(whole)])
        return self._matches(Path(whole.parts[0]), whole.parts[1:])

    def _matches(self, directory: Path, parts: tuple[str, ...]) -> Iterator[str]:
        part, *rest = parts
        if not _MAGIC.search(part):
            if rest:
                yield from self._matches(directory / part, tuple(rest))
            elif (directory / part).exists():
                yield str(directory / part)
            return
        self._reading.directories.append(directory)
        try:
            names = os.listdir(directory)  # noqa: PTH208 (names are enough)
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in names:
            if not fnmatch.fnmatchcase(name, part) or name.startswith(".") > part.startswith("."):
                continue
            if rest:
                yield from self._matches(directory / name, tuple(rest))
            else:
                yield str(directory / name)

    def _read(self, source: Source, loc: Loc, file: Path) -> None:
        place = source.place(loc)
        real = _real(file)
        if (before := self._seen.get(real)) is not None:
            main = self._reading.places.sources[0].path
            name = shown_path(file)
            if real == _real(main):
                what = f"{name} is the configuration file itself"
            else:
                what = f"{name} is already included at {before}"
            self._wrong(source, loc, what, "include each file once, and no file by itself")
            return
        self._seen[real] = place
        if self._depth >= _DEEPEST:
            what = f"files are included more than {_DEEPEST} deep"
            self._wrong(source, loc, what, "include its files from the first one")
            return
        try:
            included = read_source(file, str(place))
        except ConfigError as error:
            self._reading.broken += error.problems
            return
        self._reading.wrong += replace_references(included)
        self._reading.places.add(included)
        self._depth += 1
        self.follow(included)
        self._depth -= 1

    def _wrong(self, source: Source, loc: Loc, what: str, remedy: str) -> None:
        where = key_path_of(loc, source.tables)
        remedy = remedy or 'write for example include = ["conf.d/*.toml"]'
        self._reading.wrong.append(Problem(where, what, remedy, place=source.place(loc)))


def _real(path: Path) -> str:
    """The path without links; also of a link that leads to itself."""
    return os.path.realpath(path)
