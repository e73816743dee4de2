"""Sends today's trust to the workers of older generations, whose sessions go on.

They get it after each reload, and after each renewal as long as there are any. Workers
of the serving generation get renewals themselves.

Never: changes what an old worker's handshakes are verified by; waits.
Next: `relay.worker.judgement.Judgement`
"""

from __future__ import annotations

import logging
import pickle
from operator import is_

from relay.errors import describe_error
from relay.supervisor.generations import Generations
from relay.supervisor.workers import Workers
from relay.tls.generation import Generation
from relay.tls.trust_update import parts, trust_of

log = logging.getLogger(__name__)


class TrustUpdates:
    """Call `step` every turn; it sends when trust or the generation has changed."""

    def __init__(self, generations: Generations, workers: Workers) -> None:
        self._generations = generations
        self._workers = workers
        self._sent: list[object] = _basis(generations.serving.generation)
        self._problem = ""  # logged already

    def step(self) -> None:
        """Send today's trust, if there is anybody to send it to."""
        wanted = self._generations.wanted_numbers
        if all(each.generation in wanted for each in self._workers.processes.values()):
            return  # what changes now is part of what later workers start with
        generation = self._generations.serving.generation
        basis = _basis(generation)
        if len(basis) == len(self._sent) and all(map(is_, basis, self._sent)):
            return
        try:
            for update, fds in parts(*trust_of(generation)):
                data = pickle.dumps(update, pickle.HIGHEST_PROTOCOL)
                self._workers.updates.send(data, fds, to=lambda number: number not in wanted)
        except (OSError, MemoryError) as error:
            why = describe_error(error)
            if why != self._problem:
                log.error("old workers cannot be sent today's trust, tried again: %s", why)
            self._problem = why
        else:
            self._sent, self._problem = basis, ""


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
