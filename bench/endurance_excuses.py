"""Which failures of clients `bench.endurance` excuses: those that it caused itself.

A worker that is killed is stopped before, and the clients of its connections are noted.
Only these are excused. A backend that goes away ends the sessions that it has then. So
a client is excused whose session began before, and whose line in the access log names
the backend. All other clients that failed are lost.

Never: excuses a client because of a time alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

LATE_S = 5.0  # between the end of a session and what its client notices
_BY_BACKEND = frozenset(("outbound_reset", "truncated", "backend_gone", "backend_refused"))


class Logged(NamedTuple):
    """One session in the access log. Times are Unix time."""

    began_at: float
    ended_at: float
    reason: str


class Kill(NamedTuple):
    """A worker that was killed: when, and the ports of its clients."""

    at: float
    ports: frozenset[int]


class Outage(NamedTuple):
    """A backend that went away: when it began to, and when it was gone."""

    began_at: float
    gone_at: float


@dataclass
class Excuses:
    """What was done to the gateway that ends sessions."""

    kills: list[Kill] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)

    def cover(self, at: float, port: int, sessions: list[Logged]) -> bool:
        """Whether one of them explains that the client of this port failed then."""
        if any(port in kill.ports and kill.at <= at <= kill.at + LATE_S for kill in self.kills):
            return True
        return any(
            session.reason in _BY_BACKEND
            and session.began_at <= outage.gone_at
            and outage.began_at <= session.ended_at <= outage.gone_at + LATE_S
            and session.began_at - 1 <= at <= session.ended_at + LATE_S
            for outage in self.outages
            for session in sessions
        )

    @property
    def killed_clients(self) -> int:
        """The connections of all workers that were killed."""
        return sum(len(kill.ports) for kill in self.kills)
