"""Translates pydantic's errors into messages for operators.

Each says what the key accepts and what to do.

Never: shows pydantic's own words ("tuple", "model", "input") to an operator.
"""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from relay.config.key_path import key_path, listener_paths
from relay.config.lines import Loc
from relay.config.listener_model import AcceptProxy, Listener, Route
from relay.config.model import Config
from relay.config.pool_model import Backend, Pool
from relay.config.section import Keepalive
from relay.errors import Problem

LONGEST_VALUE = 60

# The remedy for each required key that is missing.
_ADD: dict[tuple[type[BaseModel], str], str] = {
    (Config, "listener"): (
        "add a [[listener]] with name, listen and at least one [[listener.route]]"
    ),
    (Config, "pool"): (
        "add a [pool.NAME] with at least one [[pool.NAME.backend]], and name it in a route"
    ),
    (Listener, "name"): (
        'give the listener a name of its own, for example name = "https"; logs and metrics use it'
    ),
    (Listener, "listen"): (
        'say where to accept connections, for example listen = ["0.0.0.0:443", "[::]:443"]'
    ),
    (Listener, "route"): "add at least one [[listener.route]] below it",
    (Route, "pool"): "name the pool that this route leads to",
    (Pool, "backend"): "add at least one [[pool.NAME.backend]] with route and address",
    (Backend, "route"): (
        'give the backend a name inside its pool, for example route = "worker1"; logs and metrics'
        " use it"
    ),
    (Backend, "address"): 'say where the backend is, for example address = "192.0.2.11:443"',
    (AcceptProxy, "from"): (
        "name the balancers that send PROXY headers, for example"
        ' accept_proxy = { from = ["10.0.0.0/8"] }'
    ),
}
# The remedy for a table that is written as another value.
_TABLES: dict[type[BaseModel], str] = {
    AcceptProxy: (
        'write accept_proxy = { from = ["10.0.0.0/8"] } with the addresses of the balancers that'
        " send PROXY headers; no other client may send one"
    ),
    Keepalive: "write keepalive = { idle_s = 60, interval_s = 10, count = 6 }, or false",
}


def quoted(value: object) -> str:
    """A value of the file on one short line, written as in TOML."""
    if isinstance(value, bool | str):
        text = json.dumps(value)
    elif isinstance(value, Mapping):
        return "a table"
    elif isinstance(value, list | tuple):
        return "an empty list" if not value else "a list"
    else:
        try:
            text = str(value)
        except ValueError:  # an integer of more than 4,300 digits
            return "a number of thousands of digits"
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def nearest(wrong: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """The known word with nearly the same spelling; "" if there is none."""
    return next(iter(difflib.get_close_matches(wrong, list(known), n=1, cutoff=likeness)), "")


def fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a section by their keys in the file."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def unwrap(annotation: Any) -> tuple[Any, list[Any]]:
    """The type inside an Annotated, and its constraints."""
    if hasattr(annotation, "__metadata__"):
        constraints: list[Any] = []
        for each in annotation.__metadata__:
            constraints += each.metadata if isinstance(each, FieldInfo) else [each]
        return annotation.__origin__, constraints
    return annotation, []


def choices_of(annotation: Any) -> list[Any]:
    """The members of a union without None; of any other type, the type itself."""
    if get_origin(annotation) in {Union, types.UnionType}:
        return [each for each in get_args(annotation) if each is not type(None)]
    return [annotation]


def accepted(annotation: Any, constraints: Sequence[Any] = ()) -> str:
    """What a key of this type accepts: the end of the sentence "must be …"."""
    choices = choices_of(annotation)
    if len(choices) > 1:
        return " or ".join(accepted(each) for each in choices)
    bare, own = unwrap(choices[0])
    if get_origin(bare) is Literal:
        return " or ".join(quoted(each) for each in get_args(bare))
    if isinstance(bare, type) and issubclass(bare, BaseModel):
        return "a table"
    if get_origin(bare) is dict:
        return "tables, each with its own name"
    if get_origin(bare) is tuple:
        item = unwrap(get_args(bare)[0])[0]
        return (
            "a list of tables ([[…]])"
            if isinstance(item, type) and issubclass(item, BaseModel)
            else "a list of strings"
        )
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a string",
        Path: "a file name in quotes",
    }
    return names[bare] + _bounds([*constraints, *own])


def _bounds(constraints: Sequence[Any]) -> str:
    # Constraints are annotated_types.Ge, Gt or Le. They are told apart by their
    # attribute, because that package is pydantic's dependency, not one of the relay.
    limits = {
        name: getattr(each, name)
        for each in constraints
        for name in ("ge", "gt", "le")
        if hasattr(each, name)
    }
    if "ge" in limits:
        return (
            f" from {limits['ge']} to {limits['le']}"
            if "le" in limits
            else f" from {limits['ge']} up"
        )
    return (
        f" above {limits['gt']} and at most {limits['le']}" if limits.keys() >= {"gt", "le"} else ""
    )


