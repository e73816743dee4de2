"""The `relay` command: runs a subcommand, turns each error into a line and a code.

Never: shows a traceback, unless RELAY_DEBUG=1 is set; imports OpenSSL or the
configuration for a command that does not need it.
"""

from __future__ import annotations

import errno
import os
import sys

import click

from relay.cli import (
    apply,
    backend,
    check,
    example,
    import_haproxy,
    import_httpd,
    init,
    kick,
    reload,
    running,
    schema,
    start,
    status,
    tools,
    upgrade,
)
from relay.cli.client import RefusedError
from relay.cli.help import (
    EXIT_BUG,
    EXIT_CANNOT_START,
    EXIT_CODES,
    EXIT_CONFIG,
    EXIT_INTERRUPTED,
    EXIT_NOT_RUNNING,
    EXIT_NOT_WRITTEN,
    EXIT_OK,
    EXIT_USAGE,
    WIDTH,
    Group,
)
from relay.cli.output import discard_stdout, say
from relay.errors import ConfigError, ControlError, FatalError, RelayError
from relay.memory_shortage import HINT, describe_shortage, is_too_little_memory
from relay.standard_streams import reserve

_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return the exit code. Every error is one line on stderr."""
    reserve()
    try:
        code = commands.main(arguments, prog_name="relay", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # the same exit code as click's
        discard_stdout()
        return 1
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return EXIT_USAGE
    except click.UsageError as error:
        # Some usage errors of click do not know their command.
        command = error.ctx.command_path if error.ctx else "relay"
        return say(f"{error.format_message()}; see: {command} --help", EXIT_USAGE)
    except click.ClickException as error:
        return say(error.format_message(), EXIT_USAGE)
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except RelayError as error:
        return _report(error)
    except Exception as error:
        if is_too_little_memory(error):
            return say(f"{describe_shortage(error)}; {HINT}", EXIT_CANNOT_START)
        if isinstance(error, OSError) and error.errno in _WRITE_ERRORS:
            discard_stdout()
            what = f"the output cannot be written: {error.strerror}"
            return say(f"{what}; make room where stdout goes", EXIT_NOT_WRITTEN)
        if os.environ.get("RELAY_DEBUG"):
            raise
        what = f"a bug in the relay: {type(error).__name__}: {error}"
        todo = "run the command again with RELAY_DEBUG=1 and report the traceback"
        return say(f"{what}; {todo}", EXIT_BUG)
    return code if isinstance(code, int) else EXIT_OK


def _report(error: RelayError) -> int:
    """Write a known error to stderr, one line per problem, and return its exit code."""
    if isinstance(error, ConfigError):
        for problem in error.problems:
            say(str(problem))
        # A service manager tries again where that may help.
        temporary = bool(error.problems) and all(problem.temporary for problem in error.problems)
        return EXIT_CANNOT_START if temporary else EXIT_CONFIG
    if isinstance(error, RefusedError):
        for line in error.problems:
            say(line)
        return say(str(error), error.code)
    if isinstance(error, ControlError):
        return say(str(error), EXIT_NOT_RUNNING)
    return say(str(error), EXIT_BUG if isinstance(error, FatalError) else EXIT_CANNOT_START)


def _show_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(tools.version_line())
        ctx.exit()


@click.group(
    cls=Group,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": WIDTH,
    },
    examples=[
        "relay demo                          see it work, without a configuration",
        "relay check --config relay.toml     find every problem before the start",
        "relay start --config relay.toml     run it in the foreground",
    ],
    exit_codes=EXIT_CODES,
    epilog=(
        "More help: relay COMMAND --help. `relay example relay.toml` explains every key. In the"
        " source tree, docs/ has operation.md and troubleshooting.md."
    ),
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the versions, as relay version does, and exit.",
)
def commands() -> None:
    """A mutual-TLS gateway at layer 4: verifies clients, relays them to backends."""


for command in (
    start.start,
    check.check,
    init.init,
    status.status,
    reload.reload,
    upgrade.upgrade,
    running.drain,
    running.stop,
    backend.backend,
    apply.apply,
    kick.kick,
    tools.demo,
    example.example,
    schema.schema,
    import_httpd.import_httpd,
    import_haproxy.import_haproxy,
    tools.password,
    tools.version,
):
    commands.add_command(command)
