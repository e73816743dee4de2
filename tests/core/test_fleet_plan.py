"""The plan as a table: how the fleet looks, and what is to be done."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.fleet_actions import (
    Abort,
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
from relay.core.fleet_plan import next_start_at, plan
from relay.core.fleet_view import Phase, Rules, Shutdown, Slot, Target, View, Worker
from relay.core.respawn import (
    after_death,
    after_failed_start,
    after_park,
    after_reopen,
    respawn_delay_s,
)

RULES = Rules(drain_timeout_s=30, drain_grace_s=3, hang_s=10)
NOW = 1000.0
ONE = (Slot(),)


def worker(
    pid=1, slot=0, generation=1, *, phase=Phase.SERVING, started_at=NOW - 100, beat_at=NOW, **more
):
    return Worker(pid, slot, generation, phase, started_at, beat_at, **more)


def view(*workers, slots=ONE, serving=None, **more):
    return View(
        workers=workers, slots=tuple(slots), serving=serving or Target(1, len(slots)), **more
    )


TWO = (Slot(), Slot())
NEXT = Target(2, 1, since_at=NOW - 1)
CANARY = Target(2, 2, since_at=NOW - 1, canary=True)

# As many old generations as may drain at once, the first of them with two workers.
OLD = (
    worker(11, 1, 1, stop_requested_at=NOW - 1),
    *(worker(n, 0, n, stop_requested_at=NOW - 1, phase=Phase.DRAINING) for n in range(1, 9)),
)

TABLE = {
    "an empty fleet is filled": (view(slots=TWO), [Spawn(0, 1), Spawn(1, 1)]),
    "a full fleet needs nothing": (view(worker(1, 0), worker(2, 1), slots=TWO), []),
    "only the missing slot is filled": (view(worker(1, 0), slots=TWO), [Spawn(1, 1)]),
    "a slot that backs off takes no clients": (
        view(worker(1, 1), slots=(Slot(2, NOW + 0.1), Slot())),
        [Close(0)],
    ),
    "a slot that backs off waits": (
        view(worker(1, 1), slots=(Slot(2, NOW + 0.1, closed=True), Slot())),
        [],
    ),
    "a slot whose worker is replaced in a moment keeps its queue": (
        view(worker(1, 1), slots=(Slot(0, NOW + 0.1), Slot())),
        [],
    ),
    "a slot that backs off during a reload keeps its sockets, which the next generation shares": (
        view(worker(1, 1), slots=(Slot(2, NOW + 0.1), Slot()), next=Target(2, 2, NOW - 1)),
        [Spawn(1, 2)],
    ),
    "when no slot is served, the next one is tried early": (
        view(
            slots=(
                Slot(4, NOW + 9, closed=True, lone_start_at=NOW),
                Slot(3, NOW + 5, closed=True, lone_start_at=NOW - 1),
            )
        ),
        [Spawn(1, 1)],
    ),
    "when no slot is served, two tries have a pause between them": (
        view(
            slots=(
                Slot(4, NOW + 9, closed=True, lone_start_at=NOW + 0.1),
                Slot(3, NOW + 5, closed=True, lone_start_at=NOW - 1),
            )
        ),
        [],
    ),
    "when no slot is served, a parked one is tried early too": (
        view(slots=(Slot(8, NOW + 50, parked=True, closed=True, lone_start_at=NOW),)),
        [Reopen(0)],
    ),
    "while a worker starts, no slot is tried early": (
        view(
            worker(1, 1, phase=Phase.STARTING),
            slots=(Slot(4, NOW + 9, closed=True, lone_start_at=NOW - 1), Slot()),
        ),
        [],
    ),
    "a worker that hangs does not count as serving": (
        view(
            worker(1, 1, aborted_at=NOW),
            slots=(Slot(4, NOW + 9, closed=True, lone_start_at=NOW - 1), Slot()),
        ),
        [Spawn(0, 1)],
    ),
    "a slot whose wait is over is filled": (view(slots=(Slot(2, NOW),)), [Spawn(0, 1)]),
    "a crash loop parks its slot": (view(slots=(Slot(8, NOW + 30),)), [Park(0, 8)]),
    "a parked slot waits": (
        view(worker(1, 1), slots=(Slot(8, NOW + 1, parked=True), Slot())),
        [],
    ),
    "a parked slot is tried again": (view(slots=(Slot(8, NOW, parked=True),)), [Reopen(0)]),
    "a silent worker is aborted": (
        view(worker(beat_at=NOW - 11)),
        [Abort(1, "no heartbeat for 11.0 s")],
    ),
    "a worker is not silent at the limit": (view(worker(beat_at=NOW - 10)), []),
    "a worker that just started is not silent": (
        view(worker(beat_at=0, started_at=NOW - 1, phase=Phase.STARTING)),
        [],
    ),
    "silence does not count when the supervisor did not run": (
        view(worker(beat_at=NOW - 60), trusted_from_at=NOW - 1),
        [],
    ),
    "an aborted worker gets a second": (view(worker(beat_at=NOW - 12, aborted_at=NOW - 0.5)), []),
    "an aborted worker that stays is killed": (
        view(worker(beat_at=NOW - 12, aborted_at=NOW - 1)),
        [Kill(1, "it did not end within 1 s of SIGABRT")],
    ),
    "a killed worker is not killed again": (
        view(worker(beat_at=NOW - 30, aborted_at=NOW - 9, killed=True)),
        [],
    ),
    "an aborted worker is not replaced before it is dead": (view(worker(aborted_at=NOW)), []),
    "old generations drain side by side": (
        view(*OLD, worker(9, generation=9), serving=Target(9, 1)),
        [],
    ),
    "when one more drains than may, the oldest is ended": (
        view(
            *OLD,
            worker(9, 0, 9, stop_requested_at=NOW, phase=Phase.DRAINING),
            worker(10, 0, 10),
            serving=Target(10, 1),
        ),
        [Overrun(1, (11, 1))],
    ),
    "a generation that is being ended does not count": (
        view(
            *(replace(one, quitting=one.generation == 1) for one in OLD),
            worker(9, 0, 9, stop_requested_at=NOW),
            worker(10, 0, 10),
            serving=Target(10, 1),
        ),
        [],
    ),
    "when many more drain than may, all but the newest are ended": (
        view(
            *OLD,
            *(worker(20 + n, 0, 8 + n, stop_requested_at=NOW) for n in range(1, 4)),
            worker(12, 0, 12),
            serving=Target(12, 1),
        ),
        [Overrun(1, (11, 1)), Overrun(2, (2,)), Overrun(3, (3,))],
    ),
    "the serving generation and a next generation are never ended for others": (
        view(
            *OLD,
            worker(9, 0, 9),
            worker(10, 0, 10, phase=Phase.STARTING),
            serving=Target(9, 1),
            next=Target(10, 1, NOW - 1),
        ),
        [],
    ),
    "a draining worker does not fill its slot": (
        view(worker(stop_requested_at=NOW, phase=Phase.DRAINING)),
        [Spawn(0, 1)],
    ),
    "a draining worker is killed after its time": (
        view(worker(2), worker(1, stop_requested_at=NOW - 33, drain_until_at=NOW - 3)),
        [Kill(1, "it did not end within 33 s of being told to")],
    ),
    "a draining worker has its time": (
        view(worker(2), worker(1, stop_requested_at=NOW - 32, drain_until_at=NOW - 2)),
        [],
    ),
    "a replaced worker may drain without limit": (
        view(worker(2), worker(1, stop_requested_at=NOW - 1e6, replaced=True)),
        [],
    ),
    "a replaced worker whose time was shortened gets the grace of every worker": (
        view(worker(2), worker(1, stop_requested_at=NOW - 99, drain_until_at=NOW, replaced=True)),
        [],
    ),
    "the end of the relay is told to replaced workers too": (
        view(
            worker(2), worker(1, stop_requested_at=NOW - 99, replaced=True), ending=Shutdown.DRAIN
        ),
        [Drain(2), Drain(1)],
    ),
    "a replaced worker that hangs is aborted": (
        view(worker(2), worker(1, stop_requested_at=NOW - 99, replaced=True, beat_at=NOW - 15)),
        [Abort(1, "no heartbeat for 15.0 s")],
    ),
    "a draining worker that is silent is aborted": (
        view(worker(2), worker(1, stop_requested_at=NOW - 20, beat_at=NOW - 15)),
        [Abort(1, "no heartbeat for 15.0 s")],
    ),
    "a next generation starts beside the serving worker": (
        view(worker(1), next=NEXT),
        [Spawn(0, 2)],
    ),
    "a starting candidate is waited for": (
        view(worker(1), worker(2, generation=2, phase=Phase.STARTING), next=NEXT),
        [],
    ),
    "a serving candidate is committed": (
        view(worker(1), worker(2, generation=2), next=NEXT),
        [Commit(2)],
    ),
    "a next generation with more slots fills them": (
        view(worker(1), slots=TWO, serving=Target(1, 1), next=Target(2, 2, NOW)),
        [Spawn(0, 2), Spawn(1, 2)],
    ),
    "a next generation with fewer slots is committed on those": (
        view(worker(1), worker(2, 1), worker(3, 0, 2), slots=TWO, next=NEXT),
        [Commit(2)],
    ),
    "a next generation that dies is given up": (
        view(worker(1), next=replace(NEXT, deaths=1)),
        [
            GiveUp(
                2,
                "a worker of the new configuration died before all of them served; see its last"
                " messages in the log",
            )
        ],
    ),
    "a next generation that does not come up in time is given up": (
        view(worker(1), worker(2, generation=2, phase=Phase.STARTING), next=Target(2, 1, NOW - 30)),
        [GiveUp(2, "only 0 of 1 workers of the new configuration served within 30 s")],
    ),
    "a canary starts on one slot": (
        view(worker(1), worker(2, 1), slots=TWO, next=CANARY),
        [Spawn(0, 2)],
    ),
    "a canary that serves waits until it is judged": (
        view(worker(1), worker(2, 1), worker(3, 0, 2), slots=TWO, next=CANARY),
        [],
    ),
    "serving workers are replaced beside a canary": (
        view(worker(3, 0, 2), slots=TWO, next=CANARY),
        [Spawn(0, 1), Spawn(1, 1)],
    ),
    "the rest of the generation follows a canary that was promoted": (
        view(worker(1), worker(2, 1), worker(3, 0, 2), slots=TWO, next=Target(2, 2, NOW)),
        [Spawn(1, 2)],
    ),
    "a canary that is withdrawn is given up": (
        view(worker(1), worker(2, 1), slots=TWO, next=replace(CANARY, withdrawn="it is worse")),
        [GiveUp(2, "it is worse")],
    ),
    "a canary that dies is given up": (
        view(worker(1), worker(2, 1), slots=TWO, next=replace(CANARY, deaths=1)),
        [
            GiveUp(
                2,
                "a worker of the new configuration died as the canary; see its last messages in"
                " the log",
            )
        ],
    ),
    "a canary that does not come up in time is given up": (
        view(worker(1), worker(2, 1), slots=TWO, next=replace(CANARY, since_at=NOW - 30)),
        [GiveUp(2, "only 0 of 1 workers of the new configuration served within 30 s")],
    ),
    "a serving worker that dies during a reload is replaced": (
        view(worker(2, generation=2, phase=Phase.STARTING), next=NEXT),
        [Spawn(0, 1)],
    ),
    "the old generation drains after a commit": (
        view(worker(1), worker(2, generation=2), serving=Target(2, 1)),
        [Drain(1)],
    ),
    "the next generation drains when it was given up": (
        view(worker(1), worker(2, generation=2)),
        [Drain(2)],
    ),
    "a removed slot is left empty": (view(worker(1), slots=TWO, serving=Target(1, 1)), []),
    "the end drains everybody": (
        view(worker(1), worker(2, 1), slots=TWO, ending=Shutdown.DRAIN),
        [Drain(1), Drain(2)],
    ),
    "a shutdown tells no worker twice": (
        view(worker(1, stop_requested_at=NOW - 1), ending=Shutdown.DRAIN),
        [],
    ),
    "a shutdown starts no worker": (view(slots=TWO, ending=Shutdown.DRAIN), []),
    "the end now is said as such": (view(worker(1), ending=Shutdown.NOW), [Quit(1)]),
    "the end now does not wait for the drain timeout": (
        view(worker(1, stop_requested_at=NOW - 2, quitting=True), ending=Shutdown.NOW),
        [Kill(1, "it did not end within 2 s of being told to")],
    ),
    "the end now is for those that drain, too": (
        view(worker(1, stop_requested_at=NOW - 20, phase=Phase.DRAINING), ending=Shutdown.NOW),
        [Quit(1)],
    ),
    "the end now is said once": (
        view(worker(1, stop_requested_at=NOW - 1, quitting=True), ending=Shutdown.NOW),
        [],
    ),
    "the end of a next generation is the same": (
        view(worker(1), worker(2, generation=2), next=NEXT, ending=Shutdown.DRAIN),
        [Drain(1), Drain(2)],
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_the_plan_says(case):
    seen, expected = TABLE[case]
    assert plan(NOW, seen, RULES) == expected


def test_delays_after_early_deaths_double_up_to_30_s():
    """The first early death has no delay."""
    assert [respawn_delay_s(deaths, RULES) for deaths in range(1, 11)] == [
        0,
        0.5,
        1,
        2,
        4,
        8,
        16,
        30,
        30,
        30,
    ]
    assert respawn_delay_s(100_000, RULES) == 30


def test_a_worker_that_lived_long_leaves_no_mark_on_its_slot():
    assert after_death(NOW, Slot(5, 0), worker(started_at=NOW - 10), RULES) == Slot(0, NOW)


def dead(started_at, phase=Phase.STARTING):
    return worker(started_at=started_at, phase=phase)


def test_early_deaths_park_a_slot_and_one_more_parks_it_again():
    other = worker(9, 1)
    slot = Slot()
    for _ in range(8):
        slot = after_death(NOW, slot, dead(NOW - 1), RULES)
    assert plan(NOW, view(other, slots=[slot, Slot()]), RULES) == [Park(0, 8)]
    parked = after_park(NOW, slot, RULES)
    assert (
        plan(NOW + 59, view(replace(other, beat_at=NOW + 59), slots=[parked, Slot()]), RULES) == []
    )
    assert plan(NOW + 60, view(slots=[parked]), RULES) == [Reopen(0)]
    reopened = after_reopen(NOW + 60, RULES)
    assert plan(NOW + 60, view(slots=[reopened]), RULES) == [Spawn(0, 1)]
    again = after_death(NOW + 61, reopened, dead(NOW + 60), RULES)
    assert plan(NOW + 61, view(slots=[again]), RULES) == [Park(0, 8)]


@pytest.mark.parametrize("phase", [Phase.SERVING, Phase.DRAINING])
def test_a_worker_that_had_served_is_always_replaced_at_once(phase):
    """Clients wait in its sockets' queue. A short pause bounds the cost of kills."""
    slot = Slot()
    for at in range(100):
        slot = after_death(NOW + at, slot, dead(NOW + at - 0.25, phase), RULES)
        assert slot == Slot(spawn_at=NOW + at)
    slot = after_death(NOW, slot, dead(NOW - 0.05, phase), RULES)
    assert slot.early_deaths == 0
    assert slot.spawn_at == pytest.approx(NOW + 0.15)