def find(loc: Loc) -> tuple[Any, list[Any], type[BaseModel] | None, Loc]:
    """Follow a pydantic location through the model.

    Returns the type found, its constraints, the model that has the last key, and the
    location without the union members that pydantic appends.
    """
    annotation: Any = Config
    constraints: list[Any] = []
    holder: type[BaseModel] | None = None
    for depth, step in enumerate(loc):
        choices = choices_of(annotation)
        bare = unwrap(choices[0])[0]
        if len(choices) > 1:
            return annotation, constraints, holder, loc[:depth]
        if isinstance(bare, type) and issubclass(bare, BaseModel):
            holder = bare
            field = fields_of(bare).get(str(step))
            if field is None:
                return annotation, [], holder, loc
            annotation, constraints = field.annotation, list(field.metadata)
        elif get_origin(bare) is dict:
            annotation, constraints = get_args(bare)[1], []
        elif get_origin(bare) is tuple:
            annotation, constraints = get_args(bare)[0], []
        else:
            return annotation, constraints, holder, loc[:depth]
    return annotation, constraints, holder, loc


def key_path_of(loc: Loc, raw: Mapping[str, Any]) -> str:
    """A pydantic location as a key path."""
    text = ""
    steps = list(loc)
    if len(steps) > 1 and steps[0] == "listener" and isinstance(steps[1], int):
        listeners = raw["listener"]
        names = [each.get("name") if isinstance(each, Mapping) else None for each in listeners]
        text = listener_paths([each.strip() if isinstance(each, str) else each for each in names])[
            steps[1]
        ]
        steps = steps[2:]
    for step in steps:
        text = f"{text}[{step}]" if isinstance(step, int) else key_path(text, step)
    return text


def unknown_key(key: str, holder: type[BaseModel]) -> tuple[str, str]:
    """What is wrong with a key that the section does not have, and the remedy."""
    sections = _sections_with(key)
    if key == "include" and holder is not Config:
        return "unknown key here", "it belongs at the top of the file, above the first [section]"
    if sections:
        return "unknown key here", f"it belongs in {' or '.join(sections)}"
    meant = meant_key(key, holder)
    if meant:
        return "unknown key", f"did you mean {meant}?"
    return "unknown key", f"known here: {', '.join(_keys(holder))}"


def meant_key(key: str, holder: type[BaseModel]) -> str:
    """The key of this section with nearly the same spelling, or ""."""
    keys = _keys(holder)
    # An abbreviation is a better hint than a similar spelling.
    longer = [each for each in keys if len(key) >= 4 and each.startswith(key)]
    if len(longer) == 1:
        return longer[0]
    # "san_ip" is meant for ip, "dns" for san_dns.
    last = key.rpartition("_")[2]
    ending = [each for each in keys if each == last or each.endswith(f"_{key}")]
    return ending[0] if len(ending) == 1 else nearest(key, keys, 0.7)


def _keys(holder: type[BaseModel]) -> list[str]:
    return [each for each in fields_of(holder) if (holder, each) != (Config, "source")]


def _sections_with(key: str) -> list[str]:
    """The titles of the sections that have this key."""
    sections: dict[str, type[BaseModel]] = {
        "[[listener]]": Listener,
        "[[listener.route]]": Route,
        "[pool.NAME]": Pool,
        "[[pool.NAME.backend]]": Backend,
    }
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            sections[f"[{name}]"] = field.annotation
    return [title for title, model in sections.items() if key in model.model_fields]


def translate(error: Mapping[str, Any], raw: Mapping[str, Any]) -> tuple[Loc, Problem] | None:
    """One pydantic error as the location of the faulty key and a Problem.

    None if the error only repeats another one.
    """
    annotation, constraints, holder, loc = find(error["loc"])
    where = key_path_of(loc, raw) or "the file"
    value, kind = error["input"], error["type"]
    if kind == "extra_forbidden":
        return loc, Problem(where, *unknown_key(str(loc[-1]), holder or Config))
    if kind == "missing":
        return loc, Problem(where, "is missing", _ADD[holder or Config, str(loc[-1])])
    if kind == "bad_path":
        return loc, Problem(where, error["msg"])
    if kind == "too_short":
        # Pydantic also reports this if every item is wrong. Each of them has its own
        # error then.
        return (
            None
            if value
            else (loc, Problem(where, "is empty", _ADD[holder or Config, str(loc[-1])]))
        )
    what = f"must be {accepted(annotation, constraints)}, not {quoted(value)}"
    return loc, Problem(where, what, _shape_remedy(annotation, value))


def _shape_remedy(annotation: Any, value: object) -> str:
    bare = unwrap(choices_of(annotation)[0])[0]
    if bare in _TABLES:
        return _TABLES[bare]
    if get_origin(bare) is tuple and isinstance(value, str):
        return f"write [{quoted(value)}]"
    if get_origin(bare) is tuple and isinstance(value, Mapping):
        return "write its title in double brackets: [[…]]"
    if get_origin(bare) is Literal and isinstance(value, str):
        words = {each.lower(): each for each in get_args(bare)}
        near = nearest(value.lower(), words)
        return f"did you mean {quoted(words[near])}?" if near else ""
    if (
        bare in {int, float}
        and isinstance(value, str)
        and value.strip().replace(".", "", 1).isdigit()
    ):
        return f"write it without quotes: {value.strip()}"
    if bare is str and isinstance(value, int | float) and not isinstance(value, bool):
        return f"write it in quotes: {quoted(str(value))}"
    if bare is bool and isinstance(value, str | int) and not isinstance(value, bool):
        return "TOML's booleans are true and false, without quotes"
    return ""
