"""Writes TOML for people: each key with a comment that says where it comes from.

Never: writes a line that a TOML parser reads differently from what was put in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from textwrap import wrap

from relay.importer.report import one_line

Value = str | bool | int | float | Sequence["Value"] | Mapping[str, "Value"]
WIDTH = 100
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}


def key(name: str) -> str:
    """A key, in quotes if it needs them."""
    return name if _BARE.fullmatch(name) else value(name)


def value(given: Value) -> str:
    """A value on one line."""
    if isinstance(given, bool):
        return "true" if given else "false"
    if isinstance(given, str):
        # relay replaces ${…} in strings, and $${ is ${.
        return f'"{"".join(map(_escaped, given)).replace("${", "$${")}"'
    if isinstance(given, int):
        return str(given)
    if isinstance(given, float):
        return str(int(given)) if given.is_integer() else repr(given)
    if isinstance(given, Mapping):
        return "{ " + ", ".join(f"{key(k)} = {value(v)}" for k, v in given.items()) + " }"
    return "[" + ", ".join(map(value, given)) + "]"


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    code = ord(character)
    if 0xD800 <= code < 0xE000:
        return "\\uFFFD"
    if character.isprintable():
        return character
    return f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


class Table:
    """One table of a TOML document, with comments."""

    def __init__(self, header: str) -> None:
        self.header = header
        self.remarks: list[str] = []
        self._lines: list[str] = []
        self.values: dict[str, Value] = {}

    def put(self, name: str, given: Value, comment: str = "") -> None:
        """A key. A key that is there already keeps its value."""
        if name in self.values:
            return
        self.values[name] = given
        self._add(f"{key(name)} = {value(given)}", comment)

    def off(self, name: str, given: Value, comment: str) -> None:
        """A key that is commented out: the operator decides."""
        self._add(f"# {key(name)} = {value(given)}", comment)

    def remark(self, text: str) -> None:
        """A comment below the header, or after the keys before it."""
        self._lines += comment_lines(text)

    def _add(self, line: str, comment: str) -> None:
        note = one_line(comment)
        if note and len(line) + len(note) + 5 <= WIDTH:
            line = f"{line}  # {note}"
        elif note:
            self._lines += comment_lines(note)
        self._lines.append(line)

    @property
    def is_empty(self) -> bool:
        """Whether it has no line."""
        return not self._lines

    def render(self) -> str:
        """The table with an empty line after it."""
        above = [line for text in self.remarks for line in comment_lines(text)]
        return "\n".join([*above, self.header, *self._lines, "", ""])


def comment_lines(text: str) -> list[str]:
    """A comment, wrapped."""
    return [f"# {line}" for line in wrap(one_line(text, 2_000), WIDTH - 2)] or ["#"]
