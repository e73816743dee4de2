"""The actions that `relay.core.fleet_plan.plan` may ask for, one value each.

`relay.supervisor.fleet` carries them out.

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
    """Tell the worker to stop accepting and to finish its sessions (SIGTERM).

    Its time depends on why: a reload replaced it, or the relay ends.
    """

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
    """The worker hangs: SIGABRT makes it print where."""

    pid: int
    why: str


@dataclass(frozen=True, slots=True)
class Kill:
    """The worker did not end: it gets SIGKILL."""

    pid: int
    why: str


@dataclass(frozen=True, slots=True)
class Close:
    """Close the slot's sockets until its next start, so that no client waits there."""

    slot: int


@dataclass(frozen=True, slots=True)
class Park:
    """Close the slot's sockets, so that the kernel gives its clients to other slots."""

    slot: int
    deaths: int


@dataclass(frozen=True, slots=True)
class Reopen:
    """Bind the sockets of a parked slot again, and try it again."""

    slot: int


@dataclass(frozen=True, slots=True)
class Commit:
    """Every slot of the next generation serves: it becomes the serving one."""

    generation: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The next generation cannot serve and is dropped."""

    generation: int
    why: str


Decision = Commit | GiveUp  # how the start of a next generation ends
Action = Spawn | Drain | Quit | Overrun | Abort | Kill | Close | Park | Reopen | Decision
