"""Asks the running relay over its control socket, for the commands that need it.

Never: imports OpenSSL.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from relay.config.load import find_config, load_state_dir
from relay.errors import ControlError
from relay.supervisor.control_client import ask

EXIT_NOT_RUNNING = 69
_EXIT_USAGE = 64
STATUS_PATIENCE_S = 5.0

config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Default: ./relay.toml, then /etc/relay/relay.toml.",
)


class RefusedError(ControlError):
    """The supervisor answered, and the answer is no."""

    def __init__(self, why: str, code: int, problems: Sequence[str] = ()) -> None:
        super().__init__(why)
        self.code = code
        self.problems = tuple(problems)


def ask_relay(
    config_file: Path | None,
    command: str,
    patience_s: float = STATUS_PATIENCE_S,
    *,
    until_end: bool = False,
    **arguments: Any,
) -> dict[str, Any]:
    """The reply of the relay with this configuration. Raises ControlError when none answers, RefusedError when it says no."""
    reply = ask(
        load_state_dir(find_config(config_file)),
        command,
        patience_s,
        until_end=until_end,
        **arguments,
    )
    if reply.get("ok") is True:
        return reply
    raise RefusedError(
        str(reply.get("error", "the relay gave no reason")),
        reply.get("code", _EXIT_USAGE),
        [str(problem) for problem in reply.get("problems", ())],
    )
