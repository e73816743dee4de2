"""`relay reload`, with or without a canary.

Never: imports OpenSSL.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from relay.cli.client import RefusedError, ask_relay, config_option, exit_codes
from relay.cli.durations import Duration
from relay.cli.help import EXIT_CANNOT_START, EXIT_CONFIG, EXIT_OK, Command
from relay.cli.running import SECTION
from relay.errors import ConfigError

if TYPE_CHECKING:
    from relay.shared.replies import ReloadReply

RELOAD_PATIENCE_S, END_PATIENCE_S = 300.0, 5.0


@click.command(
    cls=Command,
    section=SECTION,
    examples=[
        "relay reload --config /etc/relay/relay.toml",
        "relay reload --canary 30s",
        "relay reload --withdraw",
    ],
    exit_codes=exit_codes(
        "the new workers serve, or the renewed files are in use",
        {
            EXIT_CANNOT_START: (
                "the canary was withdrawn, or this machine does not allow it now; the old"
                " workers still serve"
            ),
            EXIT_CONFIG: "the configuration, or a renewed file, is refused; see its message",
        },
    ),
)
@config_option
@click.option(
    "--canary",
    "canary_s",
    type=Duration(),
    metavar="DURATION",
    help="Try the new settings in one worker first, for example for 30s.",
)
@click.option("--promote", "end", flag_value="promote", help="End the canary: the rest follows.")
@click.option("--withdraw", "end", flag_value="withdraw", help="End the canary: it is withdrawn.")
def reload(config_file: Path | None, canary_s: float | None, end: str | None) -> int:
    """Load the configuration and the certificates again.

    If only certificate, key or CA files have changed, the running workers get them, and
    no session ends. Otherwise new workers start, and running sessions go on with the
    old configuration, at most relay.reload_drain_s. Returns when done, or refused.

    With --canary one worker starts first. If it refuses clearly more clients than the
    others, or fails to reach backends, it is withdrawn, and the exit code is 71. Ctrl-C
    ends this command, but not the canary.
    """
    if end is not None:
        if canary_s is not None:
            raise click.UsageError("--canary begins a canary, --promote and --withdraw end one")
        ask_relay(config_file, "end_canary", END_PATIENCE_S, how=end)
        click.echo("the other workers follow" if end == "promote" else "the canary is withdrawn")
        return EXIT_OK
    started = time.monotonic()
    try:
        reply = ask_relay(
            config_file, "reload", RELOAD_PATIENCE_S, on_progress=click.echo, canary_s=canary_s
        )
    except RefusedError as error:
        raise _with_line(config_file, error) from None
    _report(reply, time.monotonic() - started)
    return EXIT_OK


def _with_line(config_file: Path | None, error: RefusedError) -> RefusedError:
    """The error with the line of the key that it begins with."""
    from relay.config.find import find_config
    from relay.config.load import load

    try:
        text = load(find_config(config_file)).places.locate_text(str(error))
    except ConfigError:
        return error
    return RefusedError(text, error.code, error.problems)


def _report(reply: ReloadReply, after_s: float) -> None:
    if "warning" in reply:
        click.echo(f"warning: {reply['warning']}", err=True)
    if "renewed" not in reply:
        click.echo(f"generation {reply['generation']} serves, after {after_s:.1f} s")
        return
    for file in reply["renewed"]:
        click.echo(f"renewed in place: {file}")
    what = "goes on" if reply["renewed"] else "goes on: nothing has changed"
    click.echo(f"generation {reply['generation']} {what}, after {after_s:.1f} s")
