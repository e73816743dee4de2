"""`relay example`: prints or writes the files that belong to the relay.

Never: replaces a file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from relay.cli.help import EXIT_CANNOT_START, EXIT_OK, WIDTH, Command
from relay.cli.shipped import Found, UnknownNameError, find_shipped, shipped_files, summary
from relay.errors import StartupError, describe_error

SECTION = "Tools"


def _complete(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    return [
        name
        for name in shipped_files()
        if name.startswith(incomplete) or Path(name).name.startswith(incomplete)
    ]


@click.command(
    cls=Command,
    section=SECTION,
    examples=[
        "relay example",
        "relay example minimal > relay.toml",
        "relay example examples --to my-examples",
    ],
    exit_codes={
        EXIT_OK: "the names or the file are printed, or the files are written",
        EXIT_CANNOT_START: "a file cannot be written, or is there already",
    },
)
@click.argument("name", required=False, shell_complete=_complete)
@click.option(
    "--to",
    "directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write the file, or all files of the directory NAME, into DIR.",
)
def example(name: str | None, directory: Path | None) -> int:
    """List the example files, or print the one of that name.

    They are configurations, the systemd units, rules for Prometheus, and the changelog.
    The name may be a path as listed, a file name, or a file name without its ending.
    """
    if name is None:
        if directory is not None:
            raise click.UsageError("--to needs the NAME of a file or a directory")
        _list()
        return EXIT_OK
    try:
        found = find_shipped(name)
    except UnknownNameError as error:
        raise click.UsageError(str(error)) from None
    if directory is not None:
        _write(found, directory)
    elif found.is_directory:
        raise click.UsageError(
            f"{name} has {len(found.files)} files; write them with --to DIR, or name one:"
            f" {', '.join(found.files)}"
        )
    else:
        (path,) = found.files.values()
        sys.stdout.buffer.write(path.read_bytes())
    return EXIT_OK


def _list() -> None:
    rows = [(name, summary(path)) for name, path in shipped_files().items()]
    if not sys.stdout.isatty():  # for programs: one line each
        for row in rows:
            click.echo("\t".join(row))
        return
    formatter = click.HelpFormatter(width=WIDTH)
    formatter.write_dl(rows)
    click.echo(formatter.getvalue(), nl=False)


def _write(found: Found, directory: Path) -> None:
    """Write all files, or none if one of them exists. Raises StartupError."""
    targets = {directory / name: path for name, path in found.files.items()}
    for target in targets:
        if target.exists() or target.is_symlink():
            raise StartupError(f"{target} exists already", "remove it, or name another directory")
    for target, path in targets.items():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                file.write(path.read_bytes())
        except OSError as error:
            what = f"{target} cannot be written: {describe_error(error)}"
            raise StartupError(what, "change its directory, or name another one") from None
        click.echo(f"wrote {target}")
