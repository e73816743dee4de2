"""The line of every key, section and list item of a TOML file.

The TOML library gives values without their lines. So this reads the text again, when a
message needs a line. It relies on the library having accepted the text: it looks only
for keys, brackets and strings.

Never: checks the syntax, or gives a value.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from contextlib import suppress

Loc = tuple[int | str, ...]
"""Where a value is: keys of tables and indexes of lists, from the top."""

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY = re.compile(r"""[ \t]*(?:([A-Za-z0-9_-]+)|"((?:[^"\\\n]|\\.)*)"|'([^'\n]*)')[ \t]*""")
_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}'
    r"|'''(?:[^']|'{1,2}(?!'))*'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_BARE_VALUE = re.compile(r"[^,\]}#\n]+")


def lines_of(text: str) -> dict[Loc, int]:
    """The line, from 1, of every location of this text."""
    scanner = _Scanner(text)
    # Tables that are nested hundreds deep have the lines found so far.
    with suppress(IndexError, RecursionError):
        scanner.scan()
    return scanner.lines


class _Scanner:
    def __init__(self, text: str) -> None:
        self.lines: dict[Loc, int] = {(): 1}
        self._text = text
        self._at = 0
        self._starts = [match.end() for match in re.finditer("\n", text)]
        self._tables: dict[Loc, int] = {}  # how many tables each [[list]] has

    def scan(self) -> None:
        """Read all statements: headers, and keys with their values."""
        section: Loc = ()
        while True:
            self._skip_blank()
            if self._at >= len(self._text):
                return
            if self._text[self._at] == "[":
                section = self._header()
            else:
                self._key_and_value(section)

    def _skip_blank(self) -> None:
        match = _BLANK.match(self._text, self._at)
        self._at = match.end() if match else self._at

    def _note(self, loc: Loc, at: int) -> None:
        line = bisect_right(self._starts, at) + 1
        while loc and loc not in self.lines:  # a section may have no header of its own
            self.lines[loc] = line
            loc = loc[:-1]

    def _dotted(self) -> list[str]:
        keys = []
        while match := _KEY.match(self._text, self._at):
            self._at = match.end()
            keys.append(_unescape(match[2]) if match[2] is not None else match[1] or match[3])
            if self._text[self._at] != ".":
                return keys
            self._at += 1
        raise IndexError  # not a text that the library accepts

    def _header(self) -> Loc:
        """Read [a.b] or [[a.b]]; returns the location of its table."""
        start = self._at
        many = self._text.startswith("[[", start)
        self._at += 2 if many else 1
        *above, last = self._dotted()
        loc: Loc = ()
        for key in above:
            loc = (*loc, key)
            if loc in self._tables:
                loc = (*loc, self._tables[loc] - 1)
        loc = (*loc, last)
        if many:
            count = self._tables.get(loc, 0)
            self._tables[loc] = count + 1
            loc = (*loc, count)
        self._at += 2 if many else 1
        self._note(loc, start)
        return loc

    def _key_and_value(self, section: Loc) -> None:
        start = self._at
        loc = (*section, *self._dotted())
        self._note(loc, start)
        self._at += 1  # the =
        self._value(loc)

    def _value(self, loc: Loc) -> None:
        self._skip_blank()
        first = self._text[self._at]
        if first in "[{":
            self._at += 1
            self._members(loc, "]" if first == "[" else "}")
            return
        match = (_STRING if first in "\"'" else _BARE_VALUE).match(self._text, self._at)
        if match is None:
            raise IndexError
        self._at = match.end()

    def _members(self, loc: Loc, end: str) -> None:
        """Read the items of a list, or the keys of an inline table."""
        index = 0
        while True:
            self._skip_blank()
            if self._text[self._at] in f",{end}":
                self._at += 1
                if self._text[self._at - 1] == end:
                    return
            elif end == "}":
                self._key_and_value(loc)
            else:
                self._note((*loc, index), self._at)
                self._value((*loc, index))
                index += 1


def _unescape(text: str) -> str:
    """A quoted key without its escapes."""
    try:
        return str(json.loads(f'"{text}"'))
    except ValueError:  # an escape that only TOML has
        return text
