"""From the tables of a TOML file to a `Config`, with every problem found.

Pydantic reports every key of the wrong shape. Each such key is then replaced by its
default, or by a stand-in, so that the rules across keys can be checked in the same run.
What a rule says about a replaced key is dropped, because that key was reported before.

Never: reads a file.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from relay.config.explain import (
    choices_of,
    fields_of,
    find,
    key_path_of,
    meant_key,
    translate,
    unknown_key,
    unwrap,
)
from relay.config.lines import Loc
from relay.config.model import Config
from relay.config.rules.general import check_rules
from relay.errors import ConfigError, Problem

# One round replaces every wrong key. Another round is needed only if a replacement
# reveals a further wrong key.
_ROUNDS = 4


def validate(raw: dict[str, Any], known: Iterable[Problem] = ()) -> Config:
    """The configuration in these tables. Raises ConfigError with every problem found.

    The `known` problems are among them; nothing else is said of their keys. Changes
    `raw` if it has a key that only the model may have. Raises RecursionError
    for tables that are nested too deeply.
    """
    known = list(known)
    problems = {each.where: each for each in known}
    if "source" in raw:  # a field of the model, but not a key of the file
        problems["source"] = Problem("source", *unknown_key("source", Config))
        del raw["source"]
    _name_tables(raw)
    misspelt: set[str] = set()
    config = _validate(raw, problems, misspelt)
    found = known + [each for each in problems.values() if each not in known]
    if config is not None:
        found += check_rules(config, frozenset(problems.keys() | misspelt))
    if found or config is None:
        raise ConfigError(found)
    return config


def _name_tables(raw: dict[str, Any]) -> None:
    """Take a table that is named like the short form of `crl` for `crl`."""
    pools, listeners = raw.get("pool"), raw.get("listener")
    routes = [
        route
        for each in (listeners if isinstance(listeners, list) else [])
        if isinstance(each, dict) and isinstance(each.get("route"), list)
        for route in each["route"]
    ]
    sections = [
        ("backend_crl", each) for each in (pools.values() if isinstance(pools, dict) else [])
    ]
    for short, section in (*sections, *(("client_crl", each) for each in routes)):
        if (
            isinstance(section, dict)
            and isinstance(section.get(short), dict)
            and "crl" not in section
        ):
            section["crl"] = section.pop(short)


def _validate(
    raw: dict[str, Any], problems: dict[str, Problem], misspelt: set[str]
) -> Config | None:
    """The model of `raw` with its wrong keys replaced; None if that is not possible.

    Adds to `problems`, by key path, what had to be replaced. Adds to `misspelt` the key
    paths that are missing because an unknown key is nearly spelled like them.
    """
    repaired = raw
    for _ in range(_ROUNDS):
        try:
            return Config.model_validate(repaired)
        except ValidationError as error:
            errors = error.errors(include_url=False)
        if repaired is raw:
            repaired = copy.deepcopy(raw)
            misspelt |= {
                missed
                for each in errors
                if each["type"] == "extra_forbidden" and (missed := _missed(each["loc"], raw))
            }
        for each in errors:
            translated = translate(each, raw)
            if translated is not None:
                loc, problem = translated
                if problem.where not in misspelt:
                    problems.setdefault(problem.where, problem)
                _replace(repaired, loc, unknown=each["type"] == "extra_forbidden")
    return None


def _missed(loc: Loc, raw: Mapping[str, Any]) -> str:
    """The path of the missing key that this unknown key was meant to be, or ""."""
    holder = find(loc)[2]
    parent: Any = raw
    for step in loc[:-1]:
        parent = parent[step]
    meant = meant_key(str(loc[-1]), holder) if holder is not None else ""
    return key_path_of((*loc[:-1], meant), raw) if meant and meant not in parent else ""


def _replace(raw: dict[str, Any], loc: Loc, *, unknown: bool) -> None:
    """Drop the key at `loc`, or put a stand-in there if the model requires the key."""
    *path, last = loc
    parent: Any = raw
    for step in path:
        parent = parent[step]
    annotation, _, holder, _ = find(loc)
    in_model = holder is not None and not isinstance(last, int)
    field = fields_of(holder).get(str(last)) if in_model and holder is not None else None
    if unknown or (field is not None and not field.is_required()):
        parent.pop(last, None)
    else:
        parent[last] = _stand_in(annotation, key_path_of(loc, raw))


def _stand_in(annotation: Any, where: str) -> Any:
    """The smallest value of a type.

    Its strings are not valid names and differ from all others, so that no rule sees two
    equal ones.
    """
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
            for name, field in fields_of(bare).items()
            if field.is_required()
        }
    return f"? {where}"
