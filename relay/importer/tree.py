"""The directives of a configuration as values, each with its file and line.

Never: knows what a directive means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Place(NamedTuple):
    """Where a directive is written."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(eq=False, slots=True)
class Directive:
    """One directive, or one section with its `children`.

    `name` is in lower case, `text` is the line as written, and `rest` is what follows
    the name, with variables replaced.
    """

    name: str
    args: tuple[str, ...]
    place: Place
    text: str
    rest: str = ""
    children: list[Directive] = field(default_factory=list)

    def arg(self, index: int) -> str:
        """An argument, or "" if there is none."""
        return self.args[index] if index < len(self.args) else ""

    @property
    def value(self) -> str:
        """The first argument, or ""."""
        return self.arg(0)

    @property
    def is_on(self) -> bool:
        """Whether the first argument is `on`, in any case."""
        return self.value.lower() == "on"


def walk(directives: Sequence[Directive]) -> Iterator[Directive]:
    """These directives and all that are inside them, in the order of the file."""
    waiting = list(reversed(directives))
    while waiting:
        directive = waiting.pop()
        yield directive
        waiting += reversed(directive.children)


class Scope:
    """The directives that hold for a virtual host: its own, and the server's.

    `server` is empty for the server itself.
    """

    def __init__(self, own: Sequence[Directive], server: Sequence[Directive] = ()) -> None:
        self.own = own
        self.server = server

    def last(self, name: str) -> Directive | None:
        """The directive that wins: the last one here, otherwise the server's last."""
        for directives in (self.own, self.server):
            for directive in reversed(directives):
                if directive.name == name:
                    return directive
        return None

    def every(self, name: str) -> list[Directive]:
        """All directives of this name: the own ones, otherwise the server's."""
        for directives in (self.own, self.server):
            found = [each for each in directives if each.name == name]
            if found:
                return found
        return []

    def both(self, name: str) -> list[Directive]:
        """All directives of this name, the server's first."""
        return [each for each in (*self.server, *self.own) if each.name == name]

    def value(self, name: str) -> str:
        """The first argument of the directive that wins, in lower case, or ""."""
        found = self.last(name)
        return found.value.lower() if found is not None else ""
