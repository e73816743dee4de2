"""The worker of a canary names what failed; the supervisor believes nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.shared.failure_reports import (
    MOST_CHARACTERS,
    FailureChannel,
    FailureReport,
    parse_report,
    send_report,
)

REPORT = FailureReport("client", "unknown_ca", 'CN=alice of "CN=Root"', "10.0.0.1", "no such CA")


@pytest.fixture
def channel():
    channel = FailureChannel()
    yield channel
    channel.close()


def test_reports_arrive_as_they_were_sent(channel):
    long = FailureReport("backend", "backend_refused", "ü" * 1000, "ü" * 1000, "ü" * 1000)
    with channel.writer() as writer:
        send_report(writer, REPORT)
        send_report(writer, long)
    first, second = channel.receive(10)
    assert first == REPORT
    assert second.who == second.detail == "ü" * MOST_CHARACTERS
    assert channel.receive(10) == []


def test_a_worker_never_waits(channel):
    with channel.writer() as writer:
        for _ in range(10_000):
            send_report(writer, REPORT)
        channel.close()
        send_report(writer, REPORT)


@pytest.mark.parametrize(
    "message",
    [
        {},
        [],
        {"part": "client", "reason": "unknown_ca", "who": 1, "address": "", "detail": ""},
        {"part": "other", "reason": "unknown_ca", "who": "", "address": "", "detail": ""},
        {"part": "client", "reason": "free beer", "who": "", "address": "", "detail": ""},
    ],
)
def test_wrong_reports_are_skipped(message):
    assert parse_report(message) is None


def test_texts_are_one_printable_line():
    message = {
        "part": "client",
        "reason": "unknown_ca",
        "who": "a\nb\x1b[2J",
        "address": "",
        "detail": "",
    }
    report = parse_report(message)
    assert str(report) == "a?b?[2J"


@given(st.binary(max_size=200))
def test_any_bytes_are_survived(data):
    channel = FailureChannel()
    with channel.writer() as writer:
        writer.send(data)
    assert channel.receive(1) == []
    channel.close()
