"""What a file of overrides asks for, and how a file with mistakes is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.overrides import Override, Setting, render
from relay.shared.wanted_overrides import merge_setting, parse_wanted

NOW = 1_000_000.0
W1 = ("web", "w1")


def wanted(*entries, **more):
    return parse_wanted({"overrides": list(entries), **more}, "alice", NOW)


def entry(**more):
    return {"pool": "web", "backend": "w1", **more}


@pytest.mark.parametrize(
    ("keys", "override"),
    [
        ({"mode": "drain"}, Override(Setting("drain", "alice", NOW))),
        ({"weight": 20}, Override(None, Setting(20, "alice", NOW))),
        ({"mode": None, "weight": 0}, Override()),
        ({"mode": "none"}, Override()),
        (
            {"mode": "disabled", "weight": 3, "until": NOW + 60},
            Override(
                Setting("disabled", "alice", NOW, NOW + 60), Setting(3, "alice", NOW, NOW + 60)
            ),
        ),
        (
            {"mode": "drain", "until": "1970-01-12T13:46:41Z"},
            Override(Setting("drain", "alice", NOW, NOW + 1)),
        ),
        (
            {"mode": "drain", "until": "1970-01-12T14:46:41+01:00"},
            Override(Setting("drain", "alice", NOW, NOW + 1)),
        ),
        (
            {"mode": {"value": "drain", "by": "bob", "since": 5}},
            Override(Setting("drain", "bob", 5.0)),
        ),
    ],
)
def test_an_entry_is_one_override(keys, override):
    found = wanted(entry(**keys))
    assert (found.problems, found.ended) == ([], [])
    assert found.overrides == {W1: override}


def test_an_end_in_the_past_gives_what_is_beneath():
    lasting = {"value": "standby", "by": "bob", "since": 1}
    found = wanted(
        entry(mode={"value": "drain", "until": NOW - 1, "beneath": lasting}),
        {"pool": "web", "backend": "w2", "weight": 3, "until": NOW},
    )
    assert found.overrides[W1] == Override(Setting("standby", "bob", 1.0))
    assert found.overrides["web", "w2"] == Override()
    assert found.ended == [W1, ("web", "w2")]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (entry(), "overrides[0]: it changes nothing"),
        ([], "overrides[0]: it is not an object"),
        ({"pool": "web", "mode": "drain"}, "overrides[0].backend: give the name of a backend"),
        (entry(mode="off"), "overrides[0].mode: 'off' is not a mode; modes are enabled, drain"),
        (entry(mode=["drain"]), "overrides[0].mode: ['drain'] is not a mode"),
        (entry(weight=257), "overrides[0].weight: 257 is not a whole number from 1 to 256"),
        (entry(weight=True), "overrides[0].weight: True is not a whole number"),
        (entry(weight=1.5), "overrides[0].weight: 1.5 is not a whole number"),
        (entry(mode="drain", for_="10m"), "overrides[0].for_: there is no such key"),
        (
            {**entry(mode="drain"), "for": "10m"},
            "overrides[0].for: there is no such key; an end is an instant, so use until",
        ),
        (entry(mode="drain", until="tomorrow"), "overrides[0].until: give a time such as"),
        (entry(mode="drain", until="2030-01-01T00:00:00"), "has no time zone; add Z for UTC"),
        (entry(mode="drain", until=10**400), "overrides[0].until: give a time such as"),
        (entry(mode="drain", until=float("nan")), "overrides[0].until: give a time such as"),
        (entry(mode={}), "overrides[0].mode.value: it is missing; for the configured one"),
        (entry(mode={"value": "drain", "by": 1}), "overrides[0].mode.by: say in text who asks"),
        (
            entry(mode={"value": "drain", "beneath": {"value": "drain"}}),
            "overrides[0].mode.beneath: only a setting without an end",
        ),
    ],
)
def test_a_wrong_entry_is_named_with_its_key(wrong, said):
    found = wanted(wrong, {"pool": "web", "backend": "w2", "mode": "drain"})
    (problem,) = found.problems
    assert said in problem


def test_every_problem_is_named_and_a_repeated_backend():
    found = wanted(entry(mode="drain"), entry(mode="drain"), entry(weight=-1), 7)
    assert [problem.partition(":")[0] for problem in found.problems] == [
        "overrides[1]",
        "overrides[2]",
        "overrides[3]",
    ]
    assert "web/w1 has an entry already" in found.problems[0]


@pytest.mark.parametrize("document", [None, [], {}, {"overrides": {}}, "x", {"overrides": None}])
def test_a_document_without_a_list_is_refused(document):
    (problem,) = parse_wanted(document, "alice", NOW).problems
    assert "not an object with a list" in problem


@pytest.mark.parametrize("version", [2, True, "1"])
def test_another_version_is_refused(version):
    assert "this relay knows version 1" in wanted(version=version).problems[0]


MODES = st.sampled_from(["enabled", "drain", "disabled", "standby"])


@st.composite
def setting(draw, values):
    lasting = Setting(draw(values), draw(st.text(max_size=8)) or "x", 5.0)
    if draw(st.booleans()):
        return lasting
    beneath = lasting if draw(st.booleans()) else None
    return Setting(draw(values), "bob", 6.0, NOW + draw(st.integers(1, 1000)), beneath)


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.just("web"), st.text(min_size=1, max_size=5)),
        st.builds(Override, st.none() | setting(MODES), st.none() | setting(st.integers(1, 256))),
    )
)
def test_what_one_relay_prints_another_one_takes(overrides):
    document = json.loads(json.dumps({"version": 1, "overrides": render(overrides)}))
    found = parse_wanted(document, "alice", NOW)
    assert found.problems == []
    for key, override in overrides.items():
        assert merge_setting(override.mode, found.overrides[key].mode) is override.mode
        assert merge_setting(override.weight, found.overrides[key].weight) is override.weight
