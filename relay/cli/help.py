"""Command classes that every command is made with: help has examples and exit codes.

A command without examples or without an entry for exit code 0 cannot be defined.

Never: imports anything that takes long to load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

EXIT_OK = 0
EXIT_USAGE = 64
EXIT_NOT_RUNNING = 69
EXIT_BUG = 70
EXIT_CANNOT_START = 71
EXIT_NOT_WRITTEN = 74
EXIT_DRAINING = 75
EXIT_CONFIG = 78
EXIT_INTERRUPTED = 130

WIDTH = 80
EXIT_CODES = {
    EXIT_OK: "success",
    EXIT_USAGE: "wrong usage of the command line",
    EXIT_NOT_RUNNING: "no relay answers",
    EXIT_BUG: "a bug, or a failure after the relay had served",
    EXIT_CANNOT_START: "this machine does not allow the start now; try again",
    EXIT_NOT_WRITTEN: "the output cannot be written",
    EXIT_DRAINING: "the relay drains: new clients should go elsewhere",
    EXIT_CONFIG: "the configuration is refused",
    EXIT_INTERRUPTED: "interrupted with Ctrl-C",
}


class _Documented(click.Command):
    """A command whose help ends with examples and exit codes.

    `section` is the heading that the command has in the help of its group.
    """

    def __init__(
        self,
        *arguments: Any,
        examples: Sequence[str],
        exit_codes: Mapping[int, str],
        section: str = "Commands",
        **more: Any,
    ) -> None:
        super().__init__(*arguments, **more)
        self.examples = tuple(examples)
        self.exit_codes = {EXIT_USAGE: EXIT_CODES[EXIT_USAGE], **exit_codes}
        self.section = section

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples" if len(self.examples) > 1 else "Example"):
            for example in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")
        with formatter.section("Exit codes"):
            codes = sorted(self.exit_codes)
            formatter.write_dl([(str(code), self.exit_codes[code]) for code in codes])
        super().format_epilog(ctx, formatter)


class Command(_Documented):
    """A single command."""


class Group(_Documented, click.Group):
    """A group whose help lists its commands in sections, in order of definition."""

    command_class = Command

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002  click's interface
        formatter: click.HelpFormatter,
    ) -> None:
        """Write one section after the other, with their columns aligned."""
        sections: dict[str, list[tuple[str, str]]] = {}
        widest = max(map(len, self.commands), default=0)
        room = formatter.width - widest - 4
        for name, command in self.commands.items():
            section = command.section if isinstance(command, _Documented) else "Commands"
            row = (name.ljust(widest), command.get_short_help_str(room))
            sections.setdefault(section, []).append(row)
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl(rows)
