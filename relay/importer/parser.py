"""Parses httpd's configuration files into directives, with their files and lines.

Includes, variables, conditions and macros are followed as httpd does it while it reads,
so what comes out has none of them. Mistakes are reported, and reading goes on.

apacheconfig and the other parsers on PyPI do not do this: they follow no condition and
no variable, keep no line numbers and no order, and stop at the first mistake.

Never: raises for any contents of a file.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from relay.importer.conditions import Conditions, read_envvars
from relay.importer.machine import Source
from relay.importer.report import Report, Verdict
from relay.importer.text import (
    Line,
    decode,
    hide_secrets,
    logical_lines,
    split_words,
    without_comment,
)
from relay.importer.tree import Directive, Place

MAX_DEPTH = 20
MAX_LINES = 200_000
_CONDITIONS = {"ifmodule", "ifdefine", "ifversion", "iffile", "ifdirective", "ifsection"}
_OPEN = re.compile(r"<\s*([A-Za-z][\w-]*)\s*(.*?)\s*(>?)\s*(#.*)?")
_CLOSE = re.compile(r"<\s*/\s*([A-Za-z][\w-]*)[^>]*>?\s*(#.*)?")
# Below httpd's directory, on the distributions that have them.
_BELOW_ROOT = re.compile(
    r"(.*)/(?:sites-|conf-|mods-)(?:available|enabled)|(.*)/(?:conf|vhosts)\.d"
)


@dataclass(slots=True)
class _Frame:
    """An open section. `counts`: whether its lines are read."""

    name: str
    place: Place
    sink: list[Directive]
    counts: bool = True
    macro: _Macro | None = None


@dataclass(slots=True)
class _Macro:
    """The lines of a <Macro>, and the names of its parameters."""

    parameters: tuple[str, ...]
    file: str
    lines: list[Line] = field(default_factory=list)


class Parser:
    """Reads files one after the other, as if they were one configuration."""

    def __init__(
        self, source: Source, variables: Mapping[str, str], defines: Mapping[str, str]
    ) -> None:
        self.report = Report()
        self.root: list[Directive] = []
        self.files: list[str] = []
        self._source = source
        self._conditions = Conditions(variables, defines, self.exists)
        self._server_root = ""
        self._base = "/"
        self._macros: dict[str, _Macro] = {}
        self._frames: list[_Frame] = []
        self._depth = 0
        self._reading: list[str] = []
        self._lines_left = MAX_LINES
        # What is followed while reading, and is then gone.
        self._followed = {
            "define": self._define,
            "undefine": self._undefine,
            "serverroot": self._set_root,
            "include": self._include,
            "includeoptional": self._include,
            "use": self._use,
        }

    def read_main(self, path: str) -> None:
        """Read a file that the operator has named. Raises OSError."""
        data = self._source.read(path)
        directory = posixpath.dirname(path)
        below = _BELOW_ROOT.fullmatch(directory)
        self._base = (below[1] or below[2]) if below else directory
        try:
            envvars = decode(self._source.read(self.resolve("envvars")))
        except OSError:
            envvars = ""
        self._conditions.variables = read_envvars(envvars, self._conditions.variables)
        self._read(path, data)

    def resolve(self, path: str) -> str:
        """The absolute path of a file name of the configuration."""
        base = self._server_root or self._base
        return posixpath.normpath(posixpath.join(base, path))

    def exists(self, path: str) -> bool:
        """Whether a file of the configuration is there."""
        return self._source.exists(self.resolve(path))

    # Files.

    def _read(self, path: str, data: bytes) -> None:
        if path not in self.files:
            self.files.append(path)
        self._reading.append(path)
        self._take(path, logical_lines(decode(data)))
        self._reading.pop()

    def _take(self, file: str, lines: Iterator[Line] | Sequence[Line]) -> None:
        """Read lines. Sections that they open must end in them."""
        base = len(self._frames)
        self._depth += 1
        for line in lines:
            self._lines_left -= 1
            if self._lines_left < 0:
                break
            self._line(file, line, base)
        for frame in reversed(self._frames[base:]):
            what = f"<{frame.name}> is never closed, so it was read to the end of its file"
            self.report.problem(frame.place, what, f"add </{frame.name}> where it ends")
        del self._frames[base:]
        self._depth -= 1

    @property
    def _counts(self) -> bool:
        return not self._frames or self._frames[-1].counts

    def _line(self, file: str, line: Line, base: int) -> None:
        place = Place(file, line.number)
        macro = self._frames[-1].macro if self._frames else None
        if closing := _CLOSE.fullmatch(line.text):
            self._close(closing[1].lower(), place, base, line)
        elif macro is not None:
            macro.lines.append(line)
        elif line.text.startswith("<") and (opening := _OPEN.fullmatch(line.text)):
            self._open(opening, place, line)
        elif self._counts:
            self._directive(place, line)

    # Sections.

    def _open(self, match: re.Match[str], place: Place, line: Line) -> None:
        name = match[1].lower()
        if not self._counts:
            self._frames.append(_Frame(name, place, [], counts=False))
            return
        rest = self._expanded(match[2], place)
        if not match[3]:
            what = f"<{match[1]} has no > at its end"
            self.report.problem(place, what, "it was read as if it had one; add it")
        args = tuple(split_words(rest))
        found = Directive(name, args, place, line.text, rest)
        self._retyped(line, place)
        if name == "virtualhost":
            self._end_virtual_host(place)
        sink = self._sink
        if name == "macro" and args:
            macro = _Macro(args[1:], place.file)
            self._macros[args[0].lower()] = macro
            self._frames.append(_Frame(name, place, [], macro=macro))
        elif name in _CONDITIONS:
            counts = self._conditions.holds(name, args)
            if not counts:
                why = f"its lines do not count here: {match[1]} {rest} does not hold"
                self.report.say(found, Verdict.SAME, why)
            self._frames.append(_Frame(name, place, sink, counts=counts))
        else:
            sink.append(found)
            self._frames.append(_Frame(name, place, found.children))

    def _end_virtual_host(self, place: Place) -> None:
        """A virtual host cannot be inside another one: its end is missing."""
        for at, frame in enumerate(self._frames):
            if frame.name == "virtualhost":
                what = f"<virtualhost> is not closed before the next one, on line {place.line}"
                self.report.problem(frame.place, what, "add </virtualhost>")
                del self._frames[at:]
                return

    @property
    def _sink(self) -> list[Directive]:
        return self._frames[-1].sink if self._frames else self.root

    def _close(self, name: str, place: Place, base: int, line: Line) -> None:
        frames = self._frames
        if frames and frames[-1].macro is not None and name != "macro":
            frames[-1].macro.lines.append(line)
            return
        at = next(
            (at for at in range(len(frames) - 1, base - 1, -1) if frames[at].name == name), -1
        )
        if at < 0:
            what = f"</{name}> closes no section"
            self.report.problem(place, what, "it was skipped; remove it, or add the line before")
            return
        for frame in reversed(frames[at + 1 :]):
            what = f"<{frame.name}> is not closed before </{name}>"
            self.report.problem(frame.place, what, f"add </{frame.name}>")
        del frames[at:]

    # Directives.

    def _directive(self, place: Place, line: Line) -> None:
        word, _, rest = line.text.replace("\t", " ").partition(" ")
        rest = without_comment(word, rest.strip())
        rest = self._expanded(rest, place)
        name = word.lower()
        found = Directive(name, tuple(split_words(rest)), place, hide_secrets(line.text), rest)
        self._retyped(line, place)
        followed = self._followed.get(name)
        if followed is not None:
            followed(found)
        else:
            if name == "loadmodule":
                self._conditions.load_module(found.arg(0), found.arg(1))
            self._sink.append(found)

    def _retyped(self, line: Line, place: Place) -> None:
        if line.retyped:
            what = "has typographic quotes, dashes or spaces, which httpd does not understand"
            self.report.problem(place, what, "they were read as ASCII; retype them")

    def _expanded(self, text: str, place: Place) -> str:
        expanded, unknown = self._conditions.expand(text)
        for name in unknown:
            what = f"${{{name}}} is not defined"
            self.report.problem(place, what, f"give it with --define {name}=VALUE")
        return expanded

    def _define(self, found: Directive) -> None:
        self._conditions.defines[found.arg(0)] = found.arg(1)
        self.report.say(found, Verdict.SAME, "its value is written where it is used")

    def _undefine(self, found: Directive) -> None:
        self._conditions.defines.pop(found.arg(0), None)
        self.report.say(found, Verdict.SAME, "followed while reading")

    def _set_root(self, found: Directive) -> None:
        self._server_root = self.resolve(found.value) if found.value else ""
        self.report.say(found, Verdict.SAME, "all paths are written in full")

    def _include(self, found: Directive) -> None:
        paths = self._source.expand(self.resolve(found.value)) if found.value else []
        if not paths and (found.name == "include" or not set(found.value) & set("*?[")):
            reason = f"no file {self.resolve(found.value)}; give the file to the command as well"
            self.report.say(found, Verdict.BY_HAND, reason)
            if found.name == "include":
                self.report.note(f"{found.place}: {found.value} was not read, nor any rule in it")
            return
        read = 0
        for path in paths:
            if path in self._reading or self._depth >= MAX_DEPTH:
                what = f"{path} is included in a circle, or too deep"
                self.report.problem(found.place, what, "it was not read again here")
                continue
            try:
                self._read(path, self._source.read(path))
                read += 1
            except OSError as error:
                why = error.strerror or str(error)
                self.report.problem(
                    found.place, f"{path} cannot be read: {why}", "make it readable"
                )
                self.report.note(f"{found.place}: {path} was not read, nor any rule in it")
        self.report.say(found, Verdict.SAME, f"{read} files were read; relay.toml is one file")

    def _use(self, found: Directive) -> None:
        macro = self._macros.get(found.value.lower())
        if macro is None or self._depth >= MAX_DEPTH:
            what = f"there is no macro {found.value}" if macro is None else "macros use each other"
            self.report.problem(found.place, what, "write out its lines here")
            return
        values = dict(zip(macro.parameters, found.args[1:], strict=False))
        pattern = "|".join(map(re.escape, sorted(values, key=len, reverse=True)))
        lines = [
            line._replace(text=re.sub(pattern, lambda each: values[each[0]], line.text))
            if pattern
            else line
            for line in macro.lines
        ]
        self.report.say(found, Verdict.SAME, "the macro was expanded")
        self._take(macro.file, lines)
