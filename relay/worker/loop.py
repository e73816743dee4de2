"""The event loop of one worker: readiness, deadlines, and fairness between running sessions and handshakes.

One turn: wait; call the handler of every ready fd (data moves first); then at most HANDSHAKES_PER_TURN handshake steps, each of
which costs as much as a hundred messages, and none after STEPS_S, so that a flood of new clients does not delay those who are being served; then the
deadlines that have passed; then the sockets that were given up are closed. Closing last keeps the kernel from giving a number
that is still in this batch of events to a new connection. What can be put off (`when_idle`) waits until there is nothing to do, but
not longer than BUSY_TURNS turns.

The handshake steps of a turn are all of one lane, and those of the next turn of the next lane. The steps of a lane do the same thing, and
all but the first find its code and data in the CPU's caches, out of which steps that are mixed push each other: measured, that is 8 %
of the CPU of a connection.

Deadlines are lazy: a session that moves on only changes its `deadline_at`, and the heap entry it already has looks there again
when it comes up.

Never: knows what a session does; lets an exception of a handler out.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import select
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from relay.errors import Reason, describe_error, is_shortage
from relay.remedies import REMEDIES

HANDSHAKES_PER_TURN = 4
STEPS_S = 0.001  # the steps of a turn may take so long together, and the last one what it takes
EVENTS_PER_TURN = (
    42  # so many fit into a block of the small-object allocator; what is left is the next turn's
)
TICK_S = 1.0
TELL_S = 10.0  # between two messages that this machine is short of something
BUSY_TURNS = 16

IN, OUT, ET = select.EPOLLIN, select.EPOLLOUT, select.EPOLLET
GONE = select.EPOLLHUP | select.EPOLLERR

Handler = Callable[[int], None]
log = logging.getLogger(__name__)


class Timed(Protocol):
    """Something with a deadline (CLOCK_MONOTONIC seconds): `timer_at` belongs to the loop, infinity for no entry."""

    timer_at: float

    def due_at(self) -> float:
        """When to call `on_deadline`; infinity once it is over."""

    def on_deadline(self) -> None:
        """The deadline has passed."""

    def step(self) -> None:
        """Go on with the handshake that `later` was asked for."""

    def on_bug(self) -> None:
        """A handler of this raised: give up whatever it holds."""


class Loop:
    """epoll, a table of handlers by fd, a heap of deadlines. `now` is CLOCK_MONOTONIC, read once per turn; `when_idle` is called once, when set."""

    def __init__(self, on_tick: Callable[[], None], step_queues: int = 1) -> None:
        self.now = time.monotonic()
        self.running = False
        self.live = 0
        self._epoll = select.epoll()
        self._handlers: list[Handler | None] = [None] * 1024
        self._step_queues: list[deque[Timed]] = [deque() for _ in range(step_queues)]
        self._waiting = 0  # in all lanes
        self._lane = 0
        self._heap: list[tuple[float, int, Timed]] = []
        self._entry = itertools.count()
        self._closing: list[Callable[[], None]] = []
        self._on_tick = on_tick
        self.when_idle: Callable[[], None] | None = None
        self._tell_again_at = 0.0

    def add(self, fd: int, mask: int, handler: Handler) -> None:
        """Watch an fd for the first time."""
        handlers = self._handlers
        if fd >= len(handlers):
            handlers.extend([None] * (fd + 1024 - len(handlers)))
        handlers[fd] = handler
        self._epoll.register(fd, mask)

    def handle(self, fd: int, handler: Handler) -> None:
        """Another handler for an fd; what it is watched for stays."""
        self._handlers[fd] = handler

    def watch(self, fd: int, old: int, new: int) -> None:
        """Watch the fd for something else. 0 takes it out of epoll, which reports EPOLLHUP whatever one asks for."""
        if new == old:
            return
        if new == 0:
            self._epoll.unregister(fd)
        elif old == 0:
            self._epoll.register(fd, new)
        else:
            self._epoll.modify(fd, new)

    def forget(self, fd: int, close: Callable[[], None]) -> None:
        """No more events for the fd; `close` is called when this turn's batch is through. Closing takes it out of epoll."""
        if fd < len(self._handlers):  # else it was never watched: refused at once
            self._handlers[fd] = None
        self._closing.append(close)

    def after_turn(self, call: Callable[[], None]) -> None:
        """Call this when this turn's batch is through, as `forget` does."""
        self._closing.append(call)

    def later(self, session: Timed, queue: int = 0) -> None:
        """Call `session.step()` after the data of this turn, or of one of the next, together with others of its lane."""
        self._step_queues[queue].append(session)
        self._waiting += 1

    def schedule(self, session: Timed) -> None:
        """Look at the session's deadline when it is due; called again when the deadline has come nearer."""
        at = session.due_at()
        if at < session.timer_at:
            session.timer_at = at
            heapq.heappush(self._heap, (at, next(self._entry), session))
            if len(self._heap) > 1024 and len(self._heap) > 4 * self.live:
                self._compact()

    def run(self) -> None:
        """Turn until `running` is False."""
        poll, handlers, closing = self._epoll.poll, self._handlers, self._closing
        monotonic = time.monotonic
        self.running = True
        heap = self._heap
        tick_at = now = self.now
        busy_turns = 0
        while self.running:
            # `now` is as old as this turn was long, so the wait may be that much too long: deadlines are coarser than that.
            if self._waiting or self.when_idle is not None:
                wait = 0.0
            else:
                wake_at = tick_at
                if heap and heap[0][0] < wake_at:
                    wake_at = heap[0][0]
                wait = wake_at - now if wake_at > now else 0.0
            try:
                events = poll(wait, EVENTS_PER_TURN)
            except MemoryError:
                time.sleep(
                    0.01
                )  # what other processes give back, or ours when deadlines have passed
                events = []
            self.now = now = monotonic()
            for fd, mask in events:
                handler = handlers[fd]
                if handler is not None:
                    try:
                        handler(mask)
                    except Exception:  # noqa: BLE001 (see _bug)
                        self._bug(handler)
            if self._waiting:
                self._take_steps()
            if heap and heap[0][0] <= now:
                self._expire(now)
            if now >= tick_at:
                tick_at = now + TICK_S
                try:
                    self._on_tick()
                except Exception:  # noqa: BLE001 (see _bug)
                    self._bug(self._on_tick)
            if closing:
                for close in closing:
                    try:
                        close()
                    except Exception:  # noqa: BLE001 (see _bug)
                        self._bug(close)
                closing.clear()
            if self.when_idle is not None:
                busy_turns += 1
                if not (events or self._waiting) or busy_turns > BUSY_TURNS:
                    when_idle, self.when_idle = self.when_idle, None
                    busy_turns = 0
                    try:
                        when_idle()
                    except Exception:  # noqa: BLE001 (see _bug)
                        self._bug(when_idle)

    def close(self) -> None:
        """Give the epoll descriptor back."""
        self._epoll.close()

    def _take_steps(self) -> None:
        """A few steps of the next lane that has any."""
        step_queues = self._step_queues
        at = self._lane
        while True:
            at = at + 1 if at + 1 < len(step_queues) else 0
            queue = step_queues[at]
            if queue:
                break
        self._lane = at
        until_at = time.monotonic() + STEPS_S
        for _ in range(min(len(queue), HANDSHAKES_PER_TURN)):
            session = queue.popleft()
            self._waiting -= 1
            try:
                session.step()
            except Exception:  # noqa: BLE001 (see _bug)
                self._bug(session.step)
            if time.monotonic() > until_at:
                break

    def _expire(self, now: float) -> None:
        heap = self._heap
        while heap and heap[0][0] <= now:
            at, _, session = heapq.heappop(heap)
            if session.timer_at != at:
                continue  # a nearer entry has taken over
            session.timer_at = float("inf")
            due = session.due_at()
            if due <= now:
                try:
                    session.on_deadline()
                except Exception:  # noqa: BLE001 (see _bug)
                    self._bug(session.on_deadline)
            elif due != float("inf"):
                self.schedule(session)

    def _compact(self) -> None:
        """Entries of sessions that are over are many when connections are short: drop them."""
        self._heap[:] = [
            entry
            for entry in self._heap
            if entry[2].due_at() != float("inf") and entry[2].timer_at == entry[0]
        ]
        heapq.heapify(self._heap)

    def _bug(self, handler: Callable[..., None]) -> None:
        """One session's misfortune must not be the others'."""
        error = sys.exception()
        if is_shortage(error):
            self._tell_of_shortage(describe_error(error))
        else:
            log.error(
                "bug: %s raised; its session is closed, the others go on; please report this",
                getattr(handler, "__qualname__", handler),
                exc_info=True,  # noqa: LOG014  called from the handlers of run
            )
        owner = getattr(handler, "__self__", None)
        give_up = getattr(owner, "on_bug", None)
        if give_up is not None:
            try:
                give_up()
            except MemoryError:
                self._tell_of_shortage(
                    "no memory to close a session; it is left open until its peers close"
                )
            except Exception:
                log.exception("bug: giving the session up raised too")

    def _tell_of_shortage(self, words: str) -> None:
        """Once in a while: it is nobody's fault, and happens to many at once."""
        if self.now < self._tell_again_at:
            return
        self._tell_again_at = self.now + TELL_S
        with contextlib.suppress(MemoryError):
            log.error("a session is closed: %s; %s", words, REMEDIES[Reason.NO_RESOURCES])
