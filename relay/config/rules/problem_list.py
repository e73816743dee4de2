"""Collects the problems that the rules find, without those already reported.

Never: knows a rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from relay.errors import ConfigError, Problem

_STEP = re.compile(r"[.\[]")


@dataclass(slots=True)
class ProblemList:
    """The problems found so far.

    `replaced` are the key paths whose value had the wrong shape. They were reported and
    now hold a stand-in, so the rules must not report them again.
    """

    replaced: frozenset[str] = frozenset()
    problems: list[Problem] = field(default_factory=list)

    def add(self, where: str, what: str, remedy: str = "", *, compared: Iterable[str] = ()) -> None:
        """Note a problem, unless `where` or a key path in `compared` was replaced."""
        if not any(self.is_replaced(path) for path in (where, *compared)):
            self.problems.append(Problem(where, what, remedy))

    def add_error(self, where: str, error: ConfigError) -> None:
        """Note the problems of an error at this key path."""
        for problem in error.problems:
            self.add(where, problem.what, problem.remedy)

    def is_replaced(self, path: str) -> bool:
        """Whether this key path lies in a value that was replaced."""
        return path in self.replaced or any(
            path[: match.start()] in self.replaced for match in _STEP.finditer(path)
        )
