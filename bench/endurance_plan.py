"""What `bench.endurance` does to a gateway, and what it has seen of it.

Never: does it itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from bench.children import Child
from bench.endurance_gateways import EndurableGateway
from bench.other_gateways import OtherGateway

_EVENTS = ("reload", "upgrade", "restart", "kill", "renew", "flap")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done: events by name, new clients a second, and so on."""

    gateway: str
    events: dict[str, int]
    rate: float
    transfers: int
    seconds: float
    processes: int = 1
    strangers: float = 0
    transfer_s: float = 0


@dataclass
class Seen:
    """What was seen of the gateway."""

    done: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    longest_s: dict[str, float] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    missed_samples: int = 0
    seconds: float = 0  # how long the clients came
    strangers: dict[str, int] = field(default_factory=dict)


class Echo(Child):
    """The backend."""

    def __init__(self, pki: Path, port: int = 0) -> None:
        super().__init__("bench.echo_backend", [str(pki), str(port)])
        self.port: int = self.hear(20)["port"]


def parse_events(text: str) -> dict[str, int]:
    """`reload=100,kill=50` as a dictionary."""
    found = {}
    for each in filter(None, text.split(",")):
        name, equals, count = each.partition("=")
        if not equals or not count.isdigit() or name not in _EVENTS:
            raise click.BadParameter(f"{each!r} is not like reload=100; events: {_EVENTS}")
        found[name] = int(count)
    return {name: count for name, count in found.items() if count}


def events_of(gateway: EndurableGateway) -> dict[str, Callable[[], None]]:
    """What can be done to this gateway, by name."""
    if isinstance(gateway, OtherGateway):
        return {"reload": gateway.reload}
    return {
        "reload": gateway.reload,
        "upgrade": gateway.upgrade,
        "restart": gateway.restart,
        "kill": gateway.kill,
        "renew": gateway.renew,
    }
