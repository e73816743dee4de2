"""Rows of processes of the version before an upgrade, in this version's layout.

A generation's memory can be written only by the processes that had it before. So this
version has rows of its own for them, a mirror, and copies.

Never: closes the memory while a process writes it: one more upgrade may come.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from relay.shared.other_version import Description, RowCopy, known_entities
from relay.shared.scoreboard import PID, Scoreboard
from relay.shared.sealed_memory import map_for_reading
from relay.supervisor.scoreboards import Scoreboards


class TakenBoard:
    """The rows of one generation of the version before, and their mirror.

    `described` is as it was handed over, with the descriptors of the memory.
    """

    def __init__(self, described: Description, scoreboards: Scoreboards) -> None:
        self.described = described
        self.fds: list[int] = list(described["segments"])
        self._segments = [map_for_reading(fd) for fd in self.fds]
        self._scoreboards = scoreboards
        self._users = 0
        self._mirror = scoreboards.begin(
            described["number"], known_entities(described["entities"]), described["rows"]
        )

    def take_row(self, slot: int, row: int, pid: int) -> TakenRow:
        """A row for the process that writes this row."""
        segment, position = divmod(row, self.described["rows"])
        width = self.described["cells"]
        start = self.described["header"] + position * width
        source = self._segments[segment][start : start + width]
        own = self._scoreboards.lease(self._mirror, slot)
        target = self._mirror.row(own)
        copy = RowCopy(self.described, self._mirror.layout, source, target)
        copy.copy()
        target[PID] = pid
        self._users += 1
        return TakenRow(self, self._mirror, own, row, copy)

    def end_row(self) -> None:
        """A process has ended."""
        self._users -= 1
        self.close_unused()

    def close_unused(self) -> None:
        """Close the memory if no process has a row in it."""
        if not self._users:
            self.close_files()

    def close_files(self) -> None:
        """Close the memory: when no process uses it, or in a forked child."""
        while self.fds:
            os.close(self.fds.pop())


@dataclass(frozen=True, slots=True)
class TakenRow:
    """A row for one process; `row_there` is its number in the memory it writes."""

    board: TakenBoard
    scoreboard: Scoreboard
    row: int
    row_there: int
    copy: RowCopy

    def end(self) -> None:
        """The process has ended: copy for the last time."""
        self.copy.copy()
        self.board.end_row()


Boards = dict[int, TakenBoard]  # by generation


def describe_taken(boards: Boards) -> list[dict[str, Any]]:
    """The boards that still have processes, for one more upgrade."""
    return [
        {**board.described, "segments": list(board.fds)} for board in boards.values() if board.fds
    ]
