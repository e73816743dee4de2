"""Replaces ${VARIABLE} and ${file:PATH} in the strings of a configuration file.

`$${` stands for `${`. A key that wants a number or a boolean may have one reference as
its value: the text becomes what the key wants.

Never: shows what a file of ${file:…} contains.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

from relay.config.explain import choices_of, find, key_path_of, quoted, unwrap
from relay.config.lines import Loc
from relay.config.sources import Source
from relay.credentials import DIRECTORY, directory_of_credentials
from relay.errors import Problem, describe_error
from relay.files import NotRegularError, read_regular

MAX_VALUE_BYTES = 64 * 1024
_REFERENCE = re.compile(r"\$(\$\{|\{([^{}]*)(\}?))")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FILE = "file:"
_WAYS = "write ${VARIABLE}, ${file:PATH}, or $${ for the two characters"
_NUMBER = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")
_BOOLEANS = {"true": True, "false": False}


def replace_references(source: Source) -> list[Problem]:
    """Replace all references in place. Returns what is wrong with them.

    A string with a wrong reference stays as it is.
    """
    replacing = _Replacing(source)
    replacing.table(source.tables, ())
    return replacing.problems


class _Replacing:
    def __init__(self, source: Source) -> None:
        self._source = source
        self.problems: list[Problem] = []

    def table(self, table: dict[str, Any], loc: Loc) -> None:
        for key, value in table.items():
            table[key] = self._value(value, (*loc, key))

    def _value(self, value: Any, loc: Loc) -> Any:
        if isinstance(value, str) and "${" in value:
            return self._string(value, loc)
        if isinstance(value, dict):
            self.table(value, loc)
        elif isinstance(value, list):
            value[:] = [self._value(each, (*loc, index)) for index, each in enumerate(value)]
        return value

    def _string(self, text: str, loc: Loc) -> Any:
        parts: list[str] = []
        files: list[str] = []
        end = 0
        for match in _REFERENCE.finditer(text):
            parts.append(text[end : match.start()])
            end = match.end()
            if match[1] == "${":  # escaped
                parts.append("${")
                continue
            try:
                parts.append(self._look_up(match[2], is_closed=bool(match[3])))
            except _WrongError as error:
                self._add(loc, error)
                return text
            if match[2].startswith(_FILE):
                files.append(match[0])
                self._source.secrets[match[0]] = parts[-1]
        value = "".join((*parts, text[end:]))
        if files:
            self._source.references[loc] = ", ".join(dict.fromkeys(files))
        only = _REFERENCE.fullmatch(text)
        return _typed(value, loc) if only is not None and only[1] != "${" else value

    def _add(self, loc: Loc, error: _WrongError) -> None:
        where = key_path_of(loc, self._source.tables)
        place = self._source.place(loc)
        self.problems.append(Problem(where, error.what, error.remedy, place=place))

    def _look_up(self, name: str, *, is_closed: bool) -> str:
        """The value of a reference. Raises _WrongError."""
        written = quoted(f"${{{name}}}" if is_closed else f"${{{name}")
        if not is_closed:
            raise _WrongError(f"{written} has no closing brace", _WAYS)
        if name.startswith(_FILE):
            return self._contents(name.removeprefix(_FILE))
        if not _VARIABLE.fullmatch(name):
            what = f"{written} is not the name of an environment variable"
            raise _WrongError(what, _WAYS)
        value = os.environ.get(name)
        if value is None:
            what = f"the environment variable {name} is not set"
            remedy = f"set it, in the systemd unit with Environment={name}=…, or write the value"
            raise _WrongError(what, remedy)
        if fault := _fault_of(value):
            what = f"the value of the environment variable {name} {fault}"
            raise _WrongError(what, "set it to one line of text")
        return value

    def _contents(self, name: str) -> str:
        """The line in the file of ${file:NAME}. Raises _WrongError."""
        if not name.strip() or not name.isprintable():
            raise _WrongError("${file:} does not name a file", "write ${file:PATH}")
        path = self._path(name.strip())
        self._source.value_files.append(path)
        try:
            data, _ = read_regular(path, MAX_VALUE_BYTES)
        except IsADirectoryError:
            raise _WrongError(f"{path} is a directory", "name the file in it") from None
        except NotRegularError as error:
            raise _WrongError(f"{path}: {error.strerror}", "name a regular file") from None
        except OSError as error:
            what = f"{path} cannot be read: {describe_error(error)}"
            remedy = "create it, or change its owner or mode, or name another file"
            raise _WrongError(what, remedy) from None
        one_line = f"write one line of text into {path}"
        if len(data) > MAX_VALUE_BYTES:
            raise _WrongError(f"{path} is larger than {MAX_VALUE_BYTES} bytes", one_line)
        try:
            value = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise _WrongError(f"{path} is not UTF-8", one_line) from None
        value = value.removesuffix("\n").removesuffix("\r")
        if fault := _fault_of(value):
            raise _WrongError(f"the value in {path} {fault}", one_line)
        if not value:
            raise _WrongError(f"{path} is empty", one_line)
        return value

    def _path(self, name: str) -> Path:
        credential = name.removeprefix("credential:")
        if credential == name or "/" in name:
            return self._source.path.parent / name
        directory = directory_of_credentials()
        if directory is None:
            what = f"names the credential {credential}, but systemd gave this process none"
            remedy = f"add LoadCredential={credential}:FILE to the unit, or set {DIRECTORY}"
            raise _WrongError(what, remedy)
        return directory / credential


class _WrongError(Exception):
    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy


def _fault_of(value: str) -> str:
    """Why a text cannot be a value; "" if it can."""
    if "\n" in value or "\r" in value:
        return "has several lines"
    if "\0" in value:
        return "has a zero byte"
    try:
        value.encode()
    except UnicodeEncodeError:  # the environment has bytes
        return "is not UTF-8"
    return ""


def _typed(text: str, loc: Loc) -> Any:
    """The text as the type that this key wants, if the text can be that."""
    bare = text.strip()
    for wanted in _types_at(loc):
        if wanted is str:
            return text
        if wanted is bool and bare in _BOOLEANS:
            return _BOOLEANS[bare]
        if wanted in {int, float} and _NUMBER.fullmatch(bare) and len(bare) < 20:
            return int(bare)
        if wanted is float and re.fullmatch(r"[+-]?[0-9]+\.[0-9]+", bare):
            return float(bare)
    return text


def _types_at(loc: Loc) -> Iterator[Any]:
    """The types that the model takes at this location."""
    annotation, _, _, found = find(loc)
    if found == loc:
        for each in choices_of(annotation):
            bare = unwrap(each)[0]
            yield get_origin(bare) or bare
