"""The loop by itself, with real descriptors.

A handler that raises does not affect others. Nothing is called too late or too early.
"""

import os
import time

import pytest

from relay.worker.loop import BUSY_TURNS, HANDSHAKES_PER_TURN, IN, STEPS_S, Loop


class Owner:
    """What the loop needs of a session; `does` gets events, steps and deadlines."""

    def __init__(self, does, due_at=float("inf")):
        self.timer_at = float("inf")
        self.due = due_at
        self.does = does
        self.bugs = 0

    def on_ready(self, mask):
        self.does(mask)

    def step(self):
        self.does(None)

    def due_at(self):
        return self.due

    def on_deadline(self):
        self.does(None)

    def on_bug(self):
        self.bugs += 1


@pytest.fixture
def loop():
    made = Loop(step_queues=3)
    yield made
    made.close()


@pytest.fixture
def ready(stack):
    """A descriptor that can be read."""

    def make():
        reader, writer = os.pipe()
        stack.callback(os.close, reader)
        stack.callback(os.close, writer)
        os.write(writer, b"x")
        return reader

    return make


def stop(loop):
    def do(_):
        loop.running = False

    return do


def fail(_):
    raise ValueError("a bug")


def test_a_handler_that_raises_ends_only_its_owner(loop, ready, caplog):
    bad, good = Owner(fail), Owner(stop(loop))
    loop.add(ready(), IN, bad.on_ready)
    loop.add(ready(), IN, good.on_ready)
    loop.run()
    assert (bad.bugs, good.bugs) == (1, 0)
    assert "ValueError: a bug" in caplog.text


def test_a_step_and_a_deadline_that_raise_give_their_owners_up(loop, caplog):
    step, deadline = Owner(fail), Owner(fail, due_at=loop.now - 1)
    loop.later(step)
    loop.schedule(deadline)
    last = Owner(stop(loop), due_at=loop.now + 0.01)
    loop.schedule(last)
    loop.run()
    assert (step.bugs, deadline.bugs, last.bugs) == (1, 1, 0)
    assert caplog.text.count("please report this") == 2


def test_a_tick_that_raises_does_not_end_the_loop(caplog):
    calls = []

    def tick():
        calls.append(time.monotonic())
        if len(calls) == 1:
            raise ValueError("a bug")
        loop.running = False

    loop = Loop()
    loop.run(tick)
    loop.close()
    assert len(calls) == 2
    assert "ValueError: a bug" in caplog.text


def test_a_forgotten_descriptor_gets_no_more_events_of_its_turn(loop, ready):
    """It is closed at the end of the turn."""
    seen, closed, fds = [], [], [ready(), ready()]

    def first(fd):
        def do(_):
            seen.append(fd)
            other = fds[1] if fd == fds[0] else fds[0]
            loop.forget(other, lambda: closed.append(other))
            assert not closed
            loop.running = False

        return do

    for fd in fds:
        loop.add(fd, IN, Owner(first(fd)).on_ready)
    loop.run()
    assert len(seen) == 1
    assert len(closed) == 1
    assert seen != closed


def test_a_descriptor_that_was_never_watched_can_be_given_up(loop):
    closed = []
    loop.forget(1_000_000, lambda: closed.append(True))
    loop.schedule(Owner(stop(loop), due_at=loop.now))
    loop.run()
    assert closed == [True]


def test_a_deadline_that_has_moved_away_is_kept(loop):
    began = time.monotonic()
    moved = Owner(stop(loop), due_at=began + 0.05)
    loop.schedule(moved)
    moved.due = began + 0.2
    loop.run()
    assert time.monotonic() - began >= 0.2


def test_a_deadline_that_comes_nearer_is_called_once(loop):
    calls = []
    near = Owner(calls.append, due_at=loop.now + 0.1)
    loop.schedule(near)
    near.due = loop.now + 0.02

    def over(_):
        calls.append("over")
        near.due = float("inf")

    near.does = over
    loop.schedule(near)
    loop.schedule(Owner(stop(loop), due_at=loop.now + 0.2))
    loop.run()
    assert calls == ["over"]


