"""Which route a server name gets."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.routes import RouteTable


def test_an_exact_name_matches_only_itself():
    table = RouteTable.build([(("app.example.com",), "app")])
    assert table.find("app.example.com") == "app"
    assert table.find("example.com") is None
    assert table.find("x.app.example.com") is None
    assert table.find("") is None


def test_a_wildcard_matches_exactly_one_more_label():
    table = RouteTable.build([(("*.example.com",), "any")])
    assert table.find("a.example.com") == "any"
    assert table.find("b-2.example.com") == "any"
    assert table.find("example.com") is None
    assert table.find("a.b.example.com") is None
    assert table.find("notexample.com") is None


@pytest.mark.parametrize(
    "sni",
    [
        ".example.com",
        "a b.example.com",
        "[::1].example.com",
        "*.example.com",
        "bücher.example.com",
        "a:1.example.com",
        "\\x80.example.com",
        "a" * 64 + ".example.com",
        "\u212a.example.com",
        "-.example.com",
    ],
)
def test_a_wildcard_matches_valid_labels_only(sni):
    table = RouteTable.build(
        [(("*.example.com",), "any"), (("app.example.com",), "app"), ((), "rest")]
    )
    assert table.find(sni) == "rest"
    assert table.find("my_app-1.example.com") == "any"
    assert RouteTable.build([(("*.example.com",), "any")]).find(sni) is None


def test_a_route_without_names_takes_everything_else():
    table = RouteTable.build([(("a.example.com",), "a"), ((), "rest")])
    assert table.find("a.example.com") == "a"
    assert table.find("b.example.com") == "rest"
    assert table.find("") == "rest"


def test_the_first_match_wins_whatever_its_kind():
    wildcard_first = RouteTable.build([(("*.example.com",), 1), (("a.example.com",), 2), ((), 3)])
    assert wildcard_first.find("a.example.com") == 1
    exact_first = RouteTable.build([(("a.example.com",), 2), (("*.example.com",), 1), ((), 3)])
    assert exact_first.find("a.example.com") == 2
    assert exact_first.find("b.example.com") == 1
    default_first = RouteTable.build([((), 3), (("a.example.com",), 2), (("*.example.com",), 1)])
    assert default_first.find("a.example.com") == 3
    twice = RouteTable.build([(("a.example.com",), 1), (("a.example.com",), 2)])
    assert twice.find("a.example.com") == 1


def test_patterns_are_compared_without_case_and_trailing_dot():
    table = RouteTable.build([(("App.Example.COM.", "*.Wild.EXAMPLE."), "app")])
    assert table.find("app.example.com") == "app"
    assert table.find("x.wild.example") == "app"


def test_a_route_that_is_falsy_is_found():
    assert RouteTable.build([(("a.example.com",), 0)]).find("a.example.com") == 0
    assert RouteTable.build([(("*.example.com",), 0), ((), 1)]).find("a.example.com") == 0


@pytest.mark.parametrize(
    "pattern",
    ["", ".", "*", "*.", "a.*.example.com", "*.*.example.com", "w*.example.com", "example.*"],
)
def test_an_invalid_pattern_is_refused(pattern):
    with pytest.raises(ValueError, match="whole first label"):
        RouteTable.build([((pattern,), 1)])


LABELS = st.sampled_from(["a", "b", "c"])
NAMES = st.lists(LABELS, min_size=1, max_size=3).map(".".join)
PATTERNS = st.one_of(NAMES, NAMES.map("*.".__add__))


@settings(deadline=None)
@given(st.lists(st.lists(PATTERNS, max_size=3), max_size=6), st.one_of(st.just(""), NAMES))
def test_the_table_finds_what_a_scan_from_the_top_finds(routes, name):
    def matches(pattern):
        head, _, parent = name.partition(".")
        return pattern == name or (
            pattern.startswith("*.") and bool(head) and parent == pattern[2:]
        )

    expected = next(
        (i for i, patterns in enumerate(routes) if not patterns or any(map(matches, patterns))),
        None,
    )
    assert (
        RouteTable.build([(tuple(patterns), i) for i, patterns in enumerate(routes)]).find(name)
        == expected
    )
