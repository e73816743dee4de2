"""`relay demo`, `password` and `version`: commands that need no configuration."""

from __future__ import annotations

import sys
from pathlib import Path

import click

import relay
from relay.cli.help import EXIT_CANNOT_START, EXIT_INTERRUPTED, EXIT_OK, Command
from relay.cli.output import allow_interrupt
from relay.cli.start import load_openssl

SECTION = "Tools"


@click.command(
    cls=Command,
    section=SECTION,
    examples=["relay demo", "relay demo --once --port 8443", "relay demo --once --keep demo"],
    exit_codes={
        EXIT_OK: "every step showed what it should",
        1: "a step did not",
        EXIT_CANNOT_START: "the relay of the demonstration cannot start",
        EXIT_INTERRUPTED: "interrupted with Ctrl-C before the last step",
    },
)
@click.option("--once", is_flag=True, help="Stop after the last step.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    metavar="N",
    help="Port to listen on. Default: 0, any free port.",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Leave the configuration and the certificates in DIR, and say how to start them.",
)
def demo(once: bool, port: int, keep: Path | None) -> int:
    """Show a relay at work, with three backends on loopback.

    Makes a CA and certificates in a temporary directory, and removes them at the end.
    With --keep they are in DIR, which must be empty or not exist, and stay there.
    """
    from relay.demo.main import run_demo

    allow_interrupt()
    return run_demo(once, port, keep)


@click.command(
    cls=Command,
    section=SECTION,
    examples=["relay password > admin.password", "relay password < secret.txt > admin.password"],
    exit_codes={
        EXIT_OK: "the line is printed",
        EXIT_INTERRUPTED: "interrupted with Ctrl-C",
    },
)
def password() -> int:
    """Make the line for admin.password_file from a password.

    Asks for the password twice. If stdin is not a terminal, its first line is the
    password. Run `umask 077` before, so that only you can read the file.
    """
    from relay.shared.password import hash_password

    allow_interrupt()
    if sys.stdin is not None and sys.stdin.isatty():
        given = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        given = sys.stdin.readline().rstrip("\r\n") if sys.stdin is not None else ""
        if not given:
            raise click.UsageError(
                "stdin has no password; write it there as one line, or run this in a terminal"
            )
    click.echo(hash_password(given))
    return EXIT_OK


@click.command(
    cls=Command,
    section=SECTION,
    examples=["relay version"],
    exit_codes={EXIT_OK: "the versions are printed"},
)
def version() -> int:
    """Show the versions of relay, Python, pyOpenSSL and OpenSSL."""
    click.echo(version_line())
    return EXIT_OK


def version_line() -> str:
    """The versions of everything that a bug report should name."""
    from importlib.metadata import version as version_of
    from platform import python_version

    load_openssl()
    from relay.tls.raw import openssl_version

    return (
        f"relay {relay.__version__}, Python {python_version()},"
        f" pyOpenSSL {version_of('pyopenssl')}, cryptography {version_of('cryptography')},"
        f" {openssl_version()}"
    )