def test_a_start_that_fails_is_an_early_death():
    assert after_failed_start(NOW, Slot(), RULES) == after_death(NOW, Slot(), dead(NOW), RULES)
    assert after_failed_start(NOW, Slot(2, closed=True), RULES) == Slot(
        3, NOW + 1, closed=True, lone_start_at=NOW + 0.5
    )


def test_the_next_start_is_early_when_no_slot_is_served():
    slots = (Slot(4, NOW + 9, lone_start_at=NOW + 0.5), Slot(5, NOW + 5, lone_start_at=NOW + 0.2))
    assert next_start_at(view(slots=slots)) == NOW + 0.5
    assert next_start_at(view(worker(1, 1), slots=slots)) == NOW + 9
    assert next_start_at(view(worker(1, 1), worker(2, 0), slots=slots)) == float("inf")


instants = st.floats(0, 200)
workers = st.builds(
    Worker,
    pid=st.integers(1, 50),
    slot=st.integers(0, 3),
    generation=st.integers(1, 3),
    phase=st.sampled_from(Phase),
    started_at=instants,
    beat_at=instants,
    stop_requested_at=st.none() | instants,
    aborted_at=st.none() | instants,
    killed=st.booleans(),
    quitting=st.booleans(),
    drain_until_at=instants,
    replaced=st.booleans(),
)
views = st.builds(
    View,
    workers=st.lists(workers, max_size=8, unique_by=lambda w: w.pid).map(tuple),
    slots=st.lists(
        st.builds(Slot, st.integers(0, 9), instants, st.booleans(), st.booleans(), instants),
        min_size=1,
        max_size=4,
    ).map(tuple),
    serving=st.builds(Target, st.integers(1, 2), st.integers(1, 4)),
    next=st.none() | st.builds(Target, st.just(3), st.integers(1, 4), instants, st.integers(0, 1)),
    ending=st.sampled_from(Shutdown),
    trusted_from_at=instants,
)


