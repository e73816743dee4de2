"""What became of each line of a configuration: the report for the operator.

Never: has more than one line per directive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from itertools import groupby
from typing import NamedTuple

from relay.importer.tree import Directive, Place

_LONGEST = 120


class Verdict(StrEnum):
    """The words of docs/migration-from-httpd.md."""

    SAME = "same"
    BETTER = "better"
    BY_HAND = "by hand"
    LOST = "lost"


def one_line(text: str, longest: int = _LONGEST) -> str:
    """Text from a file on one printable line, clipped."""
    plain = " ".join(text.split())
    if plain.isprintable():
        return plain if len(plain) <= longest else f"{plain[: longest - 1]}…"
    clean = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in plain)
    return clean if len(clean) <= longest else f"{clean[: longest - 1]}…"


class _Row(NamedTuple):
    place: Place
    name: str
    text: str
    outcome: str


class Report:
    """The first verdict about a directive counts."""

    def __init__(self) -> None:
        self._verdicts: dict[Directive, tuple[Verdict, str]] = {}
        self._problems: dict[tuple[str, str], list[int]] = {}
        self.notes: list[str] = []

    def say(self, directive: Directive | None, verdict: Verdict, reason: str) -> None:
        """What became of a directive, unless that was said before."""
        if directive is not None:
            self._verdicts.setdefault(directive, (verdict, reason))

    def has(self, directive: Directive) -> bool:
        """Whether there is a verdict."""
        return directive in self._verdicts

    def problem(self, place: Place, what: str, remedy: str) -> None:
        """A mistake in the file, which was read as far as possible."""
        lines = self._problems.setdefault((place.file, f"{one_line(what)}; {remedy}"), [])
        if place.line not in lines:
            lines.append(place.line)

    def note(self, text: str) -> None:
        """Something to know that no single line says."""
        text = one_line(text, 2_000)
        if text not in self.notes:
            self.notes.append(text)

    def lines(self, files: Iterable[str]) -> list[str]:
        """All lines, in the order of the files and of their lines."""
        order = {file: number for number, file in enumerate(files)}
        rows = [
            _Row(each.place, each.name, one_line(each.text), f"{verdict}: {one_line(reason, 400)}")
            for each, (verdict, reason) in self._verdicts.items()
        ]
        for (file, what), numbers in self._problems.items():
            also = f" (also on lines {', '.join(map(str, numbers[1:21]))})" if numbers[1:] else ""
            outcome = f"{Verdict.BY_HAND}: {what}{also}"
            rows.append(_Row(Place(file, numbers[0]), "", "", outcome))
        rows.sort(key=lambda row: (order.get(row.place.file, len(order)), row.place.line))
        found = []
        for _, alike in groupby(rows, lambda row: (row.place.file, row.name, row.outcome)):
            same = list(alike)
            if len(same) > 3:
                what = f"{same[0].text} (and {len(same) - 1} more such lines)"
                same = [same[0]._replace(text=what)]
            found += [
                ": ".join(filter(None, (one_line(str(row.place), 400), row.text, row.outcome)))
                for row in same
            ]
        return found

    def summary(self) -> str:
        """How many of each verdict there are."""
        count = Counter(verdict for verdict, _ in self._verdicts.values())
        count[Verdict.BY_HAND] += len(self._problems)
        return ", ".join(f"{count[verdict]} {verdict}" for verdict in Verdict)