def test_data_comes_first_and_few_handshakes_fit_into_a_turn(loop, ready):
    order = []

    def data(_):
        order.append("data")
        if order.count("data") == 3:
            loop.running = False

    loop.add(ready(), IN, Owner(data).on_ready)
    for _ in range(20):
        loop.later(Owner(lambda _: order.append("step")))
    loop.run()
    turn = ["data", *["step"] * HANDSHAKES_PER_TURN]
    assert order == turn * 3


def test_steps_that_take_long_are_taken_one_a_turn(loop, ready):
    order = []

    def data(_):
        order.append("data")
        if order.count("data") == 3:
            loop.running = False

    def step(_):
        order.append("step")
        until_at = time.monotonic() + 2 * STEPS_S
        while time.monotonic() < until_at:
            pass

    loop.add(ready(), IN, Owner(data).on_ready)
    for _ in range(20):
        loop.later(Owner(step))
    loop.run()
    assert order == ["data", "step"] * 3


def test_steps_of_one_queue_are_taken_together_in_turn(loop):
    taken = []
    for queue, name in ((2, "c"), (0, "a"), (1, "b"), (2, "c"), (0, "a")):
        loop.later(Owner(lambda _, name=name: taken.append(name)), queue)
    flood = 8 * HANDSHAKES_PER_TURN
    for _ in range(flood):
        loop.later(Owner(lambda _: taken.append("a")), 0)
    loop.when_idle = lambda: setattr(loop, "running", False)
    loop.run()
    # Queue after queue, a few steps of each: the flooded one has its second turn after
    # the others had theirs.
    assert taken == ["b", "c", "c", *["a"] * (flood + 2)]


def test_what_can_wait_waits_until_there_is_nothing_to_do(loop):
    done = []
    loop.when_idle = lambda: done.append("idle")
    for number in range(3 * HANDSHAKES_PER_TURN):
        loop.later(Owner(lambda _, number=number: done.append(number)))
    loop.schedule(Owner(stop(loop), due_at=loop.now + 0.05))
    loop.run()
    assert done == [*range(3 * HANDSHAKES_PER_TURN), "idle"]


def test_what_can_wait_does_not_wait_for_ever(loop, ready):
    reader, turns = ready(), []
    loop.when_idle = lambda: setattr(loop, "running", False)
    loop.add(reader, IN, turns.append)  # it is never read, so there is always something to do
    loop.run()
    assert len(turns) == BUSY_TURNS + 1


def test_what_raises_when_there_is_nothing_to_do_ends_nothing(loop, caplog):
    loop.when_idle = lambda: fail(None)
    loop.schedule(Owner(stop(loop), due_at=loop.now + 0.05))
    loop.run()
    assert "ValueError: a bug" in caplog.text
    assert loop.when_idle is None


def test_a_skipped_descriptor_waits_for_the_next_turn(loop, ready):
    fds, seen = [ready(), ready()], []

    def first(_mask):
        seen.append("first")
        loop.skip(fds[1])
        loop.after_turn(lambda: seen.append("the turn is over"))
        loop.watch(fds[0], IN, 0)

    def second(_mask):
        seen.append("second")
        loop.running = False

    loop.add(fds[0], IN, first)
    loop.add(fds[1], IN, second)
    loop.run()
    assert seen == ["first", "the turn is over", "second"]


def test_a_skipped_descriptor_can_get_another_handler(loop, ready):
    fds, seen = [ready(), ready()], []

    def first(_mask):
        seen.append("first")
        loop.skip(fds[1])
        loop.skip(fds[1])
        loop.handle(fds[1], other)
        loop.after_turn(lambda: seen.append("the turn is over"))
        loop.watch(fds[0], IN, 0)

    def other(_mask):
        seen.append("other")
        loop.running = False

    loop.add(fds[0], IN, first)
    loop.add(fds[1], IN, lambda _mask: seen.append("too early"))
    loop.run()
    assert seen == ["first", "the turn is over", "other"]


def test_a_descriptor_forgotten_while_skipped_stays_forgotten(loop, ready):
    fds, seen = [ready(), ready()], []

    def first(_mask):
        loop.skip(fds[1])
        loop.forget(fds[1], lambda: None)
        loop.watch(fds[0], IN, 0)

    loop.add(fds[0], IN, first)
    loop.add(fds[1], IN, lambda _mask: seen.append("too late"))
    turns = iter(range(3))

    def tick():
        loop.running = next(turns) < 1

    loop.run(tick)
    assert seen == []
