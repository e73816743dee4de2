"""The checker's loop, for tests of its parts."""

from __future__ import annotations

import heapq
import itertools
import selectors
import time

PATIENCE_S = 15


class Clockwork:
    """A selector and timers, as in the checker."""

    def __init__(self):
        self.selector = selectors.DefaultSelector()
        self._timers, self._entry = [], itertools.count()

    def at(self, when, call):
        heapq.heappush(self._timers, (when, next(self._entry), call))

    def run_until(self, condition):
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            due = min(
                deadline, time.monotonic() + 0.05, *(when for when, _, _ in self._timers[:1])
            )  # the condition may be about a thread
            for key, _ in self.selector.select(max(0.0, due - time.monotonic())):
                key.data()
            while self._timers and self._timers[0][0] <= time.monotonic():
                heapq.heappop(self._timers)[2]()
