"""The supervisor's brain: from what the fleet of workers looks like now to what to do about it.

Theory of operation. `plan` is asked again after every event and at least once a second; it keeps no memory, so the same view and the same
`now` give the same actions. Four ideas carry it:

- *Wanted lines.* A line is a generation with its number of slots. The serving line always is wanted; while a reload is under way the candidate
  line is wanted too, on the same slots. A worker of any other generation is told to drain. So a reload is: add a line, wait until each of its
  slots serves, make it the serving line. A failed one is: forget the line. The old workers notice neither.
- *Death.* A worker that had served is replaced at once, so the clients queued on its sockets are
  served by the next one. A worker that died before it served is replaced at once the first time,
  then after 0.5, 1, 2 … 30 s. While a slot waits its sockets are closed, because the kernel would
  go on queueing clients that nobody serves. When no slot is served or starting, one is tried
  after at most `lone_delay_s`. A slot whose workers keep dying like that is parked.
- *Room.* Only so many old generations may drain at once. When there are more, the oldest are told to quit their sessions.
- *Escalation.* Silence gets SIGABRT (which prints where the worker hangs), then SIGKILL. Draining too long gets SIGKILL.

Never: kills, forks or looks at a clock; `now` and every instant in a view are seconds of one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from relay.core.fleet_actions import (
    Abort,
    Action,
    Close,
    Commit,
    Drain,
    GiveUp,
    Kill,
    Overrun,
    Park,
    Quit,
    Reopen,
    Spawn,
)


class Phase(StrEnum):
    """What a worker says about itself in the scoreboard."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class Shutdown(StrEnum):
    """How the whole relay is to end."""

    NO = "no"
    DRAIN = "drain"
    NOW = "now"


@dataclass(frozen=True, slots=True)
class Rules:
    """The limits `plan` works with, in seconds unless named otherwise."""

    drain_timeout_s: float = 30
    drain_grace_s: float = (
        3  # a worker ends its sessions by itself at drain_timeout_s; only one that cannot is killed
    )
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
    recheck_s: float = 15  # how often the files of disabled routes and pools are looked at
    handover_s: float = 2  # a worker stops accepting within milliseconds of being told to; a reload waits no longer for one that does not


@dataclass(frozen=True, slots=True)
class Worker:
    """One living process. `stop_requested_at` is when it was last told to drain or quit, `quitting` after the latter, `aborted_at` when it got SIGABRT, `killed` after SIGKILL."""

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


@dataclass(frozen=True, slots=True)
class Slot:
    """What a slot remembers of its dead workers.

    `early_deaths` counts workers in a row that died before they served. `spawn_at` is the earliest
    next start, of a parked slot the next try; `alone_at` is the same while no slot is served.
    `closed`: its sockets take no clients until a worker serves.
    """

    early_deaths: int = 0
    spawn_at: float = 0
    parked: bool = False
    closed: bool = False
    alone_at: float = 0


@dataclass(frozen=True, slots=True)
class Line:
    """A generation, the number of slots it runs on, and since when it is wanted."""

    generation: int
    slots: int
    since_at: float = 0
    deaths: int = 0


@dataclass(frozen=True, slots=True)
class View:
    """Everything `plan` looks at. `trusted_from_at`: heartbeats before it are forgiven, for the supervisor itself was not running."""

    workers: tuple[Worker, ...]
    slots: tuple[Slot, ...]
    serving: Line
    candidate: Line | None = None
    ending: Shutdown = Shutdown.NO
    trusted_from_at: float = 0


def plan(now: float, view: View, rules: Rules) -> list[Action]:
    """What to do now, in the order to do it. Carrying it out changes the view so that the same action is not planned again."""
    actions: list[Action] = [
        action
        for worker in view.workers
        if (action := _escalate(now, worker, view.trusted_from_at, rules)) is not None
    ]
    escalated = {action.pid for action in actions if isinstance(action, Abort | Kill)}
    if view.ending is not Shutdown.NO:
        living = [
            worker
            for worker in view.workers
            if worker.aborted_at is None and not worker.killed and worker.pid not in escalated
        ]
        if view.ending is Shutdown.NOW:  # those that drain, too
            return actions + [Quit(worker.pid) for worker in living if not worker.quitting]
        return actions + [
            Drain(worker.pid) for worker in living if worker.stop_requested_at is None
        ]
    lines = [view.serving]
    if view.candidate is not None:
        verdict = _judge(now, view.candidate, view.workers, rules)
        if verdict is not None:
            return [*actions, verdict]
        lines.append(view.candidate)
    wanted = {line.generation for line in lines}
    actions += [
        Drain(worker.pid)
        for worker in view.workers
        if worker.generation not in wanted
        and worker.stop_requested_at is None
        and worker.aborted_at is None
        and worker.pid not in escalated
    ]
    actions += _overrun(view, wanted, escalated, rules)
    starts = _starts(view)
    for number, missing in _missing(view, lines).items():
        slot = view.slots[number]
        due = now >= starts.get(number, slot.spawn_at)
        if slot.parked:
            if due:
                actions.append(Reopen(number))
        elif slot.early_deaths >= rules.park_after_deaths:
            # The candidate shares these sockets; once it is decided on, so is this.
            if view.candidate is None:
                actions.append(Park(number, slot.early_deaths))
        elif due:
            actions += [Spawn(number, generation) for generation in missing]
        elif slot.early_deaths and not slot.closed and view.candidate is None:
            actions.append(Close(number))
    return actions


