"""`relay status --quiet`: whether new clients should come to this machine.

keepalived asks every second. So the usual form of the command runs without click and
the configuration's model, which takes a third of the CPU time.

Never: imports click or pydantic.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from relay.config.find import find_config, plain_state_dir
from relay.core.readiness import DRAINING
from relay.errors import ConfigError, ControlError
from relay.supervisor.control_client import ask

QUIET_PATIENCE_S = 2.0
# As in relay.cli.help.
_OK, _NOT_RUNNING, _DRAINING = 0, 69, 75
QUIET_EXIT_CODES = {
    _DRAINING: "with --quiet: the relay drains, or will drain soon",
    _NOT_RUNNING: "no relay answers; with --quiet, also: it does not serve",
}


def judge(reply: Mapping[str, Any]) -> tuple[int, str]:
    """The exit code, and why new clients should go elsewhere, or ""."""
    state, not_ready = reply["state"], reply.get("not_ready", "")
    if not not_ready and state == "serving":
        return _OK, ""
    return _DRAINING if state in DRAINING else _NOT_RUNNING, not_ready or f"the relay is {state}"


def run_quickly(arguments: Sequence[str]) -> int | None:
    """Run `relay status --quiet [--config FILE]`; None: run the command as others."""
    match list(arguments):
        case ["status", "--quiet"]:
            given = None
        case ["status", "--quiet", "--config", name] | ["status", "--config", name, "--quiet"]:
            given = Path(name)
        case _:
            return None
    try:
        state_dir = plain_state_dir(find_config(given))
    except ConfigError:
        return None
    if state_dir is None:
        return None
    try:
        reply = ask(state_dir, "status", QUIET_PATIENCE_S)
    except ControlError as error:
        code, why = _NOT_RUNNING, str(error)
    else:
        if reply.get("ok") is not True:
            return None
        code, why = judge(reply)
    if code:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"relay: {why}\n")
    return code
