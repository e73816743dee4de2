"""What the supervisor has opened, and what a forked child must close of it.

Files are closed in the reverse order of opening, except with `add_last_closed`.

Never: closes anything twice.
"""

from __future__ import annotations

from collections.abc import Callable

Close = Callable[[], object]


class OpenFiles:
    """The ways to close what is open."""

    def __init__(self) -> None:
        self._closers: list[Close] = []
        self._in_child: list[Close] = []

    def add(self, close: Close | None, in_child: Close | None = None) -> None:
        """Something was opened; `in_child` closes its descriptors in a forked child."""
        if close is not None:
            self._closers.append(close)
        if in_child is not None:
            self._in_child.append(in_child)

    def add_last_closed(self, close: Close, in_child: Close) -> None:
        """As `add`, but `close` closes it after everything else."""
        self._closers.insert(0, close)
        self._in_child.append(in_child)

    def close(self) -> None:
        """Close everything, last opened first."""
        while self._closers:
            self._closers.pop()()

    def close_in_child(self) -> None:
        """Close the descriptors in a forked child."""
        for close in self._in_child:
            close()
