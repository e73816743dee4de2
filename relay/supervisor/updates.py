"""Sends changes to the workers and the checker while they run.

Each child has a channel of its own. A child that is forked later inherits what the
supervisor has applied to its own objects before, so it needs no earlier update.

One more channel is for all workers together: on it they report to the checker.

Never: waits for a child; knows what an update means.
Next: `relay.worker.updates.Updates`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from relay.shared.list_reports import ReportChannel
from relay.shared.sealed_memory import SealedFile
from relay.shared.update_channel import UpdateSender


class Updates:
    """The channels to all children. `number` is that of the last update."""

    def __init__(self) -> None:
        self.number = 0
        self.reports = ReportChannel()
        self._generations: dict[UpdateSender, int] = {}

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
