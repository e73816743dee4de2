"""From a configuration file to a `Config`, or to every problem with it at once.

Never: opens a file that the configuration names.
Next: `relay.config.validate.validate`
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli
from pydantic import BaseModel, ValidationError

from relay.config.explain import Loc, key_path_of
from relay.config.model import Config, Relay
from relay.config.unix_addresses import absolute_backends, absolute_listener
from relay.config.validate import validate
from relay.config.values import CREDENTIAL
from relay.credentials import DIRECTORY, directory_of_credentials
from relay.errors import ConfigError, Problem
from relay.files import NotRegularError, read_regular

DEFAULT_PATHS = (Path("relay.toml"), Path("/etc/relay/relay.toml"))
MAX_FILE_BYTES = 4 * 1024 * 1024
_EXAMPLE = "see conf/relay.toml for an example of every key"


def find_config(explicit: Path | None) -> Path:
    """The absolute path of the configuration file to use.

    This is the given one, or the first of DEFAULT_PATHS that exists. Raises
    ConfigError if none exists.
    """
    if explicit is not None:
        return explicit.absolute()
    for candidate in DEFAULT_PATHS:
        try:
            candidate.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            pass  # it may exist; load_config says why it cannot be read
        return candidate.absolute()
    looked = " and ".join(str(each.absolute()) for each in DEFAULT_PATHS)
    raise ConfigError(
        [
            Problem(
                "configuration",
                f"no file found; looked for {looked}",
                "name one with --config FILE, or try: relay demo",
            )
        ]
    )


def load_config(path: Path) -> Config:
    """Read and validate a configuration, and make its paths absolute.

    Raises ConfigError with every problem found.
    """
    source = path.absolute()
    raw = _parse(source, _read(source))
    try:
        config = validate(raw)
    except RecursionError:  # older releases of tomli limit the depth of tables only by the stack
        raise ConfigError([_nested(source)]) from None
    anchor = _Anchor(source.parent, raw)
    anchored: Config = anchor.of(config, ())
    if anchor.problems:
        raise ConfigError(anchor.problems)
    return _absolute(anchored, source)


def load_state_dir(path: Path) -> Path:
    """`relay.state_dir` alone, as an absolute path. Raises ConfigError.

    With it, commands can reach a running relay while its configuration file has a
    mistake.
    """
    source = path.absolute()
    section = _parse(source, _read(source)).get("relay", {})
    given = (
        {key: value for key, value in section.items() if key == "state_dir"}
        if isinstance(section, Mapping)
        else {}
    )
    try:
        return source.parent / Relay.model_validate(given).state_dir
    except ValidationError:
        raise ConfigError(
            [Problem("relay.state_dir", "does not name a directory", "write its path in quotes")]
        ) from None


def _read(path: Path) -> str:
    where = str(path)
    try:
        data, _ = read_regular(path, MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        what, remedy = _why_unreadable(error)
        # A name with a NUL, a line break or the like must stay on one printable line.
        where = where if where.isprintable() else ascii(where)[1:-1]
        raise ConfigError([Problem(where, what, remedy)]) from None
    if len(data) > MAX_FILE_BYTES:
        what = f"is larger than {MAX_FILE_BYTES} bytes"
        raise ConfigError([Problem(where, what, "name a configuration file with --config FILE")])
    try:
        # Editors on Windows start files with a byte order mark.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = f"is not UTF-8: byte 0x{data[error.start]:02x} on line {line}"
        raise ConfigError([Problem(f"{where}:{line}", what, "save it as UTF-8")]) from None


def _why_unreadable(error: Exception) -> tuple[str, str]:
    """What is wrong with a file that cannot be read, and the remedy."""
    if isinstance(error, IsADirectoryError):
        return "is a directory", "name the file in it"
    if isinstance(error, NotRegularError):
        return (
            "is not a regular file",
            "write the configuration to a regular file: a reload reads it again",
        )
    if isinstance(error, FileNotFoundError):
        return "does not exist", "create it, or name another one with --config FILE"
    if isinstance(error, PermissionError):
        return (
            "may not be read by this user",
            "change its owner or mode, or those of its directory",
        )
    # A ValueError is a NUL in the name.
    why = error.strerror if isinstance(error, OSError) else str(error)
    return f"cannot be read: {why}", "name another file with --config FILE"


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        what, line, column = _syntax(str(error), text)
        remedy = (
            'look at this line: put text in "quotes" and lists in [brackets], and open every'
            " table only once"
        )
        raise ConfigError(
            [Problem(f"{path}:{line}:{column}", f"{what} (line {line}, column {column})", remedy)]
        ) from None
    except (RecursionError, ValueError) as error:
        # tomli does not catch these: brackets nested hundreds deep, and integers of
        # thousands of digits.
        if isinstance(error, RecursionError):
            raise ConfigError([_nested(path)]) from None
        raise ConfigError(
            [Problem(str(path), "has a number of thousands of digits", _EXAMPLE)]
        ) from None


def _nested(path: Path) -> Problem:
    return Problem(str(path), "is nested too deeply", _EXAMPLE)


def _syntax(message: str, text: str) -> tuple[str, int, int]:
    """The parts of tomli's message: what is wrong, line and column, both from 1."""
    located = re.fullmatch(
        r"(.*?) \(at (?:line (\d+), column (\d+)|end of document)\)", message, re.DOTALL
    )
    what = ascii(located[1] if located else message)[1:-1]
    if located and located[2]:
        return what, int(located[2]), int(located[3])
    return what, text.count("\n") + 1, len(text) - text.rfind("\n")


