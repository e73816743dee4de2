"""Takes over the processes and counters of the version before an upgrade.

Its workers serve until the new ones do, and drain then, as after a reload. They write
into memory that this process can only read, in the layout of their version. So each has
a row of this version too, into which a `RowCopy` copies.

Never: starts, signals or ends a process.
"""

from __future__ import annotations

import math
import os
import socket
from typing import Any

from relay.core.kicks import Kick, parse_target
from relay.shared.scoreboard import CHECKER_SLOT
from relay.shared.update_channel import UpdateSender
from relay.supervisor.handover import State
from relay.supervisor.listen_addresses import ListenAddress
from relay.supervisor.process import take_child
from relay.supervisor.scoreboards import Scoreboards
from relay.supervisor.slot_sockets import SlotSockets
from relay.supervisor.taken_rows import Boards, TakenBoard, TakenRow
from relay.supervisor.update_messages import fingerprint
from relay.supervisor.worker_process import WorkerProcess


class Arrival:
    """What the version before has left, by the kind of its user."""

    def __init__(self, state: State, scoreboards: Scoreboards) -> None:
        boards = self.boards = {
            each["number"]: TakenBoard(each, scoreboards) for each in state["boards"]
        }
        understood = state.get("messages") == fingerprint()
        self.workers = [_worker(each, boards, understood) for each in state["workers"]]
        self.checker: tuple[int, TakenRow] | None = None
        if (found := state["checker"]) is not None:
            board = boards[found["generation"]]
            row = board.take_row(CHECKER_SLOT, found["row"], found["pid"])
            self.checker = found["pid"], row
            take_child(found["pid"])
        if state["admin"] is not None and state["admin"]["pid"] is not None:
            take_child(state["admin"]["pid"])

        for board in boards.values():
            board.close_unused()

    def close_files(self) -> None:
        """Close all memory: in a forked child."""
        for board in self.boards.values():
            board.close_files()


def _worker(described: dict[str, Any], boards: Boards, understood: bool) -> WorkerProcess:
    pid, slot = described["pid"], described["slot"]
    taken = boards[described["generation"]].take_row(slot, described["row"], pid)
    take_child(pid)
    until_at, updates = described["drain_until_at"], described["updates"]
    if updates is not None and not understood:
        os.close(updates)
        updates = None
    return WorkerProcess(
        pid=pid,
        slot=slot,
        generation=described["generation"],
        scoreboard=taken.scoreboard,
        row=taken.row,
        started_at=described["started_at"],
        sender=UpdateSender.taken(updates),
        drain_timeout_s=described["drain_timeout_s"],
        stop_requested_at=described["stop_requested_at"],
        quitting=described["quitting"],
        drain_until_at=math.inf if until_at is None else until_at,
        replaced=described["replaced"],
        taken=taken,
        deaf=updates is None,
    )


def taken_sockets(state: State) -> SlotSockets:
    """The listening sockets of the version before."""
    found = [
        (
            ListenAddress(one["listener"], one["address"], one["freebind"]),
            one["slot"],
            socket.socket(fileno=one["fd"]),
        )
        for one in state["listeners"]
    ]
    flags = list(zip(found, state["listeners"], strict=True))
    return SlotSockets.of(
        found,
        {address.key for (address, _, _), one in flags if one["shared"]},
        {sock for (_, _, sock), one in flags if one["activated"]},
    )


def taken_kicks(state: State) -> tuple[Kick, ...]:
    """The clients that are kept out."""
    return tuple(
        Kick(parse_target(one["target"]), one["by"], one["why"], one["since_at"], one["until_at"])
        for one in state["kicks"]
    )
