"""One file of the configuration: its text, its tables, and the line of every key.

Never: reads another file, or knows what a key means.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import tomli

from relay.config.lines import Loc, lines_of
from relay.errors import ConfigError, Place, Problem
from relay.files import NotRegularError, read_regular

MAX_FILE_BYTES = 4 * 1024 * 1024
EXAMPLE = "see conf/relay.toml for an example of every key"


@dataclass
class Source:
    """A file that was read, and which of its values came from ${file:…}.

    `references`: as they are written, by the location of the value. `secrets`: each
    reference with what its file has. `value_files`: these files.
    """

    path: Path
    text: str = field(repr=False)
    tables: dict[str, Any] = field(repr=False)
    references: dict[Loc, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    value_files: list[Path] = field(default_factory=list)

    @cached_property
    def _lines(self) -> dict[Loc, int]:
        return lines_of(self.text)

    def place(self, loc: Loc) -> Place:
        """Where this key is; if it is missing, where the section is that lacks it."""
        while loc and loc not in self._lines:
            loc = loc[:-1]
        return Place(shown_path(self.path), self._lines.get(loc, 1))


def read_source(path: Path, included: str = "") -> Source:
    """Read a file. Raises ConfigError.

    `included`: where another file includes it, for the remedy.
    """
    text = _read(path, included)
    return Source(path, text, _parse(path, text))


def shown_path(path: Path) -> str:
    """The path for a message: a NUL, a line break or the like stays on one line."""
    text = str(path)
    return text if text.isprintable() else ascii(text)[1:-1]


def nested_too_deeply(path: Path) -> Problem:
    """The problem of a file whose tables or lists are nested hundreds deep."""
    return Problem(shown_path(path), "is nested too deeply", EXAMPLE)


def _read(path: Path, included: str) -> str:
    where = shown_path(path)
    other = f"correct include at {included}" if included else "name another one with --config FILE"
    try:
        data, _ = read_regular(path, MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        what, remedy = _why_unreadable(error, other)
        raise ConfigError([Problem(where, what, remedy)]) from None
    if len(data) > MAX_FILE_BYTES:
        what = f"is larger than {MAX_FILE_BYTES} bytes"
        remedy = other if included else "name a configuration file with --config FILE"
        raise ConfigError([Problem(where, what, remedy)])
    try:
        # Editors on Windows start files with a byte order mark.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = f"is not UTF-8: byte 0x{data[error.start]:02x} on line {line}"
        problem = Problem(f"{where}:{line}", what, "save it as UTF-8", place=Place(where, line))
        raise ConfigError([problem]) from None


def _why_unreadable(error: Exception, other: str) -> tuple[str, str]:
    """What is wrong with a file that cannot be read, and the remedy."""
    if isinstance(error, IsADirectoryError):
        return "is a directory", "name the file in it"
    if isinstance(error, NotRegularError):
        return (
            "is not a regular file",
            "write the configuration to a regular file: a reload reads it again",
        )
    if isinstance(error, FileNotFoundError):
        return "does not exist", f"create it, or {other}"
    if isinstance(error, PermissionError):
        return (
            "may not be read by this user",
            "change its owner or mode, or those of its directory",
        )
    # A ValueError is a NUL in the name.
    why = error.strerror if isinstance(error, OSError) else str(error)
    return f"cannot be read: {why}", other.replace("another one", "another file")


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        what, line, column = _syntax(str(error), text)
        remedy = (
            'look at this line: put text in "quotes" and lists in [brackets], and open every'
            " table only once"
        )
        file = shown_path(path)
        problem = Problem(
            f"{file}:{line}:{column}",
            f"{what} (line {line}, column {column})",
            remedy,
            place=Place(file, line),
        )
        raise ConfigError([problem]) from None
    except (RecursionError, ValueError) as error:
        # tomli does not catch these: brackets nested hundreds deep, and integers of
        # thousands of digits.
        if isinstance(error, RecursionError):
            raise ConfigError([nested_too_deeply(path)]) from None
        what = "has a number of thousands of digits"
        raise ConfigError([Problem(shown_path(path), what, EXAMPLE)]) from None


def _syntax(message: str, text: str) -> tuple[str, int, int]:
    """The parts of tomli's message: what is wrong, line and column, both from 1."""
    located = re.fullmatch(
        r"(.*?) \(at (?:line (\d+), column (\d+)|end of document)\)", message, re.DOTALL
    )
    what = ascii(located[1] if located else message)[1:-1]
    if located and located[2]:
        return what, int(located[2]), int(located[3])
    return what, text.count("\n") + 1, len(text) - text.rfind("\n")
