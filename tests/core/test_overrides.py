"""Operators' overrides as values: what a change makes of them, and what time does."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.candidates import Mode
from relay.core.overrides import (
    Change,
    Override,
    Setting,
    apply,
    parse,
    parse_change,
    render,
    settle,
)

W1 = ("web", "w1")


def change(mode=None, weight=None, duration_s=None, by="alice"):
    return Change(W1, mode, weight, duration_s, by)


def test_a_change_has_its_author_and_its_time():
    after = apply(Override(), change("drain"), 100.0, Mode.ENABLED)
    assert after == Override(mode=Setting("drain", "alice", 100.0))


def test_a_change_for_a_time_gives_back_what_was_there_before():
    lasting = apply(Override(), change("disabled", by="bob"), 100.0, Mode.ENABLED)
    short = apply(lasting, change("standby", duration_s=60), 200.0, Mode.ENABLED)
    assert short.mode.value == "standby"
    assert settle(short, 259.9) == short
    assert settle(short, 260.0) == lasting


def test_a_second_change_for_a_time_replaces_the_first():
    first = apply(Override(), change("drain", duration_s=60), 100.0, Mode.ENABLED)
    second = apply(first, change("disabled", duration_s=10), 110.0, Mode.ENABLED)
    assert settle(second, 120.0) == Override()


def test_mode_and_weight_are_undone_each_at_its_time():
    both = apply(
        apply(Override(), change("drain", duration_s=10), 0.0, Mode.ENABLED),
        change(weight=7, duration_s=20),
        0.0,
        Mode.ENABLED,
    )
    assert settle(both, 10.0) == Override(weight=both.weight)
    assert settle(both, 20.0) == Override()


def test_the_configured_mode_is_an_override_only_with_an_end():
    drained = apply(Override(), change("drain"), 0.0, Mode.ENABLED)
    assert apply(drained, change("enabled"), 1.0, Mode.ENABLED) == Override()
    assert apply(drained, change("enabled"), 1.0, Mode.STANDBY).mode.value == "enabled"
    assert (
        settle(apply(drained, change("enabled", duration_s=5), 1.0, Mode.ENABLED), 6.0) == drained
    )


def test_as_configured_takes_the_weight_back_too():
    both = apply(
        apply(Override(), change("drain"), 0.0, Mode.ENABLED), change(weight=7), 0.0, Mode.ENABLED
    )
    assert apply(both, change("none"), 1.0, Mode.ENABLED) == Override()
    assert apply(both, change("none", weight=3), 1.0, Mode.ENABLED).weight.value == 3
    assert apply(both, change(weight=0), 1.0, Mode.ENABLED) == Override(mode=both.mode)


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({}, "must name one backend"),
        ({"pool": "web", "backend": ""}, "must name one backend"),
        ({"pool": "web", "backend": "w1"}, "the request changes nothing"),
        (
            {"pool": "web", "backend": "w1", "mode": "off"},
            "mode must be one of enabled, drain, disabled, standby, none",
        ),
        ({"pool": "web", "backend": "w1", "mode": ["drain"]}, "mode must be one of"),
        ({"pool": "web", "backend": "w1", "weight": True}, "weight must be"),
        ({"pool": "web", "backend": "w1", "weight": 257}, "weight must be"),
        ({"pool": "web", "backend": "w1", "weight": 1.5}, "weight must be"),
        ({"pool": "web", "backend": "w1", "mode": "drain", "duration_s": 0}, "duration_s must be"),
        (
            {"pool": "web", "backend": "w1", "mode": "drain", "duration_s": float("nan")},
            "duration_s must be",
        ),
        (
            {"pool": "web", "backend": "w1", "mode": "drain", "duration_s": "60"},
            "duration_s must be",
        ),
        ({"pool": "web", "backend": "w1", "mode": "none", "duration_s": 60}, "takes no duration_s"),
        ({"pool": "web", "backend": "w1", "mode": "drain", "by": 5}, "by must be text"),
    ],
)
def test_an_invalid_request_is_refused_with_the_fault(request_, why):
    with pytest.raises(ValueError, match=why):
        parse_change(request_)


def test_an_author_cannot_write_lines_into_the_log():
    assert (
        parse_change({"pool": "web", "backend": "w1", "mode": "drain", "by": "a\nb" + "x" * 500}).by
        == "a?b" + "x" * 125
    )


MODES = st.sampled_from(["enabled", "drain", "disabled", "standby", "none"])
CHANGES = st.builds(
    change, st.none() | MODES, st.none() | st.integers(0, 256), st.none() | st.floats(0.1, 1000)
)


@given(st.lists(st.tuples(CHANGES, st.floats(0, 100)), max_size=12))
def test_overrides_are_the_same_after_a_restart(changes):
    override, now_at = Override(), 0.0
    for one, later_s in changes:
        now_at += later_s
        override = apply(settle(override, now_at), one, now_at, Mode.ENABLED)
    kept = {W1: override}
    assert parse(json.loads(json.dumps(render(kept)))) == kept


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "pool",
                        "backend",
                        "mode",
                        "weight",
                        "value",
                        "by",
                        "since",
                        "until",
                        "beneath",
                    ]
                ),
                inner,
            )
        ),
    )
)
def test_a_file_of_anything_else_is_a_value_error(junk):
    try:
        parse(junk)
    except ValueError:
        return
    assert junk == [] or isinstance(junk, list)
