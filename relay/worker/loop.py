"""The event loop of one worker: readiness, deadlines, fairness.

One turn of the loop:

1. Wait, and call the handler of every ready descriptor. Data moves here.
2. Take at most HANDSHAKES_PER_TURN steps of handshakes, and none after STEPS_S. Each
   costs as much as a hundred messages. So a flood of clients delays no session.
3. Call the deadlines that have passed, and the tick once a second.
4. Close the sockets that were given up. This comes last because the kernel may give the
   number of a closed descriptor to a new connection, and events of this turn's batch
   would reach the wrong one.
5. Call `when_idle` if there is nothing else to do, but at least every BUSY_TURNS turns.

Each turn takes steps of one queue only, so their code and data stay in the CPU caches.
Mixing the kinds of step costs 8 % CPU per connection (measured).

Deadlines are lazy: a session that makes progress only changes what `due_at` returns.
Its entry in the heap stays, and is looked at when it comes up.

Never: knows what a session does; ends because a handler raised an exception.
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
STEPS_S = 0.001  # no step begins later than this after the first step of its turn
EVENTS_PER_TURN = 42  # they fit into one block of CPython's small-object allocator
TICK_S = 1.0
REPEAT_S = 10.0  # between two messages that this machine is short of something
BUSY_TURNS = 16

IN, OUT, ET = select.EPOLLIN, select.EPOLLOUT, select.EPOLLET
GONE = select.EPOLLHUP | select.EPOLLERR

Handler = Callable[[int], None]
log = logging.getLogger(__name__)


class Stepped(Protocol):
    """Something that takes steps."""

    def step(self) -> None:
        """Take the step that `later` was asked for."""

    def on_bug(self) -> None:
        """One of its handlers raised: close what it holds."""


class Timed(Stepped, Protocol):
    """Something with steps and a deadline (CLOCK_MONOTONIC seconds)."""

    timer_at: float  # the loop's: of the entry in the heap, or infinity

    def due_at(self) -> float:
        """When to call `on_deadline`. Infinity after the end."""

    def on_deadline(self) -> None:
        """The deadline has passed."""


class Loop:
    """epoll, a table of handlers by descriptor, and a heap of deadlines.

    `now` is CLOCK_MONOTONIC, read once per turn. `when_idle` is called once, when set.
    """

    def __init__(self, step_queues: int = 1) -> None:
        self.now = time.monotonic()
        self.running = False
        self.live = 0  # sessions; the heap is kept in proportion to them
        self.when_idle: Callable[[], None] | None = None
        self._epoll = select.epoll()
        self._handlers: list[Handler | None] = [None] * 1024
        self._skipped: dict[int, Handler] = {}  # the handlers after this turn
        self._step_queues: list[deque[Stepped]] = [deque() for _ in range(step_queues)]
        self._waiting = 0  # steps in all queues
        self._queue = 0  # of the last steps
        self._heap: list[tuple[float, int, Timed]] = []
        self._entry = itertools.count()
        self._closing: list[Callable[[], None]] = []
        self._repeat_at = 0.0

    def add(self, fd: int, mask: int, handler: Handler) -> None:
        """Watch a descriptor for the first time."""
        handlers = self._handlers
        if fd >= len(handlers):
            handlers.extend([None] * (fd + 1024 - len(handlers)))
        handlers[fd] = handler
        self._epoll.register(fd, mask)

    def handle(self, fd: int, handler: Handler) -> None:
        """Call another handler for the same events of a descriptor."""
        (self._skipped if fd in self._skipped else self._handlers)[fd] = handler

    def skip(self, fd: int) -> None:
        """Drop what is left of this turn's events of a level-triggered descriptor."""
        handler = self._handlers[fd]
        if handler is not None:
            self._skipped[fd], self._handlers[fd] = handler, None
            self.after_turn(lambda: self._end_skip(fd))

    def _end_skip(self, fd: int) -> None:
        handler = self._skipped.pop(fd, None)  # None if it was forgotten
        if handler is not None:
            self._handlers[fd] = handler

    def watch(self, fd: int, old: int, new: int) -> None:
        """Watch a descriptor for other events.

        0 takes it out of epoll, which would report EPOLLHUP for any other mask.
        """
        if new == old:
            return
        if new == 0:
            self._epoll.unregister(fd)
        elif old == 0:
            self._epoll.register(fd, new)
        else:
            self._epoll.modify(fd, new)

    def forget(self, fd: int, close: Callable[[], None]) -> None:
        """Report no more events of it, and call `close` at the end of this turn.

        Closing takes it out of epoll.
        """
        if fd < len(self._handlers):  # false if it was refused at once and never watched
            self._handlers[fd] = None
            self._skipped.pop(fd, None)
        self._closing.append(close)

    def after_turn(self, call: Callable[[], None]) -> None:
        """Call this at the end of this turn, as `forget` does."""
        self._closing.append(call)

    def later(self, session: Stepped, queue: int = 0) -> None:
        """Call `session.step()` soon, together with other steps of its queue."""
        self._step_queues[queue].append(session)
        self._waiting += 1

    def schedule(self, session: Timed) -> None:
        """Look at the deadline when it is due. Call again if it comes nearer."""
        at = session.due_at()
        if at < session.timer_at:
            session.timer_at = at
            heapq.heappush(self._heap, (at, next(self._entry), session))
            if len(self._heap) > 1024 and len(self._heap) > 4 * self.live:
                self._compact()

    def run(self, on_tick: Callable[[], None] = lambda: None) -> None:
        """Turn until `running` is False; `on_tick` is called once a second."""
        poll, handlers, closing = self._epoll.poll, self._handlers, self._closing
        monotonic = time.monotonic
        self.running = True
        heap = self._heap
        tick_at = now = self.now
        busy_turns = 0
        while self.running:
            # `now` is from the beginning of the last turn, so the wait may be too long
            # by the length of that turn. Deadlines are coarser than that.
            if self._waiting or self.when_idle is not None:
                wait = 0.0
            else:
                wake_at = tick_at
                if heap and heap[0][0] < wake_at:
                    wake_at = heap[0][0]
                wait = wake_at - now if wake_at > now else 0.0
            try:
                events = poll(wait, EVENTS_PER_TURN)
                # After SIGCONT Python reports no events if the time is over.
                if not events and heap and heap[0][0] <= monotonic():
                    events = poll(0, EVENTS_PER_TURN)
            except MemoryError:
                time.sleep(0.01)  # other processes or passed deadlines may free memory
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
                self._call(on_tick)
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
                    self._call(when_idle)

    def close(self) -> None:
        """Close the epoll descriptor."""
        self._epoll.close()

    def _call(self, handler: Callable[[], None]) -> None:
        try:
            handler()
        except Exception:  # noqa: BLE001 (see _bug)
            self._bug(handler)

    def _take_steps(self) -> None:
        """Take a few steps of the next queue that has any."""
        step_queues = self._step_queues
        at = self._queue
        while True:
            at = at + 1 if at + 1 < len(step_queues) else 0
            queue = step_queues[at]
            if queue:
                break
        self._queue = at
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
                continue  # a nearer entry has replaced this one
            session.timer_at = float("inf")
            due = session.due_at()
            if due <= now:
                self._call(session.on_deadline)
            elif due != float("inf"):
                self.schedule(session)

    def _compact(self) -> None:
        """Drop the entries of closed sessions: many, if connections are short."""
        self._heap[:] = [
            entry
            for entry in self._heap
            if entry[2].due_at() != float("inf") and entry[2].timer_at == entry[0]
        ]
        heapq.heapify(self._heap)

    def _bug(self, handler: Callable[..., None]) -> None:
        """A handler raised: close its session only, and go on."""
        error = sys.exception()
        if is_shortage(error):
            self._report_shortage(describe_error(error))
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
                self._report_shortage(
                    "no memory to close a session; it stays open until its peers close"
                )
            except Exception:
                log.exception("bug: closing the session of a bug raised too; please report this")

    def _report_shortage(self, words: str) -> None:
        """Log it once per REPEAT_S: a shortage affects many sessions at once."""
        if self.now < self._repeat_at:
            return
        self._repeat_at = self.now + REPEAT_S
        with contextlib.suppress(MemoryError):
            log.error("a session is closed: %s; %s", words, REMEDIES[Reason.NO_RESOURCES])
