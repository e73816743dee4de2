"""Why a reload is refused, for the log and for the client that asked.

Never: changes what serves.
"""

from __future__ import annotations

import logging

from relay.errors import ConfigError, StartupError, describe_error, is_shortage
from relay.shared.replies import FailureReply
from relay.supervisor.control import Client
from relay.supervisor.process import EXIT_BUG, EXIT_CANNOT_START, EXIT_CONFIG

_SHORTAGE_REMEDY = "raise LimitNOFILE or MemoryMax, or lower relay.workers; then reload again"

Refusal = ConfigError | StartupError

log = logging.getLogger(__name__)


def known_refusal(error: Exception) -> Refusal | None:
    """What an exception means to an operator; None for a bug."""
    if isinstance(error, ConfigError | StartupError):
        return error
    if is_shortage(error):
        what = f"this machine gave the relay too little: {describe_error(error)}"
        return StartupError(what, _SHORTAGE_REMEDY)
    return None


def reasons_of(refusal: Refusal) -> list[str]:
    """One line per problem."""
    return [str(refusal)] if isinstance(refusal, StartupError) else [*map(str, refusal.problems)]


def log_refusal(refusal: Refusal) -> FailureReply:
    """Log why a reload was refused. Returns the reply."""
    reasons = reasons_of(refusal)
    for reason in reasons:
        log.error("reload refused: %s", reason)
    if isinstance(refusal, StartupError):
        return {"ok": False, "code": EXIT_CANNOT_START, "error": str(refusal)}
    return {
        "ok": False,
        "code": EXIT_CONFIG,
        "error": "the new configuration was refused, the old one goes on",
        "problems": reasons,
    }


def in_one_line(reply: FailureReply) -> str:
    """Why a reload failed, for `relay status`: the first problem, and how many more."""
    problems = reply.get("problems") or [reply["error"]]
    more = f" (and {len(problems) - 1} more problems: relay check)" if len(problems) > 1 else ""
    return problems[0] + more


def bug_reply(error: Exception) -> FailureReply:
    """The reply after an exception that must not happen."""
    why = (
        f"{type(error).__name__}: {error}; this is a bug, its traceback is in the log;"
        " the old generation goes on"
    )
    return {"ok": False, "code": EXIT_BUG, "error": why}


def refuse(client: Client | None, why: str) -> None:
    """Refuse a request at once, because of the relay's state."""
    log.warning("reload refused: %s", why)
    if client is not None:
        client.reply({"ok": False, "code": EXIT_CANNOT_START, "error": why})
