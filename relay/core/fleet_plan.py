"""Plans the workers: from how the fleet looks now to what the supervisor must do.

`plan` is called after every event and at least once a second. It keeps no state: the
same view and the same `now` give the same actions. It follows four rules:

- *Targets.* A target is a generation and its number of slots; each slot should have a
  worker. The serving generation always is a target. During a reload the next generation
  is one too, on the same slots. A worker of any other generation is told to drain. So a
  reload adds a target, waits until all its slots serve, and makes it the serving one. A
  failed reload removes the target. Neither affects the old workers. A canary is a
  target of one slot, until it is judged.
- *Death.* A worker that had served is replaced at once, so its successor serves the
  clients that are queued on its sockets. A worker that died before it served is
  replaced at once the first time, then after 0.5, 1, 2 … 30 s. While a slot waits, its
  sockets are closed; otherwise the kernel would queue clients that no worker serves. If
  no slot has a worker, one slot is tried after at most `lone_delay_s`. A slot whose
  workers keep dying early is parked.
- *Room.* Only `old_generations` may drain at once. Beyond that, the oldest are told to
  end their sessions.
- *Escalation.* A worker without heartbeats gets SIGABRT, which makes it print where it
  hangs, and then SIGKILL. A worker that drains for too long gets SIGKILL. A worker that
  a reload replaced may drain without limit; the end of the relay sets it one.

Never: kills, forks or reads a clock. Every time is in seconds of one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from relay.core.fleet_actions import (
    Abort,
    Action,
    Close,
    Commit,
    Decision,
    Drain,
    GiveUp,
    Kill,
    Overrun,
    Park,
    Quit,
    Reopen,
    Spawn,
)
from relay.core.fleet_view import Phase, Rules, Shutdown, Target, View, Worker


def plan(now: float, view: View, rules: Rules) -> list[Action]:
    """What to do now, in order.

    When the actions are done the view has changed, so they are not planned again.
    """
    actions: list[Action] = [
        action
        for worker in view.workers
        if (action := _escalate(now, worker, view.trusted_from_at, rules)) is not None
    ]
    escalated = {action.pid for action in actions if isinstance(action, Abort | Kill)}
    if view.ending is not Shutdown.NO:
        return [*actions, *_end(view, escalated)]
    targets = [view.serving]
    if view.next is not None:
        decision = _decide(now, view.next, view.workers, rules)
        if decision is not None:
            return [*actions, decision]
        targets.append(view.next)
    wanted = {target.generation for target in targets} | view.kept
    actions += [
        Drain(worker.pid)
        for worker in view.workers
        if worker.generation not in wanted
        and worker.stop_requested_at is None
        and worker.aborted_at is None
        and worker.pid not in escalated
    ]
    actions += _overrun(view, wanted, escalated, rules)
    actions += _fill(now, view, targets, rules)
    return actions


def _end(view: View, escalated: set[int]) -> list[Action]:
    """Shut down: tell each worker once."""
    living = [
        worker
        for worker in view.workers
        if worker.aborted_at is None and not worker.killed and worker.pid not in escalated
    ]
    if view.ending is Shutdown.NOW:  # also workers that drain already
        return [Quit(worker.pid) for worker in living if not worker.quitting]
    return [
        Drain(worker.pid)
        for worker in living
        if worker.stop_requested_at is None or worker.replaced
    ]


def _fill(now: float, view: View, targets: Sequence[Target], rules: Rules) -> Iterator[Action]:
    """Start the missing workers; close, park or reopen the slots that wait."""
    start_times = _start_times(view)
    for number, missing in _missing(view, targets).items():
        slot = view.slots[number]
        due = now >= start_times.get(number, slot.spawn_at)
        if slot.parked:
            if due:
                yield Reopen(number)
        elif slot.early_deaths >= rules.park_after_deaths:
            # The next generation shares the sockets. The slot is parked after the
            # reload.
            if view.next is None:
                yield Park(number, slot.early_deaths)
        elif due:
            yield from (Spawn(number, generation) for generation in missing)
        elif slot.early_deaths and not slot.closed and view.next is None:
            yield Close(number)


def _missing(view: View, targets: Sequence[Target]) -> dict[int, list[int]]:
    """By slot: the generations that should have a worker there and have none."""
    present = {
        (worker.slot, worker.generation)
        for worker in view.workers
        if worker.stop_requested_at is None
    }
    found = {}
    for number in range(len(view.slots)):
        missing = [
            target.generation
            for target in targets
            if target.wants(number) and (number, target.generation) not in present
        ]
        if missing:
            found[number] = missing
    return found


def next_start_at(view: View) -> float:
    """When the next worker starts: in the past if one is due, infinity if none is."""
    return min(_start_times(view).values(), default=float("inf"))


def _start_times(view: View) -> dict[int, float]:
    """Slots without a worker of the serving generation, and when each may start one."""
    times = {number: view.slots[number].spawn_at for number in _missing(view, [view.serving])}
    if times and not any(
        worker.generation == view.serving.generation
        and worker.stop_requested_at is None
        and worker.aborted_at is None
        and not worker.killed
        for worker in view.workers
    ):
        # No slot is served, so one slot starts early. Only one at a time: if every
        # worker dies with this configuration, this costs only a few starts per second.
        first = min(times, key=lambda number: (times[number], number))
        times[first] = min(times[first], max(view.slots[number].lone_start_at for number in times))
    return times


def _escalate(
    now: float, worker: Worker, trusted_from_at: float, rules: Rules
) -> Abort | Kill | None:
    """End a worker that hangs, or that does not end when it is told to."""
    if worker.killed:
        return None
    if worker.aborted_at is not None:
        if now >= worker.aborted_at + rules.abort_grace_s:
            return Kill(worker.pid, f"it did not end within {rules.abort_grace_s:g} s of SIGABRT")
        return None
    if worker.stop_requested_at is not None:
        until_at = (
            worker.stop_requested_at + rules.quit_grace_s
            if worker.quitting
            else worker.drain_until_at + rules.drain_grace_s
        )
        if now >= until_at:
            patience_s = until_at - worker.stop_requested_at
            return Kill(worker.pid, f"it did not end within {patience_s:g} s of being told to")
    silent_s = now - max(worker.beat_at, worker.started_at, trusted_from_at)
    if silent_s > rules.hang_s:
        return Abort(worker.pid, f"no heartbeat for {silent_s:.1f} s")
    return None


def _overrun(view: View, wanted: set[int], escalated: set[int], rules: Rules) -> list[Overrun]:
    """End the oldest generations if more than `old_generations` drain."""
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


def _decide(now: float, target: Target, workers: Sequence[Worker], rules: Rules) -> Decision | None:
    """Whether the next generation takes over or is given up; None while it starts."""
    if target.withdrawn:
        return GiveUp(target.generation, target.withdrawn)
    if target.deaths:
        when = "as the canary" if target.canary else "before all of them served"
        return GiveUp(
            target.generation,
            f"a worker of the new configuration died {when}; see its last messages in the log",
        )
    serving = {
        worker.slot
        for worker in workers
        if worker.generation == target.generation and worker.phase is Phase.SERVING
    }
    if target.canary and serving:
        return None  # until it is judged
    wanted = 1 if target.canary else target.slots
    if len(serving) >= wanted:
        return Commit(target.generation)
    if now >= target.since_at + rules.start_timeout_s:
        return GiveUp(
            target.generation,
            f"only {len(serving)} of {wanted} workers of the new configuration served"
            f" within {rules.start_timeout_s:g} s",
        )
    return None
