"""The wall clock of workers, which a test sets."""

from __future__ import annotations

import mmap
import time


class Clock:
    """What workers take for the module `time`: the wall clock is `shift_s` later.

    Workers that are forked afterwards share the shift with the test.
    """

    monotonic = staticmethod(time.monotonic)
    strftime = staticmethod(time.strftime)
    gmtime = staticmethod(time.gmtime)

    def __init__(self) -> None:
        self._shift_s = memoryview(mmap.mmap(-1, 8)).cast("d")

    def shift(self, shift_s: float) -> None:
        """Set the clock to this many seconds later than it is."""
        self._shift_s[0] = shift_s

    def time(self) -> float:
        """Unix time."""
        return time.time() + self._shift_s[0]
