"""Sends today's trust to the workers of older generations, whose sessions go on.

They get it after each reload, and after each renewal as long as there are any. Workers
of the serving generation get renewals themselves.

A worker that does not put it into use is ended: nobody would judge its sessions. After
an upgrade to a version with other messages, workers are deaf: these are ended at the
next change, at the latest after DEAF_S.

Never: changes what an old worker's handshakes are verified by; waits.
Next: `relay.worker.judgement.Judgement`
"""

from __future__ import annotations

import logging
from operator import is_

from relay.errors import describe_error
from relay.quick_pickle import dumps
from relay.shared.scoreboard import UPDATE
from relay.supervisor.children import STALLED_S
from relay.supervisor.generations import Generations
from relay.supervisor.worker_process import WorkerProcess
from relay.supervisor.workers import Workers
from relay.tls.generation import Generation
from relay.tls.trust_update import parts, trust_of

DEAF_S = 60.0
_DEAF = "it is of another version, and cannot be told what is trusted now"

log = logging.getLogger(__name__)


class TrustUpdates:
    """Call `step` every turn; it sends when trust or the generation has changed."""

    def __init__(self, generations: Generations, workers: Workers, hang_s: float) -> None:
        self._generations = generations
        self._workers = workers
        self._hang_s = hang_s
        self._sent: list[object] = []  # after an upgrade it is not known what was
        self._problem = ""  # logged already
        self._number = 0  # of the update that old workers must put into use
        self._until_at = self._deaf_until_at = self._turn_at = 0.0

    def step(self, now: float) -> None:
        """Send today's trust, if there is anybody to send it to."""
        wanted = self._generations.wanted_numbers
        old = [each for each in self._workers.processes.values() if each.generation not in wanted]
        if not old:
            return  # what changes now is part of what later workers start with
        if now - self._turn_at > STALLED_S:
            self._until_at = now + self._hang_s  # the workers may not have run either
        self._turn_at = now
        self._send_trust(now, wanted)
        self._end_deaf(now, old)
        if now >= self._until_at:
            for each in old:
                late = not each.deaf and each.scoreboard.row(each.row)[UPDATE] < self._number
                if late and not each.quitting:
                    self._workers.quit_unjudged(
                        each, f"it has not put today's trust into use within {self._hang_s:g} s"
                    )

    def _end_deaf(self, now: float, old: list[WorkerProcess]) -> None:
        """End the workers that got no update, after a while."""
        deaf = [each for each in old if each.deaf]
        if deaf and not self._deaf_until_at:
            self._deaf_until_at = now + DEAF_S
            log.warning(
                "%d workers of the version before do not understand this one: their sessions end"
                " when trust changes or a client is kicked, at the latest in %g s",
                len(deaf),
                DEAF_S,
            )
        if deaf and now >= self._deaf_until_at:
            self._workers.quit_deaf(_DEAF)

    def _send_trust(self, now: float, wanted: set[int]) -> None:
        generation = self._generations.serving.generation
        basis = _basis(generation)
        if len(basis) == len(self._sent) and all(map(is_, basis, self._sent)):
            return
        try:
            for update, fds in parts(*trust_of(generation)):
                data = dumps(update)
                self._number = self._workers.updates.send(
                    data, fds, to=lambda number: number not in wanted
                )
        except (OSError, MemoryError) as error:
            why = describe_error(error)
            if why != self._problem:
                log.error("old workers cannot be sent today's trust, tried again: %s", why)
            self._problem = why
        else:
            if self._sent:
                self._workers.quit_deaf(_DEAF)
            self._sent, self._problem = basis, ""
            self._until_at = now + self._hang_s


def _basis(generation: Generation) -> list[object]:
    """What sessions are judged by, as objects: a change replaces them."""
    found: list[object] = [generation]
    for routes in generation.inbound.values():
        for route in routes:
            found += (route.trust, route.revoked)
    for targets in generation.targets.values():
        for target in targets[:1]:
            found += (target.trust, target.revoked)
    return found
