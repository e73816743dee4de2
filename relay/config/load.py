"""From configuration files to a `Config`, or to every problem with them at once.

Never: opens a file that the configuration names.
Next: `relay.config.validate.validate`
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from relay.config.explain import key_path_of
from relay.config.include import read_all
from relay.config.lines import Loc
from relay.config.model import Config, Relay
from relay.config.places import Places
from relay.config.sources import nested_too_deeply
from relay.config.unix_addresses import absolute_backends, absolute_listener
from relay.config.validate import validate
from relay.config.values import CREDENTIAL
from relay.credentials import DIRECTORY, directory_of_credentials
from relay.errors import ConfigError, Problem


@dataclass(frozen=True)
class Loaded:
    """A configuration, the files it is from, and the line of every key.

    `without_match`: patterns of `include` that match no file. `directories`: where a
    new file would be included, or a file is that gives a value.
    """

    config: Config
    places: Places
    without_match: tuple[Problem, ...] = ()
    directories: tuple[Path, ...] = ()


def load_config(path: Path) -> Config:
    """The configuration alone; see `load`."""
    return load(path).config


def load(path: Path) -> Loaded:
    """Read and validate a configuration, and make its paths absolute.

    Raises ConfigError with every problem found, in all files.
    """
    source = path.absolute()
    reading = read_all(source)
    places = reading.places
    if reading.broken:  # without these files, most problems would be false
        raise ConfigError(places.locate((*reading.broken, *reading.wrong)))
    try:
        config = validate(places.tables, reading.wrong)
    except RecursionError:  # older releases of tomli limit the depth of tables only by the stack
        raise ConfigError([nested_too_deeply(source)]) from None
    except ConfigError as error:
        raise ConfigError(places.locate_wrong_values(error.problems)) from None
    anchor = _Anchor(places)
    anchored: Config = anchor.of(config, ())
    if anchor.problems:
        raise ConfigError(places.locate(anchor.problems))
    directories = tuple(dict.fromkeys(reading.directories))
    return Loaded(
        _absolute(anchored, source, places), places, tuple(reading.without_match), directories
    )


def load_state_dir(path: Path) -> Path:
    """`relay.state_dir` alone, as an absolute path. Raises ConfigError.

    With it, commands can reach a running relay while its configuration has a mistake.
    """
    reading = read_all(path.absolute())
    loc = ("relay", "state_dir")
    section = reading.places.tables.get("relay", {})
    given = (
        {key: value for key, value in section.items() if key == "state_dir"}
        if isinstance(section, Mapping)
        else {}
    )
    wrong = [each for each in reading.wrong if each.where == "relay.state_dir"]
    if wrong or (not given and reading.broken):
        raise ConfigError(reading.places.locate(wrong or reading.broken))
    try:
        return reading.places.base(loc) / Relay.model_validate(given).state_dir
    except ValidationError:
        problem = Problem(
            "relay.state_dir", "does not name a directory", "write its path in quotes"
        )
        raise ConfigError(reading.places.locate([problem])) from None


def _absolute(config: Config, source: Path, places: Places) -> Config:
    """Also the paths of the keys that have other values beside paths."""
    base = places.base(("log", "access"))
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
        else config.admin.model_copy(
            update={"listen": f"unix:{places.base(('admin', 'listen')) / unix_path}"}
        )
    )
    listeners = tuple(
        absolute_listener(each, places.base(("listener", index, "listen")))
        for index, each in enumerate(config.listener)
    )
    pools = {
        name: absolute_backends(
            pool, [places.base(("pool", name, "backend", i)) for i in range(len(pool.backend))]
        )
        for name, pool in config.pool.items()
    }
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

    def __init__(self, places: Places) -> None:
        self._places = places
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
            return self._places.base(loc) / path
        name = text.removeprefix(CREDENTIAL)
        if self._credentials is not None:
            return self._credentials / name
        what = f"names the credential {name}, but systemd gave this process none"
        remedy = (
            f"add LoadCredential={name}:FILE to the unit; to run a command by hand, set"
            f" {DIRECTORY}=/run/credentials/relay.service"
        )
        self.problems.append(Problem(key_path_of(loc, self._places.tables), what, remedy))
        return path
