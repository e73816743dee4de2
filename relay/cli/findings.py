"""What `relay check` has found, as lines of one form and as JSON objects.

Never: looks at a file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from relay.errors import Problem
from relay.supervisor.check import CheckReport
from relay.tls.certificates.findings import Finding, Level, as_problem


@dataclass(frozen=True, slots=True)
class Line:
    """One finding or problem. `is_problem`: it makes the check fail."""

    severity: str
    problem: Problem
    is_problem: bool
    finding: Finding | None = None

    def as_dict(self) -> dict[str, Any]:
        """The object for JSON; these names are documented, and stay."""
        found, place, where = self.finding, self.problem.place, self.problem.where
        is_path = where.startswith("/")  # of a file that cannot be read
        return {
            "severity": self.severity,
            "file": place.file if place else where if is_path else None,
            "line": place.line if place else None,
            "key": None if is_path else where,
            "what": found.what if found else self.problem.what,
            "hint": self.problem.remedy,
            "certificate": (found.file or None) if found else None,
            "subject": (found.subject or None) if found else None,
            "temporary": found.temporary if found else self.problem.temporary,
        }


def lines_of(report: CheckReport, *, strict: bool) -> list[Line]:
    """Everything in a report; errors are first."""
    lines = problem_lines(report.problems)
    levels = [(one, _level(one, strict=strict)) for one in report.findings]
    found = [
        Line(
            level.value,
            as_problem(one),
            level is Level.ERROR or (strict and level is Level.WARNING),
            one,
        )
        for one, level in levels
    ]
    order = [level.value for level in Level]
    return sorted((*found, *lines), key=lambda line: order.index(line.severity))


def problem_lines(problems: Iterable[Problem]) -> list[Line]:
    """The same for problems that are no findings."""
    return [Line(Level.ERROR.value, each, is_problem=True) for each in problems]


def _level(one: Finding, *, strict: bool) -> Level:
    """As `relay start --strict` logs a pattern of `include` that matches no file."""
    return Level.WARNING if strict and one.where.startswith("include") else one.level
