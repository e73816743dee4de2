"""Any file at all is a configuration or a list of problems, never another exception."""

from __future__ import annotations

import copy
import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
import tomli
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from relay.config.load import load_config
from relay.config.model import Config
from relay.errors import ConfigError

# Every section derives from one model.
SECTIONS = Config.__base__.__subclasses__()
KEYS = sorted({key for section in SECTIONS for key in section.model_fields})

TEXTS = st.sampled_from(
    [
        "",
        " ",
        "web",
        "https",
        "*",
        "*.example.com",
        "a.example.com",
        "127.0.0.1:0",
        "[::1]:443",
        "%",
        "-",
        "hash",
        "TLSv1.3",
        "\n",
        "\x00",
        "ü",
    ]
) | st.text(max_size=20)
SCALARS = (
    TEXTS
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -1, 0, 1, 65536])
    | st.floats()
    | st.datetimes().map(lambda at: at.replace(fold=0))
    | st.dates()
    | st.times().map(lambda at: at.replace(fold=0))
)
NAMES = st.sampled_from(KEYS) | TEXTS
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)


def render(value: Any) -> str:
    """A value in TOML, everything inline."""
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(
                f"{json.dumps(key, ensure_ascii=False)} = {render(each)}"
                for key, each in value.items()
            )
            + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(render, value)) + "]"
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


def check(file: Path, data: bytes) -> tuple[str, ...] | Config:
    file.write_bytes(data)
    try:
        return load_config(file)
    except ConfigError as error:
        lines = tuple(map(str, error.problems))
        assert lines
        assert all(line.isprintable() and len(line) < 2000 for line in lines), lines
        places = [problem.where for problem in error.problems]
        assert all(places), lines
        return lines


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("nonsense") / "relay.toml"


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_a_configuration_or_problems(file, data):
    assert isinstance(check(file, data), tuple)


@settings(deadline=None)
@given(st.text(alphabet="[]{}=.,\"'#\n\\ab1-_ \t", max_size=80))
def test_text_that_looks_like_toml_ends_in_problems(file, text):
    assert isinstance(check(file, text.encode()), tuple)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(Config.model_fields)) | NAMES, VALUES, max_size=5))
def test_any_table_is_a_configuration_or_problems(file, tree):
    check(
        file,
        "\n".join(
            f"{json.dumps(key, ensure_ascii=False)} = {render(value)}"
            for key, value in tree.items()
        ).encode(),
    )


def paths(tree: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every value in the tree."""
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    return [way for key, each in items for way in ((*here, key), *paths(each, (*here, key)))]


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_file_is_a_configuration_or_problems(file, right, data):
    tree = copy.deepcopy(tomli.loads(right))
    for _ in range(data.draw(st.integers(1, 6))):
        ways = paths(tree)
        if not ways:
            break
        *way, last = data.draw(st.sampled_from(ways))
        parent = tree
        for step in way:
            parent = parent[step]
        kind = data.draw(st.sampled_from(["replace", "delete", "add"]))
        if kind == "delete":
            del parent[last]
        elif kind == "add" and isinstance(parent, dict):
            parent[data.draw(NAMES)] = data.draw(VALUES)
        else:
            parent[last] = data.draw(VALUES)
    result = check(
        file,
        "\n".join(
            f"{json.dumps(key, ensure_ascii=False)} = {render(value)}"
            for key, value in tree.items()
        ).encode(),
    )
    event("a configuration" if isinstance(result, Config) else "problems")


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_every_damaged_key_is_reported(file, right, data):
    tree = tomli.loads(right)
    leaves = [way for way in paths(tree) if not isinstance(_at(tree, way), dict | list)]
    damaged = data.draw(st.lists(st.sampled_from(leaves), min_size=1, max_size=10, unique=True))
    for *way, last in damaged:
        _at(tree, way)[last] = 4711.5  # no key accepts this
    lines = check(
        file,
        "\n".join(f"{json.dumps(key)} = {render(value)}" for key, value in tree.items()).encode(),
    )
    assert isinstance(lines, tuple)
    assert sum("not 4711.5" in line for line in lines) == len(damaged), lines
    assert len(lines) == len(damaged), lines


def _at(tree: Any, way: Any) -> Any:
    for step in way:
        tree = tree[step]
    return tree
