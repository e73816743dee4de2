"""The workloads: what a gateway has to do, and the unit of its cost.

Never: runs anything; `runner` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from bench.beside import Beside
from bench.pki import BACKEND_NAME, COOKIE_NAME

_BULK_BYTES = 32_000_000
_PASSING_THROUGH = ("relay", "nginx", "haproxy")  # those with a file in peers/passthrough
_WITH_HOLE = ("relay", "nginx", "haproxy")  # those with a second route in bench.holes


@dataclass(frozen=True, slots=True)
class Workload:
    """One row of the report.

    `only` are the gateways that can do it; empty: all. `cost` is what is compared: CPU
    time per unit, private memory per connection, or a 99th percentile of latency.
    `proxy`: the backend gets a PROXY header first. `least_s` is its minimum duration,
    except in a quick run. `peers` is the directory with the gateways' configurations,
    if they are not the usual ones.
    """

    name: str
    what: str
    mode: str
    unit: str
    cost: Literal["cpu", "memory", "latency", "connecting"] = "cpu"
    per_unit: float = 1e6
    connections: int = 32
    quick_connections: int | None = None
    warm_units: int = 20
    workers: int = 1
    flood_rate: float = 0.0
    only: tuple[str, ...] = ()
    beside: Beside | None = None
    proxy: bool = False
    least_s: float = 0.0
    peers: str = ""
    options: dict[str, Any] = field(default_factory=dict)


WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload(
            "request",
            "64-byte request and response, keep-alive",
            "requests",
            "µs",
            options={"size": 64},
        ),
        Workload(
            "request-4k",
            "64-byte request, 4-KiB response, keep-alive",
            "requests",
            "µs",
            options={"size": 4096},
        ),
        *(
            Workload(
                f"bulk-{direction}{suffix}",
                f"stream {where} the backend{records}",
                f"bulk-{direction}",
                "s/GB",
                per_unit=1e9 / _BULK_BYTES,
                connections=4,
                warm_units=1,
                options={"size": _BULK_BYTES, "record": record},
            )
            for suffix, record, records in (
                ("", 16_384, ""),
                ("-4k", 4096, " in records of 4 KiB"),
            )
            for direction, where in (("down", "from"), ("up", "to"))
        ),
        Workload(
            "connect",
            "new connection, full handshake, one request",
            "connects",
            "µs",
            connections=16,
            warm_units=64,
        ),
        Workload(
            "connect-proxy-v2",
            "the same, and the backend gets a PROXY v2 header",
            "connects",
            "µs",
            connections=16,
            warm_units=64,
            only=("relay", "haproxy"),
            proxy=True,
        ),
        Workload(
            "connect-resumed",
            "new connection, resumed handshake, one request",
            "connects",
            "µs",
            connections=16,
            warm_units=64,
            options={"resume": True},
        ),
        Workload(
            "connect-cookie",
            "new connection to the backend that the request's cookie names",
            "connects",
            "µs",
            connections=16,
            warm_units=64,
            only=("relay", "apache"),
            options={
                "server_name": COOKIE_NAME,
                "cookie": "a=1; JSESSIONID=0123456789ABCDEF0123456789ABCDEF.worker1; b=2",
            },
        ),
        Workload(
            "passthrough-connect",
            "new connection, TLS is not terminated, one request",
            "connects",
            "µs",
            connections=16,
            warm_units=64,
            only=_PASSING_THROUGH,
            peers="passthrough",
            options={"server_name": BACKEND_NAME},
        ),
        Workload(
            "passthrough-bulk",
            "stream from the backend, TLS is not terminated",
            "bulk-down",
            "s/GB",
            per_unit=1e9 / _BULK_BYTES,
            connections=4,
            warm_units=1,
            only=_PASSING_THROUGH,
            peers="passthrough",
            options={"size": _BULK_BYTES, "server_name": BACKEND_NAME},
        ),
        Workload(
            "idle",
            "private memory of an idle connection",
            "idle",
            "KiB",
            cost="memory",
            per_unit=1 / 1024,
            connections=5000,
            quick_connections=500,
        ),
        Workload(
            "latency",
            "99th percentile, 10,000 requests a second",
            "paced",
            "µs",
            cost="latency",
            options={"rate": 10_000.0},
        ),
        Workload(
            "latency-flood",
            "the same beside 200 handshakes a second",
            "paced",
            "µs",
            cost="latency",
            flood_rate=200.0,
            options={"rate": 10_000.0},
        ),
        *(
            Workload(
                f"strangers-{name}",
                f"99th percentile of connecting beside {what}",
                "beside",
                "ms",
                cost="connecting",
                only=_WITH_HOLE,
                least_s=20,
                beside=beside,
            )
            for name, what, beside in (
                (
                    "hello",
                    "1,000 strangers a second that ask for a HelloRetryRequest and stay",
                    Beside(1000, hello="retry"),
                ),
                (
                    "silent",
                    "1,000 strangers that send nothing",
                    Beside(1000, hello="silent", keep=1000),
                ),
                (
                    "stopped",
                    "1,000 strangers that stop in mid-handshake",
                    Beside(1000, hello="whole", keep=1000),
                ),
                (
                    "blackhole",
                    "200 clients a second of a pool that drops every SYN",
                    Beside(200, hole="blackhole"),
                ),
                (
                    "tarpit",
                    "200 clients a second of a pool that accepts and sends nothing",
                    Beside(200, hole="tarpit"),
                ),
            )
        ),
        *(
            Workload(
                f"scale-{workers}",
                f"64-byte request, {workers} workers",
                "requests",
                "µs",
                workers=workers,
                options={"size": 64},
            )
            for workers in (1, 2, 4)
        ),
        *(
            Workload(
                f"scale-connect-{workers}",
                f"new connection, {workers} workers",
                "connects",
                "µs",
                workers=workers,
                connections=16,
                warm_units=64,
            )
            for workers in (1, 2, 4)
        ),
    )
}
QUICK = ("request", "bulk-down", "connect", "idle")
GROUPS = {
    "bulk": tuple(name for name in WORKLOADS if name.startswith("bulk")),
    "scale": tuple(name for name in WORKLOADS if name.startswith("scale")),
    "latency": ("latency", "latency-flood"),
    "passthrough": ("passthrough-connect", "passthrough-bulk"),
    "strangers": tuple(name for name in WORKLOADS if name.startswith("strangers")),
    "all": tuple(WORKLOADS),
}
DEFAULT = ("request", "request-4k", "bulk-down", "bulk-up", "connect", "connect-resumed", "idle")


def choose(names: str) -> list[Workload]:
    """The workloads of a comma-separated list. Raises KeyError with an unknown name."""
    chosen: dict[str, Workload] = {}
    for name in filter(None, names.split(",")):
        for each in GROUPS.get(name, (name,)):
            chosen[each] = WORKLOADS[each]
    return list(chosen.values())
