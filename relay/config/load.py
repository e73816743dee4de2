"""From a TOML file to a `Config`, or to every problem there is with it, at once.

Never: opens a file that the configuration names, or decides about features (that is `config.rules.general`).

How all problems come out at once: pydantic reports every key of the wrong shape. Each such key is then replaced by its default, or by a stand-in, so that
the rules across keys can be judged too; what a rule says about a replaced key is dropped, for it was reported before.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import tomli
from pydantic import BaseModel, ValidationError

from relay.config.explain import (
    Loc,
    choices_of,
    find,
    meant_key,
    place,
    translate,
    unknown_key,
    unwrap,
)
from relay.config.model import Config, Relay
from relay.config.rules.general import check_rules
from relay.errors import ConfigError, Problem
from relay.files import NotRegularError, read_regular

DEFAULT_PLACES = (Path("relay.toml"), Path("/etc/relay/relay.toml"))
MAX_FILE_BYTES = 4 * 1024 * 1024
# One round mends every key; more are needed only where a mended key uncovers another.
_MENDING_ROUNDS = 4
_EXAMPLE = "see conf/relay.toml for what a configuration looks like"


def find_config(explicit: Path | None) -> Path:
    """The configuration file to use, absolute: the given one, else ./relay.toml, else /etc/relay/relay.toml. Raises ConfigError when there is none."""
    if explicit is not None:
        return explicit.absolute()
    for candidate in DEFAULT_PLACES:
        try:
            candidate.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            pass  # it is there, or nobody knows: load_config says why it cannot be read
        return candidate.absolute()
    looked = " and ".join(str(each.absolute()) for each in DEFAULT_PLACES)
    raise ConfigError(
        [
            Problem(
                "configuration",
                f"no file found; looked at {looked}",
                "name one with --config FILE, or try: relay demo",
            )
        ]
    )


def load_config(path: Path) -> Config:
    """Read, validate and complete a configuration. Raises ConfigError with every problem found."""
    source = path.absolute()
    raw = _parse(source, _read(source))
    problems: dict[str, Problem] = {}
    if "source" in raw:  # a field of the model, but not a key of the file
        problems["source"] = Problem("source", *unknown_key("source", Config))
        del raw["source"]
    misspelt: set[str] = set()
    try:
        config = _validate(raw, problems, misspelt)
    except RecursionError:  # older releases of tomli take tables nested as deep as the stack
        raise ConfigError([_nested(source)]) from None
    found = list(problems.values())
    if config is not None:
        found += check_rules(config, frozenset(problems.keys() | misspelt))
    if found or config is None:
        raise ConfigError(found)
    return _absolute(config, source)


def load_state_dir(path: Path) -> Path:
    """`relay.state_dir` alone, absolute: a running relay can be asked and stopped although its file has a mistake now. Raises ConfigError."""
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
    except IsADirectoryError:
        raise ConfigError([Problem(where, "is a directory", "name the file in it")]) from None
    except NotRegularError:
        raise ConfigError(
            [
                Problem(
                    where,
                    "is not a regular file",
                    "write the configuration to a file; a reload reads it again",
                )
            ]
        ) from None
    except FileNotFoundError:
        raise ConfigError(
            [Problem(where, "does not exist", "create it, or name another one with --config FILE")]
        ) from None
    except PermissionError:
        raise ConfigError(
            [
                Problem(
                    where,
                    "may not be read by this user",
                    "change its owner or mode, or those of its directory",
                )
            ]
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(
            [
                Problem(
                    ascii(where)[1:-1],
                    f"cannot be read: {why}",
                    "name another file with --config FILE",
                )
            ]
        ) from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(
            [
                Problem(
                    where, f"is larger than {MAX_FILE_BYTES} bytes", "name the configuration file"
                )
            ]
        )
    try:
        # Editors on Windows begin files with a byte order mark.
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            [
                Problem(
                    f"{where}:{line}",
                    f"is not UTF-8: byte 0x{data[error.start]:02x} on line {line}",
                    "save it as UTF-8",
                )
            ]
        ) from None


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        what, line, column = _syntax(str(error), text)
        remedy = 'see the line; text goes in "quotes", lists in [brackets], and every table is opened once'
        raise ConfigError(
            [Problem(f"{path}:{line}:{column}", f"{what} (line {line}, column {column})", remedy)]
        ) from None
    except (RecursionError, ValueError) as error:
        # tomli lets these out: brackets nested hundreds deep, integers of thousands of digits.
        if isinstance(error, RecursionError):
            raise ConfigError([_nested(path)]) from None
        raise ConfigError(
            [Problem(str(path), "has a number of thousands of digits", _EXAMPLE)]
        ) from None


def _nested(path: Path) -> Problem:
    return Problem(str(path), "is nested too deeply", _EXAMPLE)


def _syntax(message: str, text: str) -> tuple[str, int, int]:
    """Tomli's message as what it says, line and column; both are counted from 1."""
    located = re.fullmatch(
        r"(.*?) \(at (?:line (\d+), column (\d+)|end of document)\)", message, re.DOTALL
    )
    what = ascii(located[1] if located else message)[1:-1]
    if located and located[2]:
        return what, int(located[2]), int(located[3])
    return what, text.count("\n") + 1, len(text) - text.rfind("\n")


