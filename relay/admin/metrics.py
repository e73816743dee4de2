"""The scoreboard as Prometheus metrics, as `shared.catalogue` describes them.

Never: writes the scoreboard; lets a counter go back.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Protocol

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from relay.admin.disabled_parts import disabled_in, routes_disabled
from relay.admin.probes import why_not_ready
from relay.config.backend_address import is_service
from relay.shared.addresses import format_endpoint
from relay.shared.catalogue import FAMILIES, Family
from relay.shared.entities import (
    BACKEND_NOT_AFTER_S,
    CRL_LAST_SUCCESS_S,
    HEALTH,
    HEALTH_DOWN,
    RETRY_UNTIL_MS,
    SLOT_CPU_US,
    Series,
)
from relay.shared.messages import Facts, facts_of
from relay.shared.scoreboard import PHASE_DRAINING, PHASE_SERVING, PHASE_STARTING, monotonic_ms
from relay.shared.snapshot import Snapshot
from relay.shared.state_cells import is_waiting

_LATEST_S = 253_402_300_799  # the end of 9999, the last year that a certificate can name

_PHASES = {"starting": PHASE_STARTING, "serving": PHASE_SERVING, "draining": PHASE_DRAINING}

Rows = list[tuple[tuple[str, ...], float]]  # label values, value


class Readable(Protocol):
    """Reads a scoreboard, in the admin process or in the supervisor."""

    def snapshot(self) -> Snapshot:
        """A consistent copy. Raises RelayError."""


class RelayCollector(Collector):
    """A prometheus_client collector over one scoreboard.

    Its only state is the highest CPU time seen of each slot.
    """

    def __init__(self, scoreboard: Readable) -> None:
        self._scoreboard = scoreboard
        self._cpu_s: defaultdict[str, float] = defaultdict(float)

    def collect(self) -> Iterator[Metric]:
        """Every family of the catalogue, from one consistent snapshot.

        Raises RelayError when the scoreboard cannot be read.
        """
        snapshot = self._scoreboard.snapshot()
        facts = facts_of(snapshot.facts)
        by_name: dict[str, dict[tuple[str, ...], int]] = defaultdict(dict)
        for series, value in snapshot.values.items():
            by_name[series.name][series.labels] = value
        cpu_s, resident_bytes = self._usage(snapshot, facts, by_name[SLOT_CPU_US])
        computed: dict[str, Rows] = {
            "relay_backend_up": _backends_up(snapshot, facts),
            "relay_route_disabled": [
                (labels, float(bool(why))) for labels, why in routes_disabled(facts).items()
            ],
            "relay_backend_certificate_not_after_timestamp_seconds": _instants(
                BACKEND_NOT_AFTER_S, snapshot
            ),
            "relay_crl_last_success_timestamp_seconds": [
                (labels, at if 0 < at <= _LATEST_S else 0)
                for labels, at in _states(CRL_LAST_SUCCESS_S, snapshot)
            ],
            "relay_certificate_not_after_timestamp_seconds": _certificates(facts),
            **lists_in(facts, time.time()),
            **_names(snapshot, facts),
            "relay_ocsp_response_next_update_timestamp_seconds": [
                ((one["listener"], one["route"]), one["next_update"]) for one in facts["staples"]
            ],
            "relay_ready": [((), float(not why_not_ready(snapshot, monotonic_ms())))],
            "relay_workers": [
                ((name,), float(sum(each.phase == phase for each in snapshot.workers)))
                for name, phase in _PHASES.items()
            ],
            "relay_connections_limit": [((), facts["connections_allowed"])],
            "relay_slots": [((), facts["slots"])],
            "relay_worker_cpu_seconds_total": cpu_s,
            "relay_worker_resident_bytes": resident_bytes,
            "relay_build_info": [((facts["version"], facts["openssl"]), 1)],
            "relay_config_generation": [((), facts["generation"])],
            "relay_config_last_reload_successful": [((), float(facts["last_reload_ok"]))],
            "relay_config_last_reload_timestamp_seconds": [((), facts["last_reload_at"])],
            "relay_files_pending": _files_pending(facts),
        }
        for family in FAMILIES.values():
            if family.kind == "histogram":
                yield _histogram(family, by_name[family.name])
                continue
            made = (CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily)(
                family.name, family.help, labels=family.labels
            )
            rows = computed.get(family.name)
            if rows is None:
                rows = _counted(family, by_name[family.name])
            for labels, number in rows:
                made.add_metric(labels, number)
            yield made

    def _usage(
        self, snapshot: Snapshot, facts: Facts, dead_us: dict[tuple[str, ...], int]
    ) -> tuple[Rows, Rows]:
        """CPU seconds (of ended workers too) and resident bytes of each slot's workers.

        Workers report both once a second, as no other process may read them from /proc.
        """
        cpu_s: defaultdict[str, float] = defaultdict(
            float, {str(slot): 0.0 for slot in range(facts["slots"])}
        )
        resident: defaultdict[str, float] = defaultdict(float, cpu_s)
        for labels, value_us in dead_us.items():
            if value_us:  # there are spare slots, which nobody has used
                cpu_s[labels[0]] += value_us / 1e6
        for worker in snapshot.workers:
            cpu_s[str(worker.slot)] += max(0, worker.cpu_us) / 1e6
            resident[str(worker.slot)] += max(0, worker.resident_bytes)
        for name, seconds in cpu_s.items():
            self._cpu_s[name] = max(self._cpu_s[name], seconds)
        slots = sorted(cpu_s, key=int)
        return (
            [((slot,), self._cpu_s[slot]) for slot in slots],
            [((slot,), resident[slot]) for slot in slots],
        )


def _counted(family: Family, cells: dict[tuple[str, ...], int]) -> Rows:
    return [(labels, value * family.scale) for labels, value in cells.items()]


def _histogram(family: Family, cells: dict[tuple[str, ...], int]) -> HistogramMetricFamily:
    """A cell counts one bucket; a Prometheus bucket includes all lower ones."""
    made = HistogramMetricFamily(family.name, family.help, labels=family.labels)
    buckets: defaultdict[tuple[str, ...], list[tuple[str, float]]] = defaultdict(list)
    sums: dict[tuple[str, ...], float] = {}
    for (*labels, bound), value in cells.items():
        key = tuple(labels)
        if bound == "sum":
            sums[key] = value * family.scale
        else:
            below = buckets[key][-1][1] if buckets[key] else 0
            buckets[key].append((bound, below + value))
    for key, cumulated in buckets.items():
        made.add_metric(key, cumulated, sums[key])
    return made


def _states(name: str, snapshot: Snapshot) -> Rows:
    """One shared value of every configured entity that has it."""
    return [
        (series.labels, value) for series, value in snapshot.states.items() if series.name == name
    ]


def _backends_up(snapshot: Snapshot, facts: Facts) -> Rows:
    now_ms = monotonic_ms()
    disabled = disabled_in(facts)
    return [
        (
            labels,
            float(
                not is_waiting(until_ms, now_ms)
                and snapshot.states.get(Series(HEALTH, labels)) != HEALTH_DOWN
                and ("pool", "", labels[0]) not in disabled
                and ("backend", *labels) not in disabled
            ),
        )
        for labels, until_ms in _states(RETRY_UNTIL_MS, snapshot)
    ]


def _instants(name: str, snapshot: Snapshot) -> Rows:
    """A shared Unix time of every entity for which it is known."""
    return [(labels, at) for labels, at in _states(name, snapshot) if 0 < at <= _LATEST_S]


def _files_pending(facts: Facts) -> Rows:
    """Every file with certificates or revocation lists, and every pending file."""
    found = {(one["file"],): 0.0 for one in facts["certificates"]}
    found |= {(file,): 0.0 for file in facts["list_files"]}
    return list((found | {(one["file"],): 1.0 for one in facts["pending"]}).items())


def _names(snapshot: Snapshot, facts: Facts) -> dict[str, Rows]:
    """The families of the names in backends' addresses."""
    names = snapshot.names
    return {
        "relay_name_addresses": [
            ((name,), float(len(found.located))) for name, found in names.items()
        ],
        "relay_name_lookup_failing": [
            ((name,), float(found.failing)) for name, found in names.items()
        ],
        "relay_backend_endpoint_info": [
            (
                (
                    pool["name"],
                    backend["backend"],
                    format_endpoint(each),
                    str(each.priority),
                    str(each.weight),
                ),
                1.0,
            )
            for pool in facts["pools"]
            for backend in pool["backends"]
            if is_service(backend["address"]) and backend["address"] in names
            for each in names[backend["address"]].located
        ],
    }


