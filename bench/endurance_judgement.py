"""Which clients of `bench.endurance` were lost.

Never: leaves out a client. All that started finished, failed with an excuse, or count.
"""

from __future__ import annotations

from typing import Any

from bench.endurance_counts import ACCESS_LOG, Counts, clients_counts, differences
from bench.endurance_excuses import Excuses
from bench.endurance_log import AccessLog
from bench.endurance_report import reasons, times

_LISTED = 50  # lost clients that the report names


def judge(each: dict[str, Any], excuses: Excuses, log: AccessLog) -> int:
    """Sum up the clients of one kind. Returns how many were lost or changed."""
    failures = each.pop("failures")
    unexcused = [
        f"{why} at {at:.2f}, port {port}; the access log: {log.sessions.get(port, 'nothing')}"
        for at, port, why in failures
        if not excuses.cover(at, port, log.sessions.get(port, []))
    ]
    each["failed"] = len(failures)
    each["failed_by"] = reasons(failures)
    each["excused"] = len(failures) - len(unexcused)
    each["lost"] = unexcused[:_LISTED]
    each["unfinished"] = each["started"] - each["finished"] - len(failures)
    each["ms"] = times(each.pop("times_ms"))
    return len(unexcused) + int(each["unfinished"]) + int(each["changed"])


def compare(
    excuses: Excuses, log: AccessLog, metrics: Counts | None, *parts: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """What clients, access log and metrics have counted, and what differs too much."""
    clients, counted = clients_counts(*parts), {ACCESS_LOG: log.counts}
    if metrics is not None:
        counted["metrics"] = metrics
    ended = sum(each["excused"] for each in parts)
    found = differences(clients, counted, excuses.killed_clients, ended)
    told = {name: one._asdict() for name, one in {"clients": clients, **counted}.items()}
    return told, found