def _validate(
    raw: dict[str, Any], problems: dict[str, Problem], misspelt: set[str]
) -> Config | None:
    """The model of `raw`, as far as it can be mended; None when the rules cannot be judged.

    `problems` gets what had to be mended, by place; `misspelt` the places of keys that are missing because an unknown key nearly has their name.
    """
    mended = raw
    for _ in range(_MENDING_ROUNDS):
        try:
            return Config.model_validate(mended)
        except ValidationError as error:
            errors = error.errors(include_url=False)
        if mended is raw:
            mended = copy.deepcopy(raw)
            misspelt |= {
                missed
                for each in errors
                if each["type"] == "extra_forbidden" and (missed := _missed(each["loc"], raw))
            }
        for each in errors:
            told = translate(each, raw)
            if told is not None:
                loc, problem = told
                if problem.where not in misspelt:
                    problems.setdefault(problem.where, problem)
                _mend(mended, loc, unknown=each["type"] == "extra_forbidden")
    return None


def _missed(loc: Loc, raw: Mapping[str, Any]) -> str:
    """The place of the key that an unknown key was meant to be, when it is not there under its right name; else ""."""
    holder = find(loc)[2]
    parent: Any = raw
    for step in loc[:-1]:
        parent = parent[step]
    meant = meant_key(str(loc[-1]), holder) if holder is not None else ""
    return place((*loc[:-1], meant), raw) if meant and meant not in parent else ""


def _mend(raw: dict[str, Any], loc: Loc, *, unknown: bool) -> None:
    """Drop the key at `loc`, or put a stand-in of the right shape there when the model cannot do without it."""
    *path, last = loc
    parent: Any = raw
    for step in path:
        parent = parent[step]
    annotation, _, holder, _ = find(loc)
    field = (
        holder.model_fields.get(str(last))
        if holder is not None and not isinstance(last, int)
        else None
    )
    if unknown or (field is not None and not field.is_required()):
        parent.pop(last, None)
    else:
        parent[last] = _stand_in(annotation, place(loc, raw))


def _stand_in(annotation: Any, where: str) -> Any:
    """The smallest value of a type. Its strings are no valid names and differ from all others, so no rule takes two of them for one."""
    bare = unwrap(choices_of(annotation)[0])[0]
    if bare is Path:
        return Path("?")
    if get_origin(bare) is tuple:
        return [_stand_in(get_args(bare)[0], f"{where}[0]")]
    if get_origin(bare) is dict:
        return {"?": _stand_in(get_args(bare)[1], where)}
    if isinstance(bare, type) and issubclass(bare, BaseModel):
        return {
            name: _stand_in(field.annotation, f"{where}.{name}")
            for name, field in bare.model_fields.items()
            if field.is_required()
        }
    return f"? {where}"


def _absolute(config: Config, source: Path) -> Config:
    base = source.parent
    access = config.log.access
    if access not in {"", "-"} and not Path(access).is_absolute():
        # The name is a strftime pattern only if it has a "%"; then one in the directory's own name must not be taken for a field.
        directory = str(base).replace("%", "%%") if "%" in access else str(base)
        access = os.path.join(directory, access)  # noqa: PTH118 - Path would drop a trailing slash, which says that a directory is meant
    anchored: Config = _anchor(config, base)
    unix_path = config.admin.unix_path
    admin = (
        anchored.admin
        if unix_path is None
        else anchored.admin.model_copy(update={"listen": f"unix:{base / unix_path}"})
    )
    return anchored.model_copy(
        update={
            "log": anchored.log.model_copy(update={"access": access}),
            "admin": admin,
            "source": source,
        }
    )


def _anchor(value: Any, base: Path) -> Any:
    """The same value with every relative path in it made absolute."""
    if isinstance(value, Path):
        return base / value
    if isinstance(value, tuple):
        return tuple(_anchor(each, base) for each in value)
    if isinstance(value, Mapping):
        return {name: _anchor(each, base) for name, each in value.items()}
    if isinstance(value, BaseModel):
        changed = {name: _anchor(getattr(value, name), base) for name in type(value).model_fields}
        # model_copy marks what it is given as set; a default must stay a default.
        return value.model_copy(
            update={name: new for name, new in changed.items() if new != getattr(value, name)}
        )
    return value
