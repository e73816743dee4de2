"""`relay import-httpd`: writes a configuration from one of Apache httpd.

Never: copies a private key, changes a file that is there, or asks the backends unless
`--probe` says so.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from relay.cli.help import (
    EXIT_CONFIG,
    EXIT_NOT_WRITTEN,
    EXIT_OK,
    Command,
)
from relay.cli.output import say

if TYPE_CHECKING:
    from relay.importer.build import Imported
    from relay.importer.pool_tables import FoundName

    Run = Callable[[Mapping[tuple[str, int], FoundName]], Imported | None]

SECTION = "Tools"
REPORT = "import-report.txt"

# What both importers take.
files_argument = click.argument("files", nargs=-1, required=True, metavar="FILE...")
output_option = click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    metavar="DIR",
    help="Directory for relay.toml, new files, and the report. Default: the current one.",
)
force_option = click.option("--force", is_flag=True, help="Replace the files of an earlier import.")


@click.command(
    name="import-httpd",
    cls=Command,
    section=SECTION,
    examples=[
        "relay import-httpd /etc/apache2/apache2.conf --output my",
        "relay import-httpd /etc/httpd/conf.d/app.conf --output my --probe",
    ],
    exit_codes={
        EXIT_OK: "relay.toml is written; the report says what is to be done by hand",
        EXIT_NOT_WRITTEN: "a file cannot be written, or is there already",
        EXIT_CONFIG: "a FILE cannot be read, or no virtual host in it can be a route",
    },
)
@files_argument
@output_option
@click.option(
    "--probe",
    is_flag=True,
    help=(
        "Connect to each backend, read its certificate, and write the name in it into `name` if"
        " backend_ca verifies it."
    ),
)
@click.option(
    "--define",
    "-D",
    "defines",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="A variable for ${NAME} and <IfDefine>, as httpd's -D.",
)
@force_option
def import_httpd(
    files: tuple[str, ...], output: Path, defines: tuple[str, ...], *, probe: bool, force: bool
) -> int:
    """Write a relay.toml from the configuration of Apache httpd.

    FILE is httpd.conf, apache2.conf, or a file with virtual hosts. Prints a line for
    each directive: same, better, by hand, or lost, and why. Private keys stay where
    they are.
    """
    given = dict(each.partition("=")[::2] for each in defines)

    def run(names: Mapping[tuple[str, int], FoundName]) -> Imported | None:
        from relay.cli.this_machine import ThisMachine
        from relay.importer.build import convert
        from relay.importer.disk import Disk
        from relay.importer.parser import Parser

        parser = Parser(Disk(), os.environ, given)
        read = [read_file(file, parser.read_main) for file in files]
        return convert(parser, ThisMachine(), names) if all(read) else None

    return carry_out(run, output, probe=probe, force=force)


def carry_out(run: Run, output: Path, *, probe: bool, force: bool) -> int:
    """Import, ask the backends if `probe`, and write the result."""
    imported = run({})
    if imported is None:
        return EXIT_CONFIG
    if imported.toml and probe:
        # The files that were made now, such as a CA file, are used to verify.
        code = _write(output, imported, [], force=force)
        if code != EXIT_OK:
            return code
        from relay.cli.backend_names import read_names
        from relay.cli.start import load_openssl

        load_openssl()
        names, lines = read_names(imported.backends, output.absolute())
        again = run(names)
        if again is not None:
            again.report.notes += lines
            imported, force = again, True
    return _finish(imported, output, force=force)


def read_file(file: str, read: Callable[[str], None]) -> bool:
    """Whether a file that the operator has named was read; says why if not."""
    try:
        read(os.path.abspath(file))  # noqa: PTH100  Path keeps ".."
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        say(f"{file}: cannot be read: {why}; name a configuration file")
        return False
    return True


def _finish(imported: Imported, output: Path, *, force: bool) -> int:
    report = imported.report
    lines = report.lines(imported.read)
    for line in lines:
        click.echo(line)
    for note in report.notes:
        click.echo(f"note: {note}")
    click.echo(report.summary())
    if not imported.toml:
        what = f"{imported.read[0]}: nothing in it has TLS and passes connections on to backends"
        todo = "name the file that has SSLEngine on and ProxyPass, or bind … ssl and server"
        return say(f"{what}; {todo}", EXIT_CONFIG)
    text = [*lines, *(f"note: {note}" for note in report.notes), report.summary()]
    code = _write(output, imported, text, force=force)
    if code == EXIT_OK:
        path = output / "relay.toml"
        click.echo(f"{path} is written; next: relay check --config {path}")
    return code


def _write(output: Path, imported: Imported, report: list[str], *, force: bool) -> int:
    contents: dict[Path, bytes] = {
        output / "relay.toml": imported.toml.encode(),
        output / REPORT: ("\n".join(report) + "\n").encode(errors="replace"),
    }
    contents |= {output / name: data for name, data in imported.files.items()}
    if not force and (there := [str(path) for path in contents if path.exists()]):
        what = f"{', '.join(there)}: is there already"
        return say(f"{what}; use --force, or another --output", EXIT_NOT_WRITTEN)
    for path, data in contents.items():
        secret = not data  # a cookie secret, which only the command can make
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if secret and path.exists():
                continue  # clients have cookies that were made with it
            path.unlink(missing_ok=True)
            mode = 0o600 if secret else 0o644
            # The mode is right from the start.
            number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(number, "wb") as file:
                file.write(data or f"{secrets.token_hex(32)}\n".encode())
        except OSError as error:
            why = error.strerror or str(error)
            return say(f"{path}: cannot be written: {why}; name another --output", EXIT_NOT_WRITTEN)
    return EXIT_OK