def _certificates(facts: Facts) -> Rows:
    """One row per file and subject; of two certificates, the earlier end."""
    ends: dict[tuple[str, ...], float] = {}
    for certificate in facts["certificates"]:
        key = (certificate["file"], certificate["subject"])
        ends[key] = min(ends.get(key, certificate["not_after"]), certificate["not_after"])
    return list(ends.items())


def lists_in(facts: Facts, now_at: float) -> dict[str, Rows]:
    """The families of the revocation lists in use."""
    labelled = [((one["issuer"], one["source"]), one) for one in facts["crls"]]
    dated = [
        (labels, until_at, one["grace_s"])
        for labels, one in labelled
        if (until_at := one["next_update"]) is not None
    ]
    return {
        "relay_crl_next_update_timestamp_seconds": [
            (labels, until_at) for labels, until_at, _ in dated
        ],
        "relay_crl_entries": [(labels, one["entries"]) for labels, one in labelled],
        "relay_crl_in_grace": [
            (labels, float(until_at < now_at <= until_at + grace_s))
            for labels, until_at, grace_s in dated
        ],
    }


def parse_metrics(text: str) -> dict[str, float]:
    """A scrape as values by series: `name{a="1",b="2"}`, labels sorted."""
    return {
        sample.name
        + "{"
        + ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
        + "}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