def _missing(view: View, lines: Sequence[Line]) -> dict[int, list[int]]:
    """The slots that want a worker, each with the generations it wants one of."""
    present = {
        (worker.slot, worker.generation)
        for worker in view.workers
        if worker.stop_requested_at is None
    }
    found = {}
    for number in range(len(view.slots)):
        missing = [
            line.generation
            for line in lines
            if number < line.slots and (number, line.generation) not in present
        ]
        if missing:
            found[number] = missing
    return found


def next_start_at(view: View) -> float:
    """When the next slot wants a worker; long past when it is due, infinity when none does."""
    return min(_starts(view).values(), default=float("inf"))


def _starts(view: View) -> dict[int, float]:
    """The slots without a worker of the serving line, and when each may start its next one."""
    starts = {number: view.slots[number].spawn_at for number in _missing(view, [view.serving])}
    if starts and not any(
        worker.generation == view.serving.generation
        and worker.stop_requested_at is None
        and worker.aborted_at is None
        and not worker.killed
        for worker in view.workers
    ):
        # Nobody is served. The slot that would be next is tried early: one at a time, so that a
        # configuration under which every worker dies costs a few starts a second and no more.
        first = min(starts, key=lambda number: (starts[number], number))
        starts[first] = min(starts[first], max(view.slots[number].alone_at for number in starts))
    return starts


def _escalate(now: float, worker: Worker, trusted_from_at: float, rules: Rules) -> Action | None:
    if worker.killed:
        return None
    if worker.aborted_at is not None:
        if now >= worker.aborted_at + rules.abort_grace_s:
            return Kill(worker.pid, f"it did not end within {rules.abort_grace_s:g} s of SIGABRT")
        return None
    if worker.stop_requested_at is not None:
        patience_s = (
            rules.quit_grace_s if worker.quitting else rules.drain_timeout_s + rules.drain_grace_s
        )
        if now >= worker.stop_requested_at + patience_s:
            return Kill(worker.pid, f"it did not end within {patience_s:g} s of being told to")
    silence_s = now - max(worker.beat_at, worker.started_at, trusted_from_at)
    if silence_s > rules.hang_s:
        return Abort(worker.pid, f"no heartbeat for {silence_s:.1f} s")
    return None


def _overrun(view: View, wanted: set[int], escalated: set[int], rules: Rules) -> list[Overrun]:
    draining: dict[int, list[int]] = {}
    for worker in view.workers:
        dying = (
            worker.quitting
            or worker.killed
            or worker.aborted_at is not None
            or worker.pid in escalated
        )
        if worker.generation not in wanted and not dying:
            draining.setdefault(worker.generation, []).append(worker.pid)
    oldest = sorted(draining)[: max(0, len(draining) - rules.old_generations)]
    return [Overrun(number, tuple(draining[number])) for number in oldest]


def _judge(
    now: float, line: Line, workers: Sequence[Worker], rules: Rules
) -> Commit | GiveUp | None:
    if line.deaths:
        return GiveUp(
            line.generation,
            "a worker of the new configuration died before all of them served; its last words are in the log",
        )
    serving = {
        worker.slot
        for worker in workers
        if worker.generation == line.generation and worker.phase is Phase.SERVING
    }
    if len(serving) >= line.slots:
        return Commit(line.generation)
    if now >= line.since_at + rules.start_timeout_s:
        return GiveUp(
            line.generation,
            f"only {len(serving)} of {line.slots} workers of the new configuration served within {rules.start_timeout_s:g} s",
        )
    return None
