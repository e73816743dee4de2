"""Takes conf/relay.toml apart: sections, keys, and the comment that explains each.

The JSON Schema and the manual page take their texts from here, so each key is explained
in one place.

Never: knows the model (a test compares the file with it).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_HEADER = re.compile(r"(# )?(\[+)([a-z.]+)\]+(?:\s+# (.*))?")
_KEY = re.compile(r"(# )?([a-z0-9_]+) = (.+)")
_EXAMPLE_NAME = ".httpslb"  # the pool of the reference


@dataclass
class Key:
    """A key as written: its value, whether it is commented out, and its explanation."""

    name: str
    value: str
    is_commented: bool
    text: str


@dataclass
class Section:
    """A section: `name` is its path without the pool's name, such as "pool.backend"."""

    name: str
    title: str
    note: str
    text: str
    keys: list[Key] = field(default_factory=list)


def read_reference(text: str) -> list[Section]:
    """The sections in their order; the first, without a name, is before any header."""
    sections = [Section("", "", "", "")]
    for comment, line in _blocks(text):
        section = sections[-1]
        if header := _HEADER.fullmatch(line):
            name = header[3].replace(_EXAMPLE_NAME, "")
            title = header[2] + header[3].replace(_EXAMPLE_NAME, ".NAME")
            title += "]" * len(header[2])
            sections.append(Section(name, title, header[4] or "", ""))
        elif key := _KEY.fullmatch(line):
            section.keys.append(Key(key[2], key[3], bool(key[1]), comment))
        else:
            section.text = " ".join(filter(None, (section.text, comment)))
    return sections


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """Each header, key and paragraph: the comment before it, and the line.

    The line is "" for a comment that stands alone.
    """
    comment: list[str] = []
    for line in [*text.splitlines(), ""]:
        if _HEADER.fullmatch(line) or _KEY.fullmatch(line):
            yield " ".join(comment), line
            comment = []
        elif line.startswith("# "):
            comment.append(line.removeprefix("# "))
        elif comment and line != "#":
            yield " ".join(comment), ""
            comment = []


def explanations(sections: list[Section]) -> Mapping[tuple[str, str], str]:
    """The text for each key, and for each section that has one, whose key is ""."""
    found: dict[tuple[str, str], str] = {}
    for section in sections:
        if section.text:
            note = section.note.removeprefix("optional: ")
            sentence = f"{note[0].upper()}{note[1:]}. " if note else ""
            found[section.name, ""] = sentence + section.text
        for key in section.keys:
            if key.text:
                found.setdefault((section.name, key.name), key.text)
    for name, key_name in [(each.name, key.name) for each in sections for key in each.keys]:
        # deny has the keys of allow; a pool has some of a route.
        for other in ("listener.route.allow", "listener.route"):
            if (name, key_name) not in found and (other, key_name) in found:
                found[name, key_name] = found[other, key_name]
    return found
