"""`relay kick` in the supervisor: who is kept out, and the order to all workers.

Every order has the whole list, so a worker needs only the last one. Workers that are
forked later inherit the list. It is in memory: a restart of the relay forgets it.

Never: waits for a worker; looks at a session.
Next: `relay.worker.kicked`
"""

from __future__ import annotations

import logging
import pickle
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from relay.core.kicks import MOST_KICKS, Kick, KickRequest, Target, parse_request
from relay.core.untrusted import clip
from relay.shared.entities import KICKED_SESSIONS
from relay.shared.replies import KicksReply
from relay.shared.scoreboard import UPDATE
from relay.supervisor.control import Client, refused
from relay.supervisor.process import EXIT_CANNOT_START
from relay.supervisor.updates import Updates
from relay.supervisor.worker_process import WorkerProcess
from relay.supervisor.workers import Workers
from relay.worker.kicked import KickUpdate

STEP_S = 0.002
PATIENCE_S = 2.0  # after this time the answer names the workers that are silent

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Order:
    """An order to the workers, until all have carried it out."""

    request: KickRequest
    client: Client
    lifted: bool
    number: int
    until_at: float
    ended_before: dict[int, int]
    ended: dict[int, int]
    """How many sessions kicks have ended in each worker, by pid."""


class Kicks:
    """All kicks of one relay. Orders are carried out one after the other."""

    def __init__(self, workers: Workers, updates: Updates) -> None:
        self._workers = workers
        self._updates = updates
        self._kicks: dict[Target, Kick] = {}
        self._requests: deque[tuple[KickRequest, Client]] = deque()
        self._order: _Order | None = None

    @property
    def due_at(self) -> float:
        """When to call `step`: soon, while a client waits for its answer."""
        return time.monotonic() + STEP_S if self._order is not None else float("inf")

    def answer(self, request: dict[str, Any], client: Client) -> None:
        """The request `kicks` or `kick`. The latter is answered later."""
        if request["command"] == "kicks":
            client.reply(self._list())
            return
        try:
            asked = parse_request(request, uid=client.uid)
        except ValueError as error:
            client.reply(refused(str(error)))
            return
        self._requests.append((asked, client))
        self.step(time.monotonic())

    def step(self, now: float) -> None:
        """Answer the order that is done, and begin the next one.

        Call this before ended workers are reaped: then their rows are gone.
        """
        order = self._order
        if order is not None:
            self._workers.copy_rows()
            asked = [
                process
                for pid, process in self._workers.processes.items()
                if pid in order.ended_before
            ]
            order.ended |= _ended(asked)
            silent = [
                process.pid
                for process in asked
                if process.scoreboard.row(process.row)[UPDATE] < order.number
            ]
            if silent and now < order.until_at:
                return
            self._order = None
            self._finish(order, silent)
        while self._requests and self._order is None:
            self._begin(*self._requests.popleft())

    def _begin(self, request: KickRequest, client: Client) -> None:
        now = time.monotonic()
        kept = {target: kick for target, kick in self._kicks.items() if now < kick.until_at}
        kick = Kick(request.target, request.by, request.why, now, now + request.duration_s)
        lifted = request.undo and kept.pop(request.target, None) is not None
        if not request.undo and request.duration_s:
            kept[request.target] = kick
        if len(kept) > MOST_KICKS:
            what = f"{MOST_KICKS} clients are kept out already, which is the limit"
            client.reply(refused(f"{what}; let one in with: relay kick --undo CLIENT"))
            return
        update = KickUpdate(tuple(kept.values()), None if request.undo else kick)
        self._workers.copy_rows()
        before = _ended(self._workers.processes.values())
        try:
            number = self._updates.send(pickle.dumps(update))
        except OSError as error:
            what = f"this machine gave the relay too little memory: {error.strerror or error}"
            client.reply({"ok": False, "code": EXIT_CANNOT_START, "error": what})
            return
        if not request.undo:
            self._workers.quit_deaf("it is of another version, and cannot end a client's sessions")
        self._kicks = kept
        self._workers.kicks = update.kept_out
        until_at = now + PATIENCE_S
        self._order = _Order(request, client, lifted, number, until_at, before, {})

    def _finish(self, order: _Order, silent: list[int]) -> None:
        """Log what was done, and answer the client."""
        request = order.request
        ended = sum(order.ended.values()) - sum(order.ended_before[pid] for pid in order.ended)
        kept = self._kicks.get(request.target)
        left_s = max(0.0, kept.until_at - time.monotonic()) if kept is not None else 0.0
        shown = clip(request.target.text)
        if request.undo:
            log.warning("kick of %s is undone by %s", shown, request.by)
        else:
            why = f" ({request.why})" if request.why else ""
            then = f"is kept out for {left_s:.0f} s" if left_s else "may connect again"
            log.warning(
                "kick of %s by %s%s: sessions ended: %d; the client %s",
                shown,
                request.by,
                why,
                ended,
                then,
            )
        order.client.reply(
            {
                "ok": True,
                "target": request.target.text,
                "kind": request.target.kind.value,
                "ended": ended,
                "left_s": left_s,
                "lifted": order.lifted,
                "silent": silent,
            }
        )

    @property
    def busy(self) -> bool:
        """Whether a client waits for its answer."""
        return self._order is not None

    def take(self, kicks: Iterable[Kick]) -> None:
        """The clients that the version before an upgrade keeps out."""
        self._kicks = {kick.target: kick for kick in kicks}
        self._workers.kicks = tuple(self._kicks.values())

    def described(self) -> list[dict[str, Any]]:
        """Who is kept out, as JSON types, for another version of the relay."""
        return [
            {
                "target": kick.target.text,
                "by": kick.by,
                "why": kick.why,
                "since_at": kick.since_at,
                "until_at": kick.until_at,
            }
            for kick in self._kicks.values()
        ]

    def _list(self) -> KicksReply:
        now = time.monotonic()
        return {
            "ok": True,
            "kicks": [
                {
                    "target": kick.target.text,
                    "kind": kick.target.kind.value,
                    "by": kick.by,
                    "why": kick.why,
                    "left_s": kick.until_at - now,
                }
                for kick in self._kicks.values()
                if now < kick.until_at
            ],
        }


def _ended(processes: Iterable[WorkerProcess]) -> dict[int, int]:
    """How many sessions kicks have ended in each of these workers, by pid."""
    return {
        each.pid: int(each.scoreboard.row(each.row)[each.scoreboard.layout.cell(KICKED_SESSIONS)])
        for each in processes
    }
