"""The sessions that try a failed backend, so that the pool learns whether it is back.

A trial ends when the backend sends data, when it keeps the connection for PROVEN_S, or
when the session gives it up.

Never: chooses a backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.shared.failed_backends import FailedBackends

if TYPE_CHECKING:
    from relay.worker.backend import BackendState
    from relay.worker.connection import Connection

# A failed backend that has kept a connection for this time after its handshake is back.
# One that refuses clients does so at once; one whose protocol lets clients speak first
# is silent.
PROVEN_S = 1.0


class Trials:
    """The trials of one pool in one worker.

    A claim is 0 for a session that tries no failed backend.
    """

    def __init__(self, failed_backends: FailedBackends, trial_s: float) -> None:
        self._failed_backends = failed_backends
        self._trial_ms = int(trial_s * 1000)
        self._trials: dict[Connection, BackendState] = {}

    def claim(self, index: int) -> int:
        """Reserve a failed backend for one session. Returns the claim."""
        return self._failed_backends.claim(index, self._trial_ms)

    def begin(self, backend: BackendState, connection: Connection) -> None:
        """The session with the claim starts to connect."""
        self._trials[connection] = backend

    def end(self, connection: Connection) -> None:
        """The session has given the backend up, or has ended."""
        backend = self._trials.pop(connection, None)
        if backend is not None:
            self.release(backend, connection.claim)

    def release(self, backend: BackendState, claim: int) -> None:
        """Let another session try the backend."""
        if claim:
            self._failed_backends.release(backend.index, claim)

    def take_proven(self, now: float) -> list[tuple[BackendState, float]]:
        """End the trials that succeeded. Returns backends, and when they were tried."""
        proven = [
            (connection, backend)
            for connection, backend in self._trials.items()
            if connection.established and connection.began_at + PROVEN_S < now
        ]
        for connection, _ in proven:
            del self._trials[connection]
        return [(backend, connection.began_at) for connection, backend in proven]
