"""What is done in each state of a session: one table.

Each entry is a function of a stage's module. It does a part of the stage's work and
returns the event that leads out of the state, or None when the state goes on. It raises
SessionError to refuse the session.

Never: changes a session's state (that is `relay.worker.driver`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from relay.core.lifecycle import Event, State
from relay.worker import first_request, inbound, intake, outbound, relaying
from relay.worker.session import Session

Work = Callable[[Session], Event | None]


@dataclass(frozen=True, slots=True)
class Stage:
    """The work of one state.

    `enter` is done when the state is entered: at once, or if it is `queued` in a later
    turn of the loop, with other sessions' steps of the same kind. `step` is done when a
    socket is ready, `too_slow` at the deadline. Without `too_slow` the deadline closes
    the session.
    """

    step: Work | None = None
    enter: Work | None = None
    too_slow: Work | None = None
    queued: bool = False


STAGES: dict[State, Stage] = {
    State.INTAKE: Stage(intake.step, too_slow=intake.too_slow),
    State.INBOUND_TLS: Stage(inbound.step, inbound.step),
    State.SNIFF: Stage(first_request.step, first_request.enter, first_request.too_slow),
    State.CONNECT: Stage(outbound.connect, outbound.connect, outbound.too_slow, queued=True),
    State.OUTBOUND_TLS: Stage(outbound.handshake, outbound.handshake, outbound.too_slow),
    State.RELAY: Stage(enter=relaying.begin, too_slow=relaying.too_slow),
    State.HALF_CLOSED: Stage(),
    State.CLOSED: Stage(),
}
