"""What the supervisor's plan may ask to be done, one value each.

`core.fleet_plan.plan` makes them, `supervisor.fleet` carries them out.

Never: does anything.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a worker of this generation on this slot."""

    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Tell the worker to accept no more and to finish its sessions (SIGTERM)."""

    pid: int


@dataclass(frozen=True, slots=True)
class Quit:
    """Tell the worker to end its sessions now (SIGQUIT)."""

    pid: int


@dataclass(frozen=True, slots=True)
class Overrun:
    """Too many generations drain: the workers of this one end their sessions now."""

    generation: int
    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Abort:
    """The worker hangs: SIGABRT, so that it prints where."""

    pid: int
    why: str


@dataclass(frozen=True, slots=True)
class Kill:
    """The worker did not end: SIGKILL."""

    pid: int
    why: str


@dataclass(frozen=True, slots=True)
class Close:
    """The slot waits for its next start: let its sockets take no clients until then."""

    slot: int


@dataclass(frozen=True, slots=True)
class Park:
    """Close the slot's sockets, so that the kernel sends its clients to other slots."""

    slot: int
    deaths: int


@dataclass(frozen=True, slots=True)
class Reopen:
    """Bind a parked slot's sockets again and give it another chance."""

    slot: int


@dataclass(frozen=True, slots=True)
class Commit:
    """Every slot of the candidate serves: make it the serving line."""

    generation: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The candidate cannot serve: forget it."""

    generation: int
    why: str


Action = Spawn | Drain | Quit | Overrun | Abort | Kill | Close | Park | Reopen | Commit | GiveUp
