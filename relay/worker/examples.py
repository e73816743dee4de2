"""What a worker tells the supervisor while a canary runs: who fails, and examples.

The canary's worker has this from its start, the workers beside it while the canary
runs. `Worker.examples` is None at all other times.

Never: sends more than MOST examples for a reason.
Next: `relay.supervisor.canary.Canary`
"""

from __future__ import annotations

import socket
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from relay.core.canary import Part
from relay.core.canary_clients import client_of
from relay.errors import Reason, Side
from relay.shared.client_tallies import TallySender
from relay.shared.failure_reports import FailureReport, send_report
from relay.tls.explain import Failure
from relay.tls.identity import Identity
from relay.worker.backend import BackendState

MOST = 3


class Failed(Protocol):
    """A session, as far as an example tells of it."""

    @property
    def outcome(self) -> tuple[Reason | None, Side | None, str]:
        """Why it ended, on which side, and the details."""

    @property
    def identity(self) -> Identity | None:
        """The client's certificate."""

    @property
    def sni(self) -> str:
        """The name that the client asked for."""

    @property
    def client_host(self) -> str:
        """The client's address."""

    @property
    def backend(self) -> BackendState | None:
        """The backend in use."""


@dataclass(frozen=True, slots=True)
class TellUpdate:
    """Tell over the socket of this update what fails; without one, tell no more."""


class Examples:
    """Sends the first failures for each reason, and the tallies of all clients."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sent: Counter[tuple[Part, Reason]] = Counter()
        self._tallies = TallySender(sock)

    def close(self) -> None:
        """Tell no more."""
        self._socket.close()

    def on_tick(self) -> None:
        """Send the tallies."""
        self._tallies.send()

    def add_served(self, session: Failed) -> None:
        """A client has reached a backend."""
        self._tallies.add_served(client_of(session.client_host))

    def add(self, session: Failed, part: Part) -> None:
        """A session was closed."""
        reason, _, detail = session.outcome
        if reason is None or reason is Reason.FINISHED:
            return
        self._tallies.add_failed(part, reason, client_of(session.client_host))
        if self._sent[part, reason] >= MOST:
            return
        identity = session.identity
        who = f'{identity.subject} of "{identity.issuer}"' if identity is not None else ""
        if not who and session.sni:
            who = f'a client that asks for "{session.sni}"'
        report = FailureReport(part, reason, who, session.client_host, detail)
        self._send(part, reason, report)

    def add_backend(self, session: Failed, failure: Failure) -> None:
        """A backend has failed, or refused us."""
        backend = session.backend
        if backend is None:
            return
        self._tallies.add_failed(Part.BACKEND, failure.reason, client_of(session.client_host))
        if self._sent[Part.BACKEND, failure.reason] >= MOST:
            return
        target = backend.target
        report = FailureReport(
            Part.BACKEND,
            failure.reason,
            f"backend {target.pool}/{target.route} (name {target.name})",
            str(target.address),
            failure.detail,
        )
        self._send(Part.BACKEND, failure.reason, report)

    def _send(self, part: Part, reason: Reason, report: FailureReport) -> None:
        self._sent[part, reason] += 1
        send_report(self._socket, report)
