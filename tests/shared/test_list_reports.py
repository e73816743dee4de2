"""Workers report to the checker without waiting; the checker believes nothing."""

from __future__ import annotations

import json

import pytest

from relay.shared.list_reports import (
    ListReport,
    ReportChannel,
    parse_report,
    receive_report,
    send_report,
)

REPORT = ListReport(("http://a.example.com/a.crl",), (b"\x30\x00", b"\xff" * 3000))


@pytest.fixture
def channel():
    channel = ReportChannel()
    yield channel
    channel.close()


def test_reports_of_several_workers_arrive_in_order(channel):
    others = [ListReport((f"http://a/{number}",)) for number in range(3)]
    for report in [REPORT, *others]:
        with channel.writer() as writer:
            assert send_report(writer, report)
    with channel.reader() as reader:
        assert [receive_report(reader) for _ in range(4)] == [REPORT, *others]
        assert receive_report(reader) is None


def test_a_worker_does_not_wait_for_a_checker_that_does_not_read(channel):
    with channel.writer() as writer:
        for _ in range(10_000):
            if not send_report(writer, REPORT):
                break
        else:
            pytest.fail("the kernel keeps any number of reports")
        with channel.reader() as reader:
            assert receive_report(reader) == REPORT
        assert send_report(writer, REPORT)


def test_a_report_that_never_fits_is_dropped(channel):
    with channel.writer() as writer, channel.reader() as reader:
        assert send_report(writer, ListReport((), (bytes(100_000),)))
        assert receive_report(reader) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"urls": 5, "issuers": []}',
        b'{"urls": [5, null, {}], "issuers": [5, "***", "\xc3\xa9"]}',
        b"\xff\xfe",
    ],
)
def test_what_is_no_report_is_an_empty_one(data):
    assert parse_report(data) == ListReport(())


def test_a_report_without_end_is_cut():
    found = parse_report(json.dumps({"urls": ["u"] * 1000, "issuers": ["AAAA"] * 1000}).encode())
    assert (len(found.urls), len(found.issuers)) == (64, 64)
