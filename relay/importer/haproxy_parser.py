"""Parses HAProxy's configuration: sections of lines, with defaults for those after.

Never: raises for any contents of a file.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from relay.importer.conditions import Conditions
from relay.importer.report import Report, Verdict
from relay.importer.text import decode, hide_secrets, logical_lines
from relay.importer.tree import Directive, Place

_WORDS = (
    "global defaults frontend backend listen peers userlist resolvers mailers cache "
    "program http-errors ring log-forward fcgi-app crt-store traces"
)
_SECTIONS = frozenset(_WORDS.split())


class HaproxyParser:
    """Reads files one after the other, as haproxy does with several -f."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.report = Report()
        self.sections: list[Directive] = []
        self.files: list[str] = []
        self._variables = Conditions(variables, {}, lambda _: False)

    def add(self, path: str, data: bytes) -> None:
        """Read the bytes of a file."""
        self.files.append(path)
        for line in logical_lines(decode(data)):
            place = Place(path, line.number)
            if line.retyped:
                what = "has typographic quotes, dashes or spaces, which HAProxy does not understand"
                self.report.problem(place, what, "they were read as ASCII; retype them")
            text, unknown = self._variables.expand(line.text)
            for name in unknown:
                what = f"${{{name}}} is not in the environment"
                self.report.problem(place, what, "set it for the import")
            self._line(place, line.text, self._words(place, text))

    def _words(self, place: Place, text: str) -> list[str]:
        try:
            return shlex.split(text, comments=True)
        except ValueError:
            self.report.problem(place, "a quote is not closed", "close it")
            return text.split()

    def _line(self, place: Place, text: str, words: list[str]) -> None:
        if not words:
            return
        no = words[0].lower() == "no" and len(words) > 1
        name = " ".join(words[:2]).lower() if no else words[0].lower()
        found = Directive(name, tuple(words[1:]), place, hide_secrets(text), text.partition(" ")[2])
        if name in _SECTIONS:
            self.sections.append(found)
        elif name.startswith("."):
            self.report.say(found, Verdict.BY_HAND, "conditions are not followed: keep what holds")
        elif self.sections:
            self.sections[-1].children.append(found)
        else:
            self.report.say(found, Verdict.BY_HAND, "it is in no section; it was skipped")

    def settings(self, section: Directive) -> list[Directive]:
        """The lines of a section behind those of the defaults that hold for it."""
        defaults: list[Directive] = []
        named = section.args[section.args.index("from") + 1 :] if "from" in section.args else ()
        for each in self.sections:
            if each is section:
                break
            if each.name == "defaults" and (not named or each.value == named[0]):
                defaults = each.children
        return [*defaults, *section.children]


def last(settings: list[Directive], *words: str) -> Directive | None:
    """The last line that begins with these words."""
    for each in reversed(settings):
        if (each.name, *each.args[: len(words) - 1]) == words:
            return each
    return None
