"""`relay status --quiet`: whether new clients should come to this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relay.cli.help import EXIT_DRAINING, EXIT_NOT_RUNNING, EXIT_OK
from relay.cli.output import say
from relay.core.readiness import DRAINING

if TYPE_CHECKING:
    from relay.shared.replies import StatusReply

QUIET_PATIENCE_S = 2.0
QUIET_EXIT_CODES = {
    EXIT_DRAINING: "with --quiet: the relay drains, or will drain soon",
    EXIT_NOT_RUNNING: "no relay answers; with --quiet, also: it does not serve",
}


def quiet_code(reply: StatusReply) -> int:
    """The exit code, and a line on stderr if new clients should go elsewhere."""
    state, not_ready = reply["state"], reply.get("not_ready", "")
    if state in DRAINING:
        return say(not_ready or f"the relay is {state}", EXIT_DRAINING)
    if not_ready or state != "serving":
        return say(not_ready or f"the relay is {state}", EXIT_NOT_RUNNING)
    return EXIT_OK
