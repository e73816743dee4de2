"""`relay check`: check the configuration and everything that it names.

Never: imports OpenSSL or the configuration before the command runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from relay.cli.client import config_option
from relay.cli.help import EXIT_CONFIG, EXIT_OK, Command
from relay.cli.output import say
from relay.cli.start import SECTION, load_openssl
from relay.errors import ConfigError

if TYPE_CHECKING:
    from relay.cli.findings import Line


@click.command(
    cls=Command,
    section=SECTION,
    examples=[
        "relay check --config relay.toml",
        "relay check --config relay.toml --offline --strict",
        "relay check --json",
    ],
    exit_codes={
        EXIT_OK: "the relay would start with all of this configuration; see the warnings",
        EXIT_CONFIG: "there are problems; all of them are listed, each with a remedy",
    },
)
@config_option
@click.option(
    "--strict",
    is_flag=True,
    help="Let a warning count as a problem, and an include pattern that matches no file.",
)
@click.option(
    "--offline",
    is_flag=True,
    help=(
        "Check only files: open no address, look up no name or user, and ignore owners and"
        " directories. For a CI job, on another machine."
    ),
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; see below.")
def check(config_file: Path | None, *, strict: bool, offline: bool, as_json: bool) -> int:
    """Check the configuration and its certificates.

    Lists everything that `relay start` would refuse or disable, and for every
    certificate whether it can be used and when it expires. May run beside a running
    relay. Problems are lines on stderr, warnings on stdout, each with file and line.

    The object of --json has config, files (all that were read), ok, would_start, and
    findings; each finding has severity (error, warning, info), file, line, key, what,
    hint, certificate, subject, temporary.
    """
    from relay.config.find import find_config
    from relay.config.load import load

    load_openssl()
    from relay.cli.findings import lines_of, problem_lines

    path, files = config_file, [] if config_file is None else [config_file.absolute()]
    try:
        path = find_config(config_file)
        files = [path]
        loaded = load(path)
    except ConfigError as error:
        if not as_json:
            raise
        return _print_json(path, files, problem_lines(error.problems), would_start=False)
    from relay.sandbox.confinement import hide_memory
    from relay.supervisor.check import check_all

    hide_memory()  # the check reads private keys
    report = check_all(loaded, strict=strict, offline=offline)
    lines = lines_of(report, strict=strict)
    if as_json:
        return _print_json(path, loaded.places.files, lines, would_start=report.would_start)
    return _print(path, loaded.places.files, lines, would_start=report.would_start)


_COLOURS = {"warning": "yellow", "info": "green"}


def _print(path: Path, files: list[Path], lines: list[Line], *, would_start: bool) -> int:
    for line in lines:
        if not line.is_problem:
            # click leaves the colour out where stdout is not a terminal.
            click.echo(f"{click.style(line.severity, _COLOURS[line.severity])} {line.problem}")
    if len(files) > 1:
        for file in files:
            click.echo(f"read {file}")
    problems = [line for line in lines if line.is_problem]
    for line in problems:
        say(str(line.problem))
    if not problems:
        click.echo(f"{path}: ok")
        return EXIT_OK
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    meaning = "the relay would not start"
    if all(line.severity != "error" for line in problems):
        meaning = "the relay would start, and warns of this"
    elif would_start:
        meaning = "the relay would start with a part of it disabled, but not with --strict"
    return say(f"{path}: {count}; {meaning}", EXIT_CONFIG)


def _print_json(
    path: Path | None, files: list[Path], lines: list[Line], *, would_start: bool
) -> int:
    is_ok = not any(line.is_problem for line in lines)
    document = {
        "config": None if path is None else str(path.absolute()),
        "files": [str(file) for file in files],
        "ok": is_ok,
        "would_start": would_start,
        "findings": [line.as_dict() for line in lines],
    }
    click.echo(json.dumps(document, indent=2))
    return EXIT_OK if is_ok else EXIT_CONFIG
