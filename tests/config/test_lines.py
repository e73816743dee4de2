"""The lines of keys, compared with what the TOML library reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as some

from relay.config.lines import lines_of
from relay.errors import Problem

CONF = Path(__file__).resolve().parents[2] / "conf"

TEXT = '''\
top = 1  # [no.section]
"quoted \\u0041.b".c = """
[not.a.section]
x = 1 """
when = 1979-05-27 07:32:00
[[list]]
inline = [ { z = 1, w = [1,
  2, "]" ] }, # ]
  { z = 2 } ,]
[list.table]
k = 'a # b'
[[list.inner]]
[[list.inner]]
empty = {}
[[list]]
[[list.inner]]
m = "a\\"]" # "
[a.b.c]
'''


def locations(value, loc=()):
    yield loc
    items = value.items() if isinstance(value, dict) else ()
    for key, each in enumerate(value) if isinstance(value, list) else items:
        yield from locations(each, (*loc, key))


@pytest.mark.parametrize(
    "text",
    [TEXT, TEXT.replace("\n", "\r\n"), *(file.read_text() for file in CONF.rglob("*.toml"))],
    ids=lambda text: text[:20].strip(),
)
def test_every_location_has_a_line_and_nothing_else_has(text):
    assert lines_of(text).keys() == set(locations(tomli.loads(text)))


@pytest.mark.parametrize(
    ("loc", "line"),
    [
        (("top",), 1),
        (("quoted A.b", "c"), 2),
        (("when",), 5),
        (("list", 0), 6),
        (("list", 0, "inline", 0, "w", 1), 8),
        (("list", 0, "inline", 1, "z"), 9),
        (("list", 0, "table", "k"), 11),
        (("list", 0, "inner", 1, "empty"), 14),
        (("list", 1), 15),
        (("list", 1, "inner", 0, "m"), 17),
        (("a",), 18),
    ],
)
def test_a_line_is_where_the_key_is_written(loc, line):
    assert lines_of(TEXT)[loc] == line


@given(some.text(alphabet="[]{}\"'=.,#\n ab1\\", max_size=60))
def test_no_text_makes_it_fail(text):
    """The library may accept what this does not expect; then lines are missing."""
    found = lines_of(text)
    assert all(1 <= line <= text.count("\n") + 1 for line in found.values())
    try:
        parsed = tomli.loads(text)
    except tomli.TOMLDecodeError:
        return
    assert found.keys() == set(locations(parsed))


def test_of_many_keys_a_line_names_the_first_ones():
    """A CA file of a thousand routes would make a line of 30,000 characters."""
    keys = [f"pool.p{number}.backend_ca" for number in range(1000)]
    few = Problem(", ".join(keys[:6]), "is old")
    assert str(few) == f"{', '.join(keys[:6])}: is old"
    many = Problem(", ".join(keys), "is old", "renew it")
    assert str(many) == f"{', '.join(keys[:3])} and 997 more: is old; renew it"
