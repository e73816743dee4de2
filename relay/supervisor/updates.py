"""Sends changes to the workers and the checker while they run.

Each child has a channel of its own. A child that is forked later inherits what the
supervisor has applied to its own objects before, so it needs no earlier update.

One more channel is for all workers together: on it they report to the checker. While a
canary runs, its worker has another one, to the supervisor, and so have the others.

Never: waits for a child; knows what an update means.
Next: `relay.worker.updates.Updates`
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

from relay.shared.client_tallies import Tally
from relay.shared.failure_reports import FailureChannel, FailureReport
from relay.shared.list_reports import ReportChannel
from relay.shared.sealed_memory import SealedFile
from relay.shared.update_channel import UpdateSender


class _CanaryChannels(NamedTuple):
    """The channels of a generation's canary, and of the workers beside it."""

    generation: int
    own: FailureChannel
    others: FailureChannel


class Updates:
    """The channels to all children. `number` is that of the last update."""

    def __init__(self) -> None:
        self.number = 0
        self.reports = ReportChannel()
        self._generations: dict[UpdateSender, int] = {}
        self._canary: _CanaryChannels | None = None

    def started(self, sender: UpdateSender, generation: int) -> None:
        """A child of this generation was forked, with the other end of the channel."""
        sender.child_end.close()
        self._generations[sender] = generation

    def taken(self, sender: UpdateSender, generation: int) -> None:
        """A child was taken over from the version before an upgrade."""
        self._generations[sender] = generation

    def ended(self, sender: UpdateSender) -> None:
        """The child was reaped."""
        self._generations.pop(sender, None)
        sender.close()

    def send(
        self,
        data: bytes,
        files: Sequence[int] = (),
        to: Callable[[int], bool] = lambda _generation: True,
    ) -> int:
        """Send an update to the children of these generations; returns its number.

        Raises OSError without memory for it.
        """
        sealed = SealedFile("relay-update", data)
        self.number += 1
        try:
            for sender, generation in self._generations.items():
                if to(generation):
                    sender.send(self.number, sealed, files)
        finally:
            sealed.close()
        return self.number

    def step(self) -> None:
        """Send what a child did not take before."""
        for sender in self._generations:
            sender.step()

    def close_files(self) -> None:
        """Close the supervisor's ends: at the end, and in a forked child."""
        for sender in self._generations:
            sender.close()
        self._generations.clear()
        self.reports.close()
        self.end_canary()

    # A canary.

    def send_to(self, sender: UpdateSender, data: bytes, files: Sequence[int] = ()) -> None:
        """Send an update to one child. Raises OSError without memory for it."""
        sealed = SealedFile("relay-update", data)
        self.number += 1
        try:
            sender.send(self.number, sealed, files)
        finally:
            sealed.close()

    def begin_canary(self, generation: int) -> None:
        """The workers of this generation tell what fails. Raises OSError."""
        self.end_canary()
        self._canary = _CanaryChannels(generation, FailureChannel(), FailureChannel())

    def failures_of(self, generation: int) -> socket.socket | None:
        """An end for a worker of this generation, if it is a canary."""
        if self._canary is None or self._canary.generation != generation:
            return None
        return self._canary.own.writer()

    def others_failures(self) -> socket.socket | None:
        """An end for the workers beside the canary, if there is one."""
        return self._canary.others.writer() if self._canary is not None else None

    def receive_failures(self, most: int) -> list[FailureReport | Tally]:
        """What the canary's worker has told, at most this many messages."""
        return self._canary.own.receive(most) if self._canary is not None else []

    def receive_others_failures(self, most: int) -> list[FailureReport | Tally]:
        """What the workers beside it have told."""
        return self._canary.others.receive(most) if self._canary is not None else []

    def end_canary(self) -> None:
        """Nobody reads what fails any more."""
        if self._canary is not None:
            self._canary.own.close()
            self._canary.others.close()
            self._canary = None
