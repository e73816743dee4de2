"""What the clients of one side contribute to the judgement of a canary.

A stranger with a foreign certificate can fail as often as it likes. Failures of a
client are evidence about the settings only if the other side serves the same client. So
they count in full for a client that the other side serves, and at most PER_CLIENT times
for every other one. Many clients that each come once, and fail, still count.

A client is an IPv4 address or an IPv6 network of 64 bits, as `client_of` names it.

Never: keeps more than MOST_CLIENTS entries of each kind; reads a counter.
Next: `relay.core.canary.differences`
"""

from __future__ import annotations

from relay.core.canary import Counts, Part
from relay.core.sticky import CLIENT_PREFIXES, source_key

PER_CLIENT = 2
MOST_CLIENTS = 10_000
_MOST_BYTES = 16  # of a client that is not named by an address


def client_of(address: str) -> str:
    """The client that has this address."""
    return source_key(address, *CLIENT_PREFIXES)[:_MOST_BYTES].hex()


class Clients:
    """How often each client failed at one side, and which ones were served."""

    def __init__(self) -> None:
        self._served: set[str] = set()
        self._failed: dict[tuple[Part, str], dict[str, int]] = {}
        self._entries = 0

    def add_served(self, client: str) -> None:
        """A client has reached a backend."""
        if len(self._served) < MOST_CLIENTS:
            self._served.add(client)

    def add_failed(self, part: Part, reason: str, client: str, times: int) -> None:
        """A client has failed this often."""
        of_reason = self._failed.setdefault((part, reason), {})
        if client not in of_reason:
            if self._entries >= MOST_CLIENTS:
                return
            self._entries += 1
        of_reason[client] = of_reason.get(client, 0) + times

    def evidence(self, counts: Counts, other: Clients) -> Counts:
        """The part of this side's counts that is evidence, beside the other side.

        What is not evidence is not an attempt either. A failure counts when its client
        is known, so one may come a second later than it was counted.
        """
        attempts = dict(counts.attempts)
        failures = {}
        for (part, reason), failed in counts.failures.items():
            of_reason = self._failed.get((part, reason), {})
            known = sum(
                times if client in other._served else min(times, PER_CLIENT)
                for client, times in of_reason.items()
            )
            failures[part, reason] = counted = min(known, failed)
            attempts[part] = max(counted, attempts.get(part, 0) - failed + counted)
        return Counts(attempts, {key: count for key, count in failures.items() if count})
