"""What the checker says about fetched lists; its file may hold anything."""

from __future__ import annotations

import json

import pytest

from relay.shared.backends_view import read_fetches

GOOD = {"url": "http://a/a.crl", "error": "", "failing_since": None, "confirmed_at": 1.5}


@pytest.fixture
def read(tmp_path):
    def run(data):
        file = tmp_path / "health.json"
        file.write_text(data if isinstance(data, str) else json.dumps(data))
        return read_fetches(file)

    return run


def test_entries_are_read(read):
    assert read({"generation": 1, "lists": [GOOD]}) == [GOOD]


@pytest.mark.parametrize(
    "data",
    [
        "",
        "{",
        [],
        {},
        {"lists": None},
        {"lists": {"a": 1}},
        {"lists": [None, 5, [], {}, {"url": 5, "error": ""}, {"url": "http://a/"}]},
    ],
)
def test_what_is_no_entry_is_left_out(read, data):
    assert read(data) == []


def test_values_are_made_safe_to_show(read):
    wild = {"url": "http://a/\x1b[2J", "error": "x\n" * 5000, "failing_since": 1e300}
    [found] = read({"lists": [wild]})
    assert found["url"].isprintable()
    assert found["error"].isprintable()
    assert len(found["error"]) <= 1024
    assert found["failing_since"] is None
    assert found["confirmed_at"] is None


def test_a_missing_file_has_no_entries(tmp_path):
    assert read_fetches(tmp_path / "health.json") == []
