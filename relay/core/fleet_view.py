"""The input of `fleet_plan.plan`: workers, slots, targets, and its limits.

Never: reads a clock. Every time is in seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

CANARY_SLOT = 0  # where a canary runs


class Phase(StrEnum):
    """What a worker says about itself in the scoreboard."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class Shutdown(StrEnum):
    """Whether and how the whole relay ends."""

    NO = "no"
    DRAIN = "drain"
    NOW = "now"


@dataclass(frozen=True, slots=True)
class Rules:
    """The limits `plan` works with, in seconds unless named otherwise."""

    drain_timeout_s: float = 30  # when the relay stops, or one worker is told to by hand
    reload_drain_s: float = 0  # for workers that a reload replaced; 0 is no limit
    # A worker ends its own sessions when its time is over; one that cannot is killed
    # later.
    drain_grace_s: float = 3
    hang_s: float = 10
    abort_grace_s: float = 1
    quit_grace_s: float = 2
    early_death_s: float = 10
    spacing_s: float = 0.2  # between two starts on one slot, however often its workers are killed
    first_delay_s: float = 0.5
    lone_delay_s: float = 0.5  # the longest wait while no slot is served
    longest_delay_s: float = 30
    park_after_deaths: int = 8
    park_s: float = 60
    start_timeout_s: float = 30
    old_generations: int = 8  # that may drain at once
    recheck_s: float = 15  # how often files that could not be used are read again
    loud_s: float = 60  # from then on it is an error that a file is not used
    # A worker stops accepting milliseconds after it is told to. A reload waits this
    # long.
    handover_s: float = 2


@dataclass(frozen=True, slots=True)
class Worker:
    """One living worker process.

    `stop_requested_at`: when it was last told to drain or quit; `quitting`: to quit.
    `aborted_at`: when it got SIGABRT; `killed`: it got SIGKILL.
    `drain_until_at`: until when it may drain; infinity is no limit. `replaced`: it was
    told to drain because its generation is not wanted any more.
    """

    pid: int
    slot: int
    generation: int
    phase: Phase
    started_at: float
    beat_at: float
    stop_requested_at: float | None = None
    aborted_at: float | None = None
    killed: bool = False
    quitting: bool = False
    drain_until_at: float = math.inf
    replaced: bool = False


@dataclass(frozen=True, slots=True)
class Slot:
    """What the supervisor remembers about a slot's dead workers.

    `early_deaths` counts workers in a row that died before they served.
    `spawn_at` is the earliest next start, or the next try of a parked slot.
    `lone_start_at` replaces it while no slot is served.
    `closed`: its sockets take no clients until a worker serves.
    """

    early_deaths: int = 0
    spawn_at: float = 0
    parked: bool = False
    closed: bool = False
    lone_start_at: float = 0


@dataclass(frozen=True, slots=True)
class Target:
    """A generation that should have a worker on each of its slots.

    `since_at`: when it became a target. `deaths`: how many of its workers died since.
    `canary`: for now only the slot CANARY_SLOT, beside the serving generation.
    `withdrawn`: why the canary is to be given up, if it is.
    """

    generation: int
    slots: int
    since_at: float = 0
    deaths: int = 0
    canary: bool = False
    withdrawn: str = ""

    def wants(self, slot: int) -> bool:
        """Whether it should have a worker on this slot."""
        return slot == CANARY_SLOT if self.canary else slot < self.slots


@dataclass(frozen=True, slots=True)
class View:
    """Everything `plan` looks at.

    `kept` are generations of the version before an upgrade. They go on accepting until
    the serving generation does.

    `next` is the generation that a reload starts. Missing heartbeats before
    `trusted_from_at` do not count, because the supervisor itself did not run then.
    """

    workers: tuple[Worker, ...]
    slots: tuple[Slot, ...]
    serving: Target
    next: Target | None = None
    ending: Shutdown = Shutdown.NO
    trusted_from_at: float = 0
    kept: frozenset[int] = frozenset()