@given(instants, views)
def test_a_process_gets_one_action_and_a_killed_one_none(now, seen):
    actions = plan(now, seen, RULES)
    pids = [action.pid for action in actions if isinstance(action, Drain | Quit | Abort | Kill)]
    assert len(pids) == len(set(pids))
    assert not set(pids) & {
        w.pid for w in seen.workers if w.killed and w.stop_requested_at is not None
    }


@given(instants, views)
def test_a_slot_gets_one_worker_per_generation(now, seen):
    """And none while it is parked or the relay ends."""
    spawns = [action for action in plan(now, seen, RULES) if isinstance(action, Spawn)]
    assert len(spawns) == len(set(spawns))
    assert not (spawns and seen.ending is not Shutdown.NO)
    for spawn in spawns:
        assert not seen.slots[spawn.slot].parked
        assert not any(
            w.stop_requested_at is None and (w.slot, w.generation) == (spawn.slot, spawn.generation)
            for w in seen.workers
        )


@given(views)
def test_every_worker_is_told_or_killed_in_the_end(seen):
    living = {w.pid: replace(w, beat_at=0) for w in replace(seen, ending=Shutdown.DRAIN).workers}
    for now in range(200, 400):
        for action in plan(
            now,
            replace(seen, ending=Shutdown.DRAIN, workers=tuple(living.values()), trusted_from_at=0),
            RULES,
        ):
            if isinstance(action, Kill):
                del living[action.pid]
            elif isinstance(action, Abort):
                living[action.pid] = replace(living[action.pid], aborted_at=now)
            elif isinstance(action, Drain):
                living[action.pid] = replace(
                    living[action.pid],
                    stop_requested_at=now,
                    drain_until_at=now + RULES.drain_timeout_s,
                    replaced=False,
                )
    assert all(w.killed for w in living.values())
