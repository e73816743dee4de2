"""Closes many sessions without keeping the others waiting.

Freeing a TLS connection and closing two sockets takes about 50 µs. So a CA that is
removed while it has thousands of sessions must not stop the loop: at most PER_TURN are
closed in one turn.

Never: decides which sessions to close (`judgement`, `expiry` and `kicked` do).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from relay.core.lifecycle import State
from relay.errors import SessionError
from relay.worker.loop import Loop
from relay.worker.outcome import NO_OUTCOME
from relay.worker.session import UPDATE_QUEUE, Session

PER_TURN = 200

Closing = tuple[Session, SessionError]


class Closings:
    """The sessions that are to be closed, and why."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: deque[Closing] = deque()
        self._queued = False

    def add(self, sessions: Iterable[Closing]) -> None:
        """Close these sessions for these reasons, from the next turn on."""
        self._waiting.extend(sessions)
        self._ask()

    def _ask(self) -> None:
        if self._waiting and not self._queued:
            self._queued = True
            self._loop.later(self, UPDATE_QUEUE)

    def step(self) -> None:
        """Close the next sessions."""
        self._queued = False
        waiting = self._waiting
        for _ in range(min(len(waiting), PER_TURN)):
            session, error = waiting.popleft()
            if session.state is not State.CLOSED:
                # What was noted before was not the end, or the session would be closed.
                session.outcome = NO_OUTCOME
                session.refuse(error)
        self._ask()

    def on_bug(self) -> None:
        """Closing a session raised. The others are closed all the same."""
        self._ask()
