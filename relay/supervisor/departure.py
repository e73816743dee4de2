"""The state that a supervisor hands to the next version of the program.

Never: changes anything.
Next: `relay.supervisor.arrival`
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import relay
from relay.shared.other_version import describe_layout
from relay.shared.scoreboard import HEADER_CELLS
from relay.supervisor.control import Client
from relay.supervisor.handover import State
from relay.supervisor.parts import Parts
from relay.supervisor.taken_rows import Boards, describe_taken
from relay.supervisor.update_messages import fingerprint
from relay.supervisor.worker_process import WorkerProcess


def describe(parts: Parts, clients: Sequence[tuple[Client, bool]]) -> State:
    """Everything that the next version takes over.

    `clients` have connected, and may wait for an answer.
    """
    taken: Boards = parts.arrival.boards if parts.arrival is not None else {}
    generations, scoreboards = parts.generations, parts.scoreboards
    return {
        "version": relay.__version__,
        "pid": os.getpid(),
        "started_at": parts.status.started_at,
        "generation": generations.last_number,
        "serving": generations.number,
        "state_dir": str(parts.state_dir.path),
        "lock": parts.state_dir.lock_fd,
        "control": parts.control.fd,
        "admin": parts.admin.described(),
        "checker": parts.checker.described(),
        "lifeline": [parts.lifeline_fd, parts.lifeline_end],
        "listeners": [
            {
                "listener": one.listener,
                "address": one.address,
                "freebind": one.freebind,
                "slot": slot,
                "fd": sock.fileno(),
                "shared": generations.sockets.is_shared(one),
                "activated": generations.sockets.is_activated(sock),
            }
            for one, slot, sock in generations.sockets.described()
        ],
        "stored": parts.store.names,
        "workers": [_worker(each) for each in parts.fleet.workers.processes.values()],
        "updates": parts.updates.number,
        "messages": fingerprint(),
        "boards": [
            {
                "number": board.number,
                "header": HEADER_CELLS,
                "rows": board.rows,
                "segments": [segment.fd for segment in board.segments],
                **describe_layout(board.layout),
            }
            for board in scoreboards.boards()
            if board.number not in taken
        ]
        + describe_taken(taken),
        "totals": scoreboards.totals.describe(),
        "kicks": parts.commands.kicks.described(),
        "clients": [
            {"fd": client.fileno(), "waits": waits}
            for client, waits in clients
            if client.fileno() >= 0  # it has not hung up
        ],
    }


def _worker(process: WorkerProcess) -> dict[str, Any]:
    until_at = process.drain_until_at
    return {
        "pid": process.pid,
        "slot": process.slot,
        "generation": process.generation,
        "row": process.row if process.taken is None else process.taken.row_there,
        "started_at": process.started_at,
        "stop_requested_at": process.stop_requested_at,
        "drain_until_at": None if math.isinf(until_at) else until_at,
        "drain_timeout_s": process.drain_timeout_s,
        "replaced": process.replaced,
        "quitting": process.quitting,
        # With something unsent, it would miss this.
        "updates": None if process.deaf or process.sender.pending else process.sender.fd,
    }
