"""Switches everything that belongs to a generation to the next one, together.

That is the workers, the admin process, the overrides, the published counters and the
trust of old workers.

Never: decides whether the next generation serves (`relay.core.fleet_plan.plan` does).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from relay.core.fleet_actions import Commit, Decision
from relay.core.fleet_view import Rules
from relay.logs import messages
from relay.supervisor.admin_process import AdminProcess
from relay.supervisor.fleet import Fleet
from relay.supervisor.override_store import OverrideStore
from relay.supervisor.prepare import TURN_S
from relay.supervisor.prepared import Prepared, begin_scoreboard
from relay.supervisor.scoreboards import Scoreboards
from relay.supervisor.trust_updates import TrustUpdates
from relay.tls.generation import Generation, free_steps

SLOTS_S = 2.0  # how long a reload waits for the worker of a slot that was closed


class Switchover:
    """From the start of a next generation until one of the two is gone."""

    def __init__(
        self,
        fleet: Fleet,
        admin: AdminProcess,
        overrides: OverrideStore,
        scoreboards: Scoreboards,
        publish: Callable[[], None],
        rules: Rules,
    ) -> None:
        self._fleet = fleet
        self._admin = admin
        self._overrides = overrides
        self._scoreboards = scoreboards
        self._publish = publish
        self._trust_updates = TrustUpdates(fleet.generations, fleet.workers, rules.hang_s)
        self._before: Generation | None = None
        self._next: Generation | None = None
        self._dismantling: Iterator[None] | None = None
        self._decided = False  # in this turn
        self._staying_until_at = 0.0  # 0 if no reload waits for the slots

    @property
    def dismantling(self) -> bool:
        """Whether TLS contexts are freed, so that `step` must be called at once."""
        return self._dismantling is not None

    def start(self, prepared: Prepared, *, canary: bool = False) -> None:
        """Start a next generation beside the serving one, or only a canary of it.

        Raises StartupError and OSError; then the serving one goes on as before.
        """
        self._admin.prepare(prepared.config.admin, prepared.password)
        try:
            begin_scoreboard(self._scoreboards, prepared)
            self._overrides.write_cells()
            self._publish()  # readers know the new counters before a worker counts
            before = self._fleet.generations.serving.generation
            self._fleet.start_next(prepared, time.monotonic(), canary=canary)
            self._before, self._next = before, prepared.generation
        except BaseException:
            self._admin.discard()
            self._fleet.retire()
            raise

    def finish(self, decision: Decision) -> None:
        """The next generation serves, or was given up: let everything else follow."""
        committed = isinstance(decision, Commit)
        self._decided = True
        losing = self._before if committed else self._next
        self._before = self._next = None
        if losing is not None:
            self._dismantling = free_steps(losing)
        if not committed:
            self._admin.discard()
            return
        config = self._fleet.generations.serving.config
        messages.setup(config.log.level, process="supervisor")
        self._admin.commit()
        self._overrides.use(config)
        self._publish()

    def stay(self, now: float) -> bool:
        """A reload has changed no setting: put right what it always does.

        Call it until it is True: when no slot waits for its worker, or after a while.
        """
        if not self._staying_until_at:
            self._staying_until_at = now + SLOTS_S
            self._overrides.write_cells()
            self._fleet.retry_slots(now)
        if not self._fleet.complete and now < self._staying_until_at:
            return False
        self._staying_until_at = 0.0
        return True

    def step(self, now: float) -> None:
        """Send trust to old workers; free TLS contexts, for about TURN_S."""
        if self._decided:  # that was work enough for this turn
            self._decided = False
            return
        self._trust_updates.step(now)
        if self._dismantling is None:
            return
        until = time.monotonic() + TURN_S
        for _ in self._dismantling:
            if time.monotonic() >= until:
                return
        self._dismantling = None
