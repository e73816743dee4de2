"""The `relay` command: turns arguments into calls, and errors into one line each and an exit code.

Never: shows a traceback unless asked with RELAY_DEBUG=1; imports OpenSSL for a command that does not need it.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import select
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

import relay
from relay.cli.backend import backend
from relay.cli.client import (
    EXIT_NOT_RUNNING,
    STATUS_PATIENCE_S,
    RefusedError,
    ask_relay,
    config_option,
)
from relay.config.load import find_config, load_config
from relay.errors import ConfigError, ControlError, FatalError, RelayError
from relay.memory_shortage import HINT, describe_shortage, is_too_little_memory
from relay.standard_streams import reserve

if TYPE_CHECKING:
    from relay.tls.certificates.findings import Finding

EXIT_OK, EXIT_USAGE, EXIT_BUG, EXIT_CANNOT_START, EXIT_CONFIG, EXIT_INTERRUPTED = (
    0,
    64,
    70,
    71,
    78,
    130,
)
RELOAD_PATIENCE_S, STOP_PATIENCE_S = 300.0, 15.0
EXIT_NOT_WRITTEN = 74
_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
SAY_PATIENCE_S = 1.0


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit code of the process. Every error is one line on stderr."""
    reserve()
    try:
        code = commands.main(arguments, prog_name="relay", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # as click does it
        _forget_stdout()
        return 1
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return EXIT_USAGE
    except click.UsageError as error:
        # click does not always know in which command it was.
        command = error.ctx.command_path if error.ctx else "relay"
        return _say(f"{error.format_message()}; see: {command} --help", EXIT_USAGE)
    except click.ClickException as error:
        return _say(error.format_message(), EXIT_USAGE)
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except ConfigError as error:
        for problem in error.problems:
            _say(str(problem))
        # A service manager tries again where that may help.
        temporary = bool(error.problems) and all(problem.temporary for problem in error.problems)
        return EXIT_CANNOT_START if temporary else EXIT_CONFIG
    except RefusedError as error:
        for line in error.problems:
            _say(line)
        return _say(str(error), error.code)
    except ControlError as error:
        return _say(str(error), EXIT_NOT_RUNNING)
    except FatalError as error:
        return _say(str(error), EXIT_BUG)
    except RelayError as error:
        return _say(str(error), EXIT_CANNOT_START)
    except Exception as error:
        if is_too_little_memory(error):
            return _say(f"{describe_shortage(error)}; {HINT}", EXIT_CANNOT_START)
        if isinstance(error, OSError) and error.errno in _NOT_WRITTEN:
            _forget_stdout()
            what = f"what was to be written was not: {error.strerror}"
            return _say(f"{what}; see where stdout goes, and make room there", EXIT_NOT_WRITTEN)
        if os.environ.get("RELAY_DEBUG"):
            raise
        return _say(
            f"a bug in the relay: {type(error).__name__}: {error}; run it again with RELAY_DEBUG=1 and report the traceback",
            EXIT_BUG,
        )
    return code if isinstance(code, int) else EXIT_OK


def _forget_stdout() -> None:
    """Let the flush at exit succeed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _interruptible() -> None:
    """From now on Ctrl-C is KeyboardInterrupt: this command has something to clean up."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _say(text: str, code: int = EXIT_OK) -> int:
    # One line whatever a file name or a peer put into it. A reader of stderr that hangs, or is
    # gone, does not keep the process from ending.
    with contextlib.suppress(OSError):
        if _takes_more(sys.stderr):
            click.echo("relay: " + " ".join(text.split("\n")), err=True)
    return code


def _takes_more(stream: TextIO) -> bool:
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
    except (OSError, ValueError):
        return True  # it is not a file: a test has put something else in its place
    return bool(poll.poll(1000 * SAY_PATIENCE_S))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def commands() -> None:
    """A mutual-TLS gateway at layer 4."""


commands.add_command(backend)


@commands.command()
@config_option
@click.option(
    "--strict",
    is_flag=True,
    help="Refuse what would only disable a route, a pool or a backend, now and at every reload.",
)
def start(config_file: Path | None, *, strict: bool) -> int:
    """Run the relay in the foreground."""
    path = find_config(config_file)
    # systemd's watchdog sends SIGABRT to a supervisor that hangs: the traceback says where.
    faulthandler.enable()
    _load_openssl()
    from relay.supervisor.main import run

    return run(path, strict=strict)


@commands.command()
@config_option
def check(config_file: Path | None) -> int:
    """Say everything that `start` would refuse or disable, and how fit every certificate is."""
    path = find_config(config_file)
    config = load_config(path)
    _load_openssl()
    from relay.sandbox.confinement import hide_memory
    from relay.supervisor.check import check_all

    hide_memory()  # it reads the keys

    judged = check_all(config)
    _show_findings(judged.findings)
    for problem in judged.problems + judged.temporary:
        _say(str(problem))
    if judged.count:
        what = f"{judged.count} problem{'s' if judged.count > 1 else ''}"
        meaning = "the relay would not start"
        if judged.would_start:
            meaning = "the relay would start with a part of it disabled, but not with --strict"
        return _say(f"{path}: {what}; {meaning}", EXIT_CONFIG)
    click.echo(f"{path}: ok")
    return EXIT_OK


def _show_findings(findings: list[Finding]) -> None:
    if not sys.stdout.isatty():
        from relay.supervisor.inspection import as_problem

        for one in findings:
            click.echo(f"{one.level} {as_problem(one)}")
        return
    from rich.table import Table
    from rich.text import Text

    table = Table("level", "where, file", "subject", "what", "remedy", show_lines=False)
    colours = {"error": "bold red", "warning": "yellow", "info": "green"}
    for one in findings:
        table.add_row(
            Text(one.level, style=colours.get(one.level, "")),
            *map(
                Text,
                ("\n".join(filter(None, (one.where, one.file))), one.subject, one.what, one.remedy),
            ),
        )
    _print(table)


@commands.command()
@config_option
def status(config_file: Path | None) -> int:
    """Show the running relay: its generation, workers and listeners."""
    reply = ask_relay(config_file, "status", STATUS_PATIENCE_S)
    from rich.table import Table

    since = (
        datetime.fromtimestamp(reply["started_at"], UTC)
        .astimezone()
        .isoformat(sep=" ", timespec="seconds")
    )
    click.echo(
        f"relay {reply['version']}, pid {reply['supervisor']['pid']}: {reply['state']}, generation {reply['generation']}, since {since}"
    )
    click.echo(f"configuration {reply['config']}")
    for name, addresses in reply["listeners"].items():
        click.echo(f"listener {name}: {', '.join(addresses)}")
    admin = reply["admin"]
    click.echo(
        f"admin: {admin if admin.startswith('unix:') else 'http://' + admin if admin else 'off'}"
    )
    if reply.get("checker", {}).get("pid"):
        click.echo(f"checker: pid {reply['checker']['pid']}")
    columns = ("slot", "pid", "generation", "phase", "connections", "age_s", "heartbeat_age_s")
    rows = [[str(worker[column]) for column in columns] for worker in reply["workers"]]
    waiting = [slot for slot in reply["slots"] if slot["parked"] or slot["next_start_in_s"] > 0]
    if sys.stdout.isatty():
        table = Table(*(column.replace("_s", " (s)").replace("_", " ") for column in columns))
        for row in rows:
            table.add_row(*row)
        _print(table)
    else:
        for row in rows:
            click.echo(
                "worker "
                + " ".join(f"{column}={value}" for column, value in zip(columns, row, strict=True))
            )
    for thing in reply.get("disabled", ()):
        parent = f"{thing['parent']}/" if thing["parent"] else ""
        click.echo(f"{thing['kind']} {parent}{thing['name']} is disabled: {thing['why']}")
    for slot in waiting:
        what = "is parked" if slot["parked"] else "has no worker"
        # None when the last one could not even be forked.
        deaths = (
            f" after {slot['early_deaths']} early deaths of its workers"
            if slot["early_deaths"]
            else ""
        )
        click.echo(f"slot {slot['slot']} {what}{deaths}; next try in {slot['next_start_in_s']:g} s")
    return EXIT_OK


@commands.command()
@config_option
def reload(config_file: Path | None) -> int:
    """Load the configuration and certificates anew; returns when the new workers serve, or says why they do not."""
    started = time.monotonic()
    reply = ask_relay(config_file, "reload", RELOAD_PATIENCE_S)
    click.echo(f"generation {reply['generation']} serves, after {time.monotonic() - started:.1f} s")
    return EXIT_OK


@commands.command()
@config_option
def drain(config_file: Path | None) -> int:
    """Accept no more, let the sessions finish (at most relay.drain_timeout_s), then end. Returns at once."""
    reply = ask_relay(config_file, "drain", STATUS_PATIENCE_S)
    click.echo(f"pid {reply['supervisor']['pid']} drains and then ends")
    return EXIT_OK


@commands.command()
@config_option
def stop(config_file: Path | None) -> int:
    """End now, sessions too; returns when the relay has ended."""
    reply = ask_relay(config_file, "stop", STOP_PATIENCE_S, until_end=True)
    click.echo(f"pid {reply['supervisor']['pid']} has ended")
    return EXIT_OK


@commands.command()
@click.option(
    "--once",
    is_flag=True,
    help="End after the last step; exit 0 only if every step showed what it should.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    metavar="N",
    help="Port to listen on; 0 is any free one.",
)
def demo(once: bool, port: int) -> int:
    """Make a CA, certificates and three backends, start a relay on loopback, and show it working."""
    from relay.demo.steps import run_demo

    _interruptible()
    return run_demo(once, port)


@commands.command()
def password() -> int:
    """Ask for a password twice, and print the line for admin.password_file.

    Where stdin is not a terminal, its first line is the password.
    """
    from relay.shared.password import hash_password

    _interruptible()
    if sys.stdin is not None and sys.stdin.isatty():
        asked = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        asked = sys.stdin.readline().rstrip("\r\n") if sys.stdin is not None else ""
        if not asked:
            raise click.UsageError(
                "stdin has no password; write it there as one line, or start this in a terminal"
            )
    click.echo(hash_password(asked))
    return EXIT_OK


@commands.command()
def version() -> int:
    """Show the versions of the relay, Python, pyOpenSSL and OpenSSL."""
    from importlib.metadata import version as version_of
    from platform import python_version

    _load_openssl()
    from relay.tls.raw import openssl_version

    click.echo(
        f"relay {relay.__version__}, Python {python_version()}, pyOpenSSL {version_of('pyopenssl')}, cryptography {version_of('cryptography')}, {openssl_version()}"
    )
    return EXIT_OK


def _load_openssl() -> None:
    from relay.tls.preload import load_openssl

    load_openssl()


def _print(table: object) -> None:
    from rich.console import Console

    Console().print(table)
