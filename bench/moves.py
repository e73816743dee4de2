"""Counts the clients that move when a machine, a backend or a weight changes.

`python -m bench.moves` runs the relay's own hashing (`relay.core.rendezvous`). A client
moves when it gets another backend than before. Ideal is the least that must move: the
clients of what has gone, the share of what has come, and nobody else.

The cost of a choice grows with the number of backends, so a sample of the clients is
hashed, and the counts are scaled. The machine of a client is chosen by the layer before
the relay; its two usual ways are simulated.

Never: measures time.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

import click

from relay.core.candidates import Candidate, CandidateStatus, Mode
from relay.core.rendezvous import Rendezvous
from relay.core.sticky import source_key

BUCKETS = 1024  # of a resilient next-hop group
SEED = 12


@dataclass(frozen=True)
class Count:
    """What one change did: clients that moved, and how many had to."""

    change: str
    clients: int
    moved: float
    ideal: float

    def row(self) -> str:
        """A row of a Markdown table."""
        return (
            f"| {self.change} | {self.moved:,.0f} | {self.ideal:,.0f} |"
            f" {100 * self.moved / self.clients:.2f} % |"
        )


def keys_of(clients: int, sample: int) -> list[bytes]:
    """The hash keys of a sample of clients, whose addresses are the first of 10/8."""
    chance = random.Random(SEED)
    return [
        source_key(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        for number in chance.sample(range(clients), min(sample, clients))
    ]


def backends(number: int) -> list[Candidate]:
    """Backends of equal weight."""
    return [Candidate(f"worker{each}") for each in range(1, number + 1)]


def agree(number: int, machines: int, keys: Sequence[bytes]) -> int:
    """For how many clients all machines agree, each with its backends in any order."""
    chance = random.Random(SEED)
    chosen: list[list[str]] = []
    for _ in range(machines):
        configured = backends(number)
        chance.shuffle(configured)
        balancer = Rendezvous(configured)
        picks = [balancer.pick(key, (), _all) for key in keys]
        chosen.append([configured[index].name for index in picks if index is not None])
    return sum(len(set(names)) == 1 for names in zip(*chosen, strict=True))


def _all(_index: int) -> bool:
    return True


def backend_changes(number: int, clients: int, keys: Sequence[bytes]) -> Iterator[Count]:
    """What each change of some backends does to clients, scaled to all of them."""
    some = max(1, number // 100)
    configured = backends(number + some)
    absent = dict.fromkeys(range(number, number + some), CandidateStatus(mode=Mode.DISABLED))
    drained = dict.fromkeys(range(some), CandidateStatus(mode=Mode.DRAIN))
    doubled = dict.fromkeys(range(some), CandidateStatus(weight=2))
    before = _with(configured, absent)
    comes, weighs = some / (number + some), 2 * some / (number + some) - some / number
    changes = {
        "come": (_with(configured, {}), _all, comes),
        "are drained": (_with(configured, {**absent, **drained}), _all, some / number),
        "fail": (before, lambda index: index >= some, some / number),
        "have twice the weight": (_with(configured, {**absent, **doubled}), _all, weighs),
    }
    moved = dict.fromkeys(changes, 0)
    for key in keys:
        index = before.pick(key, (), _all)
        for change, (balancer, usable, _) in changes.items():
            moved[change] += balancer.pick(key, (), usable) != index
    for change, (_, _, ideal) in changes.items():
        scaled = moved[change] * clients / len(keys)
        yield Count(f"{some} {change}", clients, scaled, ideal * clients)


def _with(configured: Sequence[Candidate], statuses: dict[int, CandidateStatus]) -> Rendezvous:
    balancer = Rendezvous(configured)
    unchanged = CandidateStatus()
    balancer.update([statuses.get(index, unchanged) for index in range(len(configured))])
    return balancer


Layer = Callable[[int, int], int]
"""The machine for a client's hash of 32 bits, by the number of machines."""


def threshold(hashed: int, machines: int) -> int:
    """ECMP as Linux and many routers do it: equal regions of the hash's range."""
    return hashed * machines >> 32


def resilient(hashed: int, machines: int) -> int:
    """A resilient next-hop group with a fixed number of buckets."""
    return (hashed * BUCKETS >> 32) % machines


def machine_goes(name: str, layer: Layer, machines: int, clients: int) -> Count:
    """How many clients get another machine when the last of the machines goes."""
    chance = random.Random(SEED)
    moved = 0
    for _ in range(clients):
        hashed = chance.getrandbits(32)
        before = layer(hashed, machines)
        # A resilient group gives away only the buckets of what has gone.
        keeps = layer is resilient and before != machines - 1
        moved += not keeps and layer(hashed, machines - 1) != before
    return Count(f"1 of {machines} machines goes, {name}", clients, moved, clients / machines)


def write(machines: Sequence[int], number: int, clients: int, sample: int, out: TextIO) -> None:
    """Write the tables."""
    few = keys_of(clients, 100)
    agreed = agree(number, max(machines), few)
    out.write(f"{max(machines)} machines agree on the backend of {agreed} of {len(few)} clients\n")
    layers = {"plain ECMP": threshold, "resilient ECMP": resilient}
    rows = [
        machine_goes(name, layer, each, clients)
        for each in machines
        for name, layer in layers.items()
    ]
    _write_table(f"{clients:,} clients", rows, out)
    for size, part in ((10, 20 * sample), (number, sample)):
        keys = keys_of(clients, part)
        title = f"{size} backends, {len(keys):,} of {clients:,} clients"
        _write_table(title, backend_changes(size, clients, keys), out)


def _write_table(title: str, rows: Iterable[Count], out: TextIO) -> None:
    out.write(f"\n| {title} | clients that move | ideal | of all |\n|---|---|---|---|\n")
    out.writelines(f"{row.row()}\n" for row in rows)


@click.command()
@click.option("--machines", multiple=True, default=(3, 10, 50), type=click.IntRange(2, 500))
@click.option("--backends", "number", default=1000, type=click.IntRange(10, 10_000))
@click.option("--clients", default=1_000_000, type=click.IntRange(100, 16_000_000))
@click.option("--sample", default=4000, type=click.IntRange(100), help="Clients that are hashed.")
def main(machines: tuple[int, ...], number: int, clients: int, sample: int) -> None:
    """Count the clients that move when a machine, a backend or a weight changes."""
    write(machines, number, clients, sample, sys.stdout)


if __name__ == "__main__":
    main()
