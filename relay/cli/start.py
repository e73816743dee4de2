"""`relay start` and `relay check`: run the relay, or check its configuration.

Never: imports OpenSSL or the configuration before the command runs.
"""

from __future__ import annotations

import faulthandler
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from relay.cli.client import config_option
from relay.cli.help import (
    EXIT_BUG,
    EXIT_CANNOT_START,
    EXIT_CONFIG,
    EXIT_OK,
    Command,
)
from relay.cli.output import print_table, say

if TYPE_CHECKING:
    from relay.tls.certificates.findings import Finding

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
    from relay.config.load import find_config

    path = find_config(config_file)
    # systemd's watchdog sends SIGABRT to a supervisor that hangs; the traceback shows
    # where.
    faulthandler.enable()
    load_openssl()
    from relay.supervisor.main import run

    return run(path, strict=strict)


@click.command(
    cls=Command,
    section=SECTION,
    examples=["relay check --config relay.toml", "relay check --strict"],
    exit_codes={
        EXIT_OK: "the relay would start with this configuration; see the warnings",
        EXIT_CONFIG: "there are problems; all of them are listed, each with a remedy",
    },
)
@config_option
@click.option(
    "--strict",
    is_flag=True,
    help="Report what `relay start --strict` refuses: also names that do not resolve yet.",
)
def check(config_file: Path | None, *, strict: bool) -> int:
    """Check the configuration and its certificates.

    Lists everything that `relay start` would refuse or disable, and for every
    certificate whether it can be used and when it expires. May run beside a running
    relay.
    """
    from relay.config.load import find_config, load_config

    path = find_config(config_file)
    config = load_config(path)
    load_openssl()
    from relay.sandbox.confinement import hide_memory
    from relay.supervisor.check import check_all

    hide_memory()  # the check reads private keys
    report = check_all(config, strict=strict)
    _show_findings(report.findings)
    for problem in report.problems:
        say(str(problem))
    if report.count:
        problems = f"{report.count} problem{'s' if report.count > 1 else ''}"
        meaning = "the relay would not start"
        if report.would_start:
            meaning = "the relay would start with a part of it disabled, but not with --strict"
        return say(f"{path}: {problems}; {meaning}", EXIT_CONFIG)
    click.echo(f"{path}: ok")
    return EXIT_OK


def _show_findings(findings: list[Finding]) -> None:
    if not sys.stdout.isatty():
        from relay.tls.certificates.findings import as_problem

        for one in findings:
            click.echo(f"{one.level} {as_problem(one)}")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table("level", "where, file", "subject", "what", "remedy", show_lines=False)
    colours = {"error": "bold red", "warning": "yellow", "info": "green"}
    for one in findings:
        where = "\n".join(filter(None, (one.where, one.file)))
        cells = map(Text, (where, one.subject, one.what, one.remedy))
        table.add_row(Text(one.level, style=colours.get(one.level, "")), *cells)
    print_table(table)


def load_openssl() -> None:
    """Load OpenSSL with its settings, before anything else imports it."""
    from relay.tls.preload import load_openssl as load

    load()
