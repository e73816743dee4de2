"""Sends a command to the running relay, for the commands that need one.

Never: imports OpenSSL.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import click

from relay.cli.help import EXIT_CONFIG, EXIT_NOT_RUNNING, EXIT_OK, EXIT_USAGE
from relay.errors import ControlError

if TYPE_CHECKING:
    from relay.shared.apply_replies import ApplyReply
    from relay.shared.canary_replies import EndCanaryReply
    from relay.shared.replies import (
        BackendsReply,
        KickReply,
        KicksReply,
        OverrideReply,
        ReloadReply,
        ShutdownReply,
        StatusReply,
        UpgradeReply,
    )

PATIENCE_S = 5.0
CLIENT_EXIT_CODES = {
    EXIT_NOT_RUNNING: "no relay answers at the control socket in relay.state_dir",
    EXIT_CONFIG: "the configuration file is missing, or its state_dir is invalid",
}

config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Configuration file. Default: ./relay.toml, then /etc/relay/relay.toml.",
)


def user_name() -> str:
    """Who runs this command, for the relay's log."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


class RefusedError(ControlError):
    """The supervisor answered that it refuses the command."""

    def __init__(self, why: str, code: int, problems: Sequence[str] = ()) -> None:
        super().__init__(why)
        self.code = code
        self.problems = tuple(problems)


def exit_codes(success: str, more: Mapping[int, str] | None = None) -> dict[int, str]:
    """The exit codes of a command that asks the running relay."""
    return {EXIT_OK: success, **CLIENT_EXIT_CODES, **(more or {})}


@overload
def ask_relay(
    config_file: Path | None,
    command: Literal["status"],
    patience_s: float = ...,
    *,
    lately: bool = ...,
) -> StatusReply: ...
@overload
def ask_relay(config_file: Path | None, command: Literal["backends"]) -> BackendsReply: ...
@overload
def ask_relay(
    config_file: Path | None, command: Literal["override"], **arguments: Any
) -> OverrideReply: ...
@overload
def ask_relay(
    config_file: Path | None, command: Literal["apply"], **arguments: Any
) -> ApplyReply: ...
@overload
def ask_relay(config_file: Path | None, command: Literal["kicks"]) -> KicksReply: ...
@overload
def ask_relay(
    config_file: Path | None, command: Literal["kick"], **arguments: Any
) -> KickReply: ...
@overload
def ask_relay(
    config_file: Path | None,
    command: Literal["reload"],
    patience_s: float,
    *,
    on_progress: Callable[[str], object],
    **arguments: Any,
) -> ReloadReply: ...
@overload
def ask_relay(
    config_file: Path | None, command: Literal["upgrade"], patience_s: float
) -> UpgradeReply: ...
@overload
def ask_relay(
    config_file: Path | None, command: Literal["end_canary"], patience_s: float, **arguments: Any
) -> EndCanaryReply: ...
@overload
def ask_relay(
    config_file: Path | None,
    command: Literal["drain", "stop"],
    patience_s: float = ...,
    *,
    until_end: bool = ...,
) -> ShutdownReply: ...
def ask_relay(
    config_file: Path | None,
    command: str,
    patience_s: float = PATIENCE_S,
    *,
    until_end: bool = False,
    on_progress: Callable[[str], object] | None = None,
    **arguments: Any,
) -> Any:
    """The reply of the relay that runs with this configuration.

    `on_progress` gets the lines that it sends before its reply.
    Raises ControlError when no relay answers, and RefusedError when it refuses.
    """
    from relay.config.find import find_config, plain_state_dir
    from relay.supervisor.control_client import ask

    file = find_config(config_file)
    state_dir = plain_state_dir(file)
    if state_dir is None:
        from relay.config.load import load_state_dir

        state_dir = load_state_dir(file)
    reply = ask(
        state_dir, command, patience_s, until_end=until_end, on_progress=on_progress, **arguments
    )
    if reply.get("ok") is True:
        return reply
    raise RefusedError(
        str(reply.get("error", "the relay gave no reason")),
        reply.get("code", EXIT_USAGE),
        [str(problem) for problem in reply.get("problems", ())],
    )
