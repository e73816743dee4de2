"""A pool while it is made: its tables, its health checks, its weights.

Never: reads a directive.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from relay.importer.parameters import seconds
from relay.importer.proxying import Member, Parameters
from relay.importer.toml import Table


@dataclass(frozen=True, slots=True)
class FoundName:
    """A name in the certificate of a backend, and whether backend_ca verifies it."""

    name: str
    verified: bool


@dataclass(slots=True)
class Pool:
    """A pool with the tables of its backends."""

    table: Table
    backends: list[Table] = field(default_factory=list)
    health: Table | None = None
    connect_s: float = 0
    url: str = ""

    def same_as(self, other: Pool) -> bool:
        """Whether both pools do the same."""
        mine = [self.table.values, *(each.values for each in self.backends)]
        return mine == [other.table.values, *(each.values for each in other.backends)]


def put_health(pool: Pool, members: list[Parameters]) -> None:
    """`health`, from the hc* parameters of mod_proxy_hcheck."""
    checks = [each for each in members if "hcmethod" in each or "hctemplate" in each]
    if not checks:
        return
    first = checks[0]
    table = pool.health = Table(f"{pool.table.header[:-1]}.health]")
    method = first.get("hcmethod", ("TCP", None))[0].upper()
    table.put("interval_s", max((values_of([first], "hcinterval") or [30])[0], 1), "hcinterval")
    for key, name, default in (("rise", "hcpasses", 1), ("fall", "hcfails", 1)):
        text = first.get(name, ("", None))[0]
        table.put(key, max(int(text), 1) if re.fullmatch("[0-9]{1,4}", text) else default, name)
    uri = first.get("hcuri", ("/", None))[0]
    if method in {"GET", "HEAD", "OPTIONS", "GET11", "HEAD11", "OPTIONS11"}:
        usable = re.fullmatch(r"/[!-~]*", uri) and "#" not in uri
        table.put("http_get", uri if usable else "/", f"hcmethod={method}")


def weights_of(members: list[Member]) -> list[int]:
    """`weight` of each member; a fraction counts in tenths."""
    factors = []
    for member in members:
        text = member.parameters.get("loadfactor", ("1", member.directive))[0]
        factors.append(float(text) if re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4})?", text) else 1.0)
    scale = 1 if all(each.is_integer() for each in factors) else 10
    return [min(max(round(each * scale), 1), 256) for each in factors]


def values_of(tables: list[Parameters], name: str) -> list[float]:
    """The times, in seconds, that these parameters have."""
    found = [seconds(each[name][0]) for each in tables if name in each]
    return [each for each in found if each is not None]
