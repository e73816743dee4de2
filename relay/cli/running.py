"""`relay drain` and `relay stop`: commands for the running relay."""

from __future__ import annotations

from pathlib import Path

import click

from relay.cli.client import ask_relay, config_option, exit_codes
from relay.cli.help import EXIT_OK, Command

SECTION = "Control the running relay"
STOP_PATIENCE_S = 15.0


@click.command(
    cls=Command,
    section=SECTION,
    examples=["relay drain --config /etc/relay/relay.toml"],
    exit_codes=exit_codes("the relay drains"),
)
@config_option
def drain(config_file: Path | None) -> int:
    """Stop accepting, let sessions finish, then stop.

    Clients are accepted for relay.drain_delay_s, or until the second drain. Sessions
    may take relay.drain_timeout_s; then they are closed. Returns at once.
    """
    reply = ask_relay(config_file, "drain")
    click.echo(f"relay (pid {reply['supervisor']['pid']}) drains, and stops after that")
    return EXIT_OK


@click.command(
    cls=Command,
    section=SECTION,
    examples=["relay stop --config /etc/relay/relay.toml"],
    exit_codes=exit_codes("the relay has stopped"),
)
@config_option
def stop(config_file: Path | None) -> int:
    """Stop now, and close all sessions.

    Returns when the relay has stopped.
    """
    reply = ask_relay(config_file, "stop", STOP_PATIENCE_S, until_end=True)
    click.echo(f"relay (pid {reply['supervisor']['pid']}) has stopped")
    return EXIT_OK
