"""How long another process takes to answer, whatever else the machine does."""

from __future__ import annotations

import time
from pathlib import Path


def unqueued_s(pid: int) -> float:
    """A monotonic clock that stops while this thread or the process waits for a CPU.

    The difference of two readings is what the process had a part in: its work, and what
    it waited for except other tasks' CPU time.
    """
    return time.monotonic() - _queued_s("thread-self") - _queued_s(str(pid))


def _queued_s(task: str) -> float:
    # Documentation/scheduler/sched-stats.rst: the second field is in nanoseconds. A
    # kernel may have been built without it.
    file = Path(f"/proc/{task}/schedstat")
    return int(file.read_text().split()[1]) / 1e9 if file.exists() else 0.0