def _absolute(config: Config, source: Path) -> Config:
    """Also the paths of the keys that have other values beside paths."""
    base = source.parent
    access = config.log.access
    if access not in {"", "-"} and not Path(access).is_absolute():
        # A name with "%" is a strftime pattern. A "%" in the directory's own name must
        # not become a field of it.
        directory = str(base).replace("%", "%%") if "%" in access else str(base)
        # Path would drop a trailing slash, which says that a directory is meant.
        access = os.path.join(directory, access)  # noqa: PTH118
    unix_path = config.admin.unix_path
    admin = (
        config.admin
        if unix_path is None
        else config.admin.model_copy(update={"listen": f"unix:{base / unix_path}"})
    )
    listeners = tuple(absolute_listener(each, base) for each in config.listener)
    pools = {name: absolute_backends(pool, base) for name, pool in config.pool.items()}
    return config.model_copy(
        update={
            "pool": pools,
            "listener": listeners,
            "log": config.log.model_copy(update={"access": access}),
            "admin": admin,
            "source": source,
        }
    )


class _Anchor:
    """Makes every path of a configuration absolute, and notes what cannot be found."""

    def __init__(self, base: Path, raw: Mapping[str, Any]) -> None:
        self._base = base
        self._raw = raw
        self._credentials = directory_of_credentials()
        self.problems: list[Problem] = []

    def of(self, value: Any, loc: Loc) -> Any:
        """The same value with every relative path in it made absolute."""
        if isinstance(value, Path):
            return self._file(value, loc)
        if isinstance(value, tuple):
            return tuple(self.of(each, (*loc, index)) for index, each in enumerate(value))
        if isinstance(value, Mapping):
            return {name: self.of(each, (*loc, name)) for name, each in value.items()}
        if isinstance(value, BaseModel):
            changed = {
                name: self.of(getattr(value, name), (*loc, name))
                for name in type(value).model_fields
            }
            # model_copy marks the given fields as set; a default must stay a default.
            return value.model_copy(
                update={name: new for name, new in changed.items() if new != getattr(value, name)}
            )
        return value

    def _file(self, path: Path, loc: Loc) -> Path:
        text = str(path)
        if not text.startswith(CREDENTIAL) or loc == ("source",):
            return self._base / path
        name = text.removeprefix(CREDENTIAL)
        if self._credentials is not None:
            return self._credentials / name
        what = f"names the credential {name}, but systemd gave this process none"
        remedy = (
            f"add LoadCredential={name}:FILE to the unit; to run a command by hand, set"
            f" {DIRECTORY}=/run/credentials/relay.service"
        )
        self.problems.append(Problem(key_path_of(loc, self._raw), what, remedy))
        return path
