"""`relay upgrade`: replaces the running program by the one that is installed now.

Never: imports OpenSSL.
"""

from __future__ import annotations

import time
from pathlib import Path

import click

from relay.cli.client import ask_relay, config_option, exit_codes
from relay.cli.help import EXIT_CANNOT_START, EXIT_CONFIG, EXIT_OK, Command
from relay.cli.running import SECTION

PATIENCE_S = 300.0


@click.command(
    cls=Command,
    section=SECTION,
    examples=["relay upgrade --config /etc/relay/relay.toml"],
    exit_codes=exit_codes(
        "the installed version serves, and the one before drains",
        {
            EXIT_CANNOT_START: "the installed version cannot take over; the old one still serves",
            EXIT_CONFIG: "the installed version refuses the configuration, or no file is found",
        },
    ),
)
@config_option
def upgrade(config_file: Path | None) -> int:
    """Replace the running relay by the version installed now.

    Install the new version first, where the old one is. It checks itself and the
    configuration beside the running one. Then it takes over process, sockets and
    counters, and starts workers of its own. No client is refused, and running sessions
    go on with the old workers, at most relay.reload_drain_s. Returns when done, or
    refused.
    """
    started = time.monotonic()
    reply = ask_relay(config_file, "upgrade", PATIENCE_S)
    after_s = time.monotonic() - started
    click.echo(
        f"upgraded from {reply['before']} to {reply['version']}: generation"
        f" {reply['generation']} serves, after {after_s:.1f} s"
    )
    return EXIT_OK
