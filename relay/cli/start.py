"""`relay start`: run the relay.

Never: imports OpenSSL or the configuration before the command runs.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
from pathlib import Path

import click

from relay.cli.client import config_option
from relay.cli.help import (
    EXIT_BUG,
    EXIT_CANNOT_START,
    EXIT_CONFIG,
    EXIT_OK,
    Command,
)
from relay.errors import ConfigError, StartupError

SECTION = "Run the relay"


@click.command(
    cls=Command,
    section=SECTION,
    examples=[
        "relay start",
        "relay start --config /etc/relay/relay.toml --strict",
    ],
    exit_codes={
        EXIT_OK: "the relay has served, and stopped when it was told to",
        EXIT_BUG: "a bug, or a failure after the relay had served",
        EXIT_CANNOT_START: (
            "this machine does not allow the start now: a port in use, an address that is"
            " missing, no memory, no permission; systemd tries again"
        ),
        EXIT_CONFIG: "the configuration is refused; every problem is one line on stderr",
    },
)
@config_option
@click.option(
    "--strict",
    is_flag=True,
    help=(
        "Refuse a configuration of which a part cannot work now, such as a route whose"
        " certificate has expired. Without it, that part is disabled. Applies to reloads too."
    ),
)
def start(config_file: Path | None, *, strict: bool) -> int:
    """Run the relay in the foreground."""
    from relay.config.find import find_config
    from relay.config.load import load

    path = find_config(config_file)
    # systemd's watchdog sends SIGABRT to a supervisor that hangs; the traceback shows
    # where.
    faulthandler.enable()
    load_openssl()
    from relay.supervisor.main import run

    gc.enable()  # `relay.__main__.main` has turned it off
    try:
        return run(path, strict=strict)
    except StartupError as error:
        with contextlib.suppress(ConfigError):
            error = load(path).places.locate_failure(error)
        raise error from None


def load_openssl() -> None:
    """Load OpenSSL with its settings, before anything else imports it."""
    from relay.tls.preload import load_openssl as load

    load()
