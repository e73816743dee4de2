"""Several files as one configuration: which line of which file each key is in.

Tables with the same name become one, lists of tables are appended, and any other key
may be set only once.

Never: reads a file, or shows a value that came from ${file:…}.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from relay.config.explain import LONGEST_VALUE, accepted, find, key_path_of
from relay.config.key_path import listener_paths
from relay.config.lines import Loc
from relay.config.sources import Source
from relay.errors import ConfigError, Place, Problem, StartupError

_STEP = re.compile(r'\.?(?:([A-Za-z0-9_-]+)|("(?:[^"\\]|\\.)*"))|\[(\d+)\]')
_LEAST_MASKED = 4
"""Shorter values occur in other words: masking them would only garble a message."""


class Places:
    """The merged tables, and for each location in them the file and line it is from."""

    def __init__(self, main: Source) -> None:
        self.tables: dict[str, Any] = dict(main.tables)
        self.sources = [main]
        self.problems: list[Problem] = []  # keys that are set twice
        # Where a part of the tables comes from; a part of it may be from elsewhere.
        self._origins: dict[Loc, tuple[Source, Loc]] = {(): (main, ())}

    @property
    def files(self) -> list[Path]:
        """All files of the configuration, in the order in which they were read."""
        return [each.path for each in self.sources]

    @property
    def value_files(self) -> list[Path]:
        """The files that values are from."""
        return list(dict.fromkeys(file for each in self.sources for file in each.value_files))

    def add(self, source: Source) -> None:
        """Add the tables of an included file."""
        self.sources.append(source)
        self._add_table(self.tables, source.tables, source, (), ())

    def _add_table(
        self, into: dict[str, Any], new: Mapping[str, Any], source: Source, loc: Loc, theirs: Loc
    ) -> None:
        for key, value in new.items():
            here, there = (*loc, key), (*theirs, key)
            if here == ("include",):
                continue  # each file has its own
            if key not in into:
                into[key] = value
                self._origins[here] = source, there
            elif isinstance(into[key], dict) and isinstance(value, dict):
                self._add_table(into[key], value, source, here, there)
            elif _is_tables(into[key]) and _is_tables(value):
                for index, item in enumerate(value):
                    self._add_item(into[key], item, source, here, (*there, index))
            else:
                what = f"is already set at {self.place(here)}"
                where = key_path_of(here, self.tables)
                remedy = "set it in one of the files only"
                self.problems.append(Problem(where, what, remedy, place=source.place(there)))

    def _add_item(
        self, into: list[Any], item: dict[str, Any], source: Source, loc: Loc, theirs: Loc
    ) -> None:
        """Append a table; routes without an address join the listener of their name."""
        if loc == ("listener",) and "listen" not in item:
            for index, other in enumerate(into):
                if "name" in item and isinstance(other, dict) and other.get("name") == item["name"]:
                    more = {key: value for key, value in item.items() if key != "name"}
                    self._add_table(other, more, source, (*loc, index), theirs)
                    return
        self._origins[*loc, len(into)] = source, theirs
        into.append(item)

    # From locations and key paths to files and lines.

    def origin(self, loc: Loc) -> tuple[Source, Loc]:
        """The file that has this key, or its section, and the location there."""
        for depth in range(len(loc), -1, -1):
            if found := self._origins.get(loc[:depth]):
                return found[0], (*found[1], *loc[depth:])
        raise KeyError(loc)

    def place(self, loc: Loc) -> Place:
        """The file and line of a key, or of the section that lacks it."""
        source, there = self.origin(loc)
        return source.place(there)

    def base(self, loc: Loc) -> Path:
        """The directory where a relative path at this location starts.

        A default starts where the first file is.
        """
        value: Any = self.tables
        for step in loc:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return self.sources[0].path.parent
        return self.origin(loc)[0].path.parent

    def loc_of(self, where: str) -> Loc | None:
        """The location of a key path of a message; None if it is not one."""
        where = where.partition(", ")[0]
        loc: list[int | str] = []
        if where.startswith("listener"):
            listeners = self.tables.get("listener")
            names = [_name_of(each) for each in listeners] if isinstance(listeners, list) else []
            for index, path in enumerate(listener_paths(names)):
                if where == f'listener "{names[index]}"':  # of an address that it binds
                    return "listener", index, "listen"
                if where == path or where.startswith((f"{path}.", f"{path}[")):
                    loc, where = ["listener", index], where[len(path) :]
                    break
        at = 0
        while at < len(where):
            match = _STEP.match(where, at)
            if match is None:
                return None
            key = match[1] or (json.loads(match[2]) if match[2] else None)
            loc.append(int(match[3]) if key is None else key)
            at = match.end()
        return tuple(loc) if loc and loc[0] in {*self.tables, *_SECTIONS} else None

    # What messages say.

    def locate(self, problems: Iterable[Problem]) -> list[Problem]:
        """The problems with their lines, and without values from files."""
        return [self._masked(self._located(each)) for each in problems]

    def locate_wrong_values(self, problems: Iterable[Problem]) -> list[Problem]:
        """The same for problems of the values themselves.

        Such a message may show any part of a value.
        """
        return self.locate(map(self._without_value, problems))

    def locate_error(self, error: ConfigError) -> ConfigError:
        """The error with located problems."""
        return ConfigError(self.locate(error.problems))

    def locate_failure(self, error: StartupError) -> StartupError:
        """The error with the line of the key that it begins with."""
        return StartupError(self.locate_text(error.what), self.mask(error.hint))

    def locate_text(self, text: str) -> str:
        """A message with the line of the key that it begins with, if there is one."""
        loc = self.loc_of(text.partition(": ")[0])
        return self.mask(text if loc is None else f"{self.place(loc)}: {text}")

    def mask(self, text: str) -> str:
        """The text without values from files."""
        for shown, reference in self._masks:
            literal = reference.replace("\\", r"\\")
            text = re.sub(re.escape(shown), literal, text, flags=re.IGNORECASE)
        return text

    @cached_property
    def _masks(self) -> list[tuple[str, str]]:
        """What messages show of each value, and the reference to show in its place."""
        masks: dict[str, str] = {}
        for source in self.sources:
            for reference, value in source.secrets.items():
                text = value.strip()
                for shown in (
                    text,
                    json.dumps(text)[1:-1],
                    json.dumps(text)[1:-1][: LONGEST_VALUE - 1],
                ):
                    if len(shown) >= _LEAST_MASKED:
                        masks[shown] = reference
        return sorted(masks.items(), key=lambda mask: len(mask[0]), reverse=True)

    def _located(self, problem: Problem) -> Problem:
        if problem.place is not None:
            return problem
        loc = self.loc_of(problem.where)
        return problem if loc is None else replace(problem, place=self.place(loc))

    def _masked(self, problem: Problem) -> Problem:
        if not any(source.secrets for source in self.sources):
            return problem
        where, what, remedy = map(self.mask, (problem.where, problem.what, problem.remedy))
        return replace(problem, where=where, what=what, remedy=remedy)

    def _without_value(self, problem: Problem) -> Problem:
        """The problem without its words, if its key has a value from a file."""
        loc = self.loc_of(problem.where)
        if loc is None or problem.place is not None:
            return problem
        source, there = self.origin(loc)
        for known, reference in source.references.items():
            if there[: len(known)] == known:
                what = f"the value of {reference} cannot be used here, and is not shown"
                return replace(problem, what=what, remedy=_what_is_accepted(loc))
        return problem


_SECTIONS = ("relay", "admin", "log", "timeouts", "limits", "listener", "pool", "include")


def _what_is_accepted(loc: Loc) -> str:
    annotation, constraints, _, found = find(loc)
    wanted = accepted(annotation, constraints) if found == loc else "a valid value"
    return f"write {wanted} into the file; conf/relay.toml explains this key"


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _name_of(listener: object) -> object:
    name = listener.get("name") if isinstance(listener, Mapping) else None
    return name.strip() if isinstance(name, str) else name
