"""docs/logs.md agrees with the fields and directives of the access log."""

from __future__ import annotations

import json
import re

from relay.logs.access_format import compile_format
from relay.logs.access_record import FIELDS, Record
from relay.logs.apache_format import DIRECTIVES
from tests.support.gateway import ROOT

PAGE = (ROOT / "docs" / "logs.md").read_text(encoding="utf-8")


def first_column(name):
    """The code words in the first column of the table after `<!-- name -->`."""
    (found,) = re.findall(f"<!-- {name} -->(.*?)<!-- /{name} -->", PAGE, re.DOTALL)
    cells = [line.split(" | ")[0] for line in found.strip().splitlines()[2:]]
    return [word for cell in cells for word in re.findall(r"`([^`]+)`", cell)]


def test_the_page_has_every_field_in_its_order():
    assert first_column("fields") == list(FIELDS)


def test_the_page_has_every_directive():
    listed = set(first_column("directives"))
    assert listed - {"%>s", "%{FIELD}n"} == {*DIRECTIVES, "%t", "%%"} - {
        f"%{{{field}}}n" for field in FIELDS
    }
    for directive in listed - {"%{FIELD}n"}:
        assert compile_format(directive)(Record(time=1.0))


def test_the_page_shows_a_line_with_every_field():
    (line,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert list(json.loads(line)) == list(FIELDS)
