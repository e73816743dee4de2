"""What is known of a canary and of the workers beside it, and its words for operators.

The scoreboard has the counts of both sides. The workers say which clients failed, so
that one client decides nothing (`relay.core.canary_clients`).

Never: ends a canary.
Next: `relay.supervisor.canary_counts.WorkerCounts`
"""

from __future__ import annotations

from collections.abc import Iterable

from relay.core.canary import Counts, Difference, Part, differences
from relay.core.canary_clients import Clients
from relay.shared.client_tallies import Tally
from relay.shared.failure_reports import FailureReport
from relay.supervisor.canary_counts import WorkerCounts
from relay.supervisor.updates import Updates
from relay.supervisor.worker_process import WorkerProcess

_EXAMPLES = 3  # of each reason
_MESSAGES_A_LOOK = 100
_REASONS_NAMED = 3
_FAILED = {
    Part.CLIENT: "clients refused",
    Part.BACKEND: "connections to backends failed",
    Part.SESSION: "sessions ended",
}


class Trial:
    """A canary whose worker serves, until a time."""

    def __init__(self, until_at: float, others: Iterable[WorkerProcess]) -> None:
        self.until_at = until_at
        self.look_at = self.news_at = 0.0
        self.is_compared = True
        self.own, self.others = Counts(), Counts()  # all that was counted
        self._own_cells, self._others_cells = WorkerCounts(), WorkerCounts(others)
        self._own_clients, self._others_clients = Clients(), Clients()
        self._examples: dict[tuple[str, str], list[FailureReport]] = {}

    def look(
        self, own: Iterable[WorkerProcess], others: Iterable[WorkerProcess], updates: Updates
    ) -> None:
        """Count again, and take what the workers have told."""
        self.own, self.others = self._own_cells.read(own), self._others_cells.read(others)
        for message in updates.receive_failures(_MESSAGES_A_LOOK):
            if isinstance(message, Tally):
                _add(self._own_clients, message)
            else:
                known = self._examples.setdefault((message.part, message.reason), [])
                if len(known) < _EXAMPLES and message not in known:
                    known.append(message)
        for message in updates.receive_others_failures(_MESSAGES_A_LOOK):
            if isinstance(message, Tally):
                _add(self._others_clients, message)

    def worse(self, *, at_end: bool) -> list[Difference]:
        """The reasons in which the canary is worse."""
        own, others = self._own_clients, self._others_clients
        return differences(
            own.evidence(self.own, others), others.evidence(self.others, own), at_end=at_end
        )

    # Words.

    def describe(self, worse: list[Difference]) -> str:
        """The reasons, with numbers and examples."""
        texts = []
        for one in worse[:_REASONS_NAMED]:
            examples = self._examples.get((one.part, one.reason), [])
            named = f", for example {' and '.join(map(str, examples))}" if examples else ""
            texts.append(
                f"{_FAILED[one.part]}, {one.reason}: {one.failed} of {one.attempts}"
                f" (the other workers: {one.others_failed} of {one.others_attempts}){named}"
            )
        more = len(worse) - _REASONS_NAMED
        return "; ".join(texts) + (f"; and {more} more reasons" if more > 0 else "")

    def summary(self) -> str:
        """How many clients came, and how many were refused."""
        own, others = self.own, self.others
        return (
            f"{own.of(Part.CLIENT)} clients, {own.failed(Part.CLIENT)} refused (the other workers:"
            f" {others.of(Part.CLIENT)}, {others.failed(Part.CLIENT)} refused)"
        )

    def warning(self) -> str:
        """Why the comparison means little, if it does."""
        if not self.own.of(Part.CLIENT) and not self.own.of(Part.SESSION):
            return "no client came to it, so nothing was compared"
        if not self.others.of(Part.CLIENT) and not self.others.of(Part.SESSION):
            return "no client came to the other workers, so nothing was compared"
        return ""


def _add(clients: Clients, tally: Tally) -> None:
    for client in tally.served:
        clients.add_served(client)
    for part, reason, client, times in tally.failed:
        clients.add_failed(part, reason, client, times)
