"""Runs the preparation of the next generation inside the supervisor's loop.

Never: starts a worker, or changes what serves.
"""

from __future__ import annotations

import selectors
from collections.abc import Callable
from pathlib import Path

from relay.supervisor.generations import Generations
from relay.supervisor.host_lookup import known_addresses
from relay.supervisor.inspection import PrepareRequest
from relay.supervisor.list_renewal import accepted_by
from relay.supervisor.prepare import AbandonedChildren, Preparation
from relay.supervisor.prepared import Prepared, running
from relay.supervisor.renewal_check import Renewed
from relay.supervisor.scoreboards import Scoreboards
from relay.tls.certificates.file_sets import SetKey


class Preparer:
    """One preparation at a time.

    `close_in_child` closes, in the child that inspects the files, what the child does
    not need.
    """

    def __init__(
        self,
        config_path: Path,
        generations: Generations,
        scoreboards: Scoreboards,
        selector: selectors.BaseSelector,
        close_in_child: Callable[[], None],
        *,
        strict: bool,
    ) -> None:
        self._config_path = config_path
        self._generations = generations
        self._scoreboards = scoreboards
        self._selector = selector
        self._close_in_child = close_in_child
        self._strict = strict
        self._abandoned = AbandonedChildren()
        self._preparation: Preparation | None = None

    @property
    def running(self) -> bool:
        """Whether a preparation is under way."""
        return self._preparation is not None

    @property
    def building(self) -> bool:
        """Whether it builds TLS contexts, so that `step` must be called at once."""
        return self._preparation is not None and self._preparation.building

    def begin(self, renews: frozenset[SetKey] = frozenset(), *, canary: bool = False) -> None:
        """Begin to prepare. Raises StartupError.

        With `renews`, only look for renewed files in these sets. For a `canary`,
        renewed files make a new generation.
        """
        generations = self._generations
        request = PrepareRequest(
            self._config_path,
            running(generations.serving),
            known_addresses(
                generations.serving.generation.addresses,
                self._scoreboards.generation(generations.number),
            ),
            self._strict,
            renews,
            accepted_by(generations.serving.generation),
            canary,
        )
        self._preparation = Preparation(
            request, generations.next_number, self._abandoned, self._close_in_child
        )
        self._selector.register(self._preparation.fd, selectors.EVENT_READ, _wake_up)

    def step(self, now: float) -> Prepared | Renewed | None:
        """Go on for one turn; None until it is done.

        Raises ConfigError and StartupError. Call `close` after that.
        """
        if self._preparation is None:
            return None
        prepared = self._preparation.step(now)
        if prepared is not None:
            self.close()
        elif self._preparation.building:
            self._unregister(self._preparation)
        return prepared

    def reap(self, now: float) -> None:
        """Reap children of earlier preparations."""
        self._abandoned.step(now)

    def _unregister(self, preparation: Preparation) -> None:
        if preparation.fd in self._selector.get_map():
            self._selector.unregister(preparation.fd)

    def close_files(self) -> None:
        """Close the pipe to the child: in another forked child."""
        if self._preparation is not None:
            self._preparation.close_files()

    def close(self) -> None:
        """End the preparation, done or not."""
        if self._preparation is not None:
            self._unregister(self._preparation)
            self._preparation.close()
            self._preparation = None


def _wake_up(_events: int) -> None:
    """The loop is awake; its next turn calls `Preparer.step`."""
