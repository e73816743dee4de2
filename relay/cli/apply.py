"""`relay apply`: makes the running relay's overrides of backends what a file says.

Never: changes anything itself. The supervisor checks the file again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from relay.cli.client import RefusedError, ask_relay, config_option, exit_codes, user_name
from relay.cli.help import EXIT_OK, EXIT_USAGE, Command
from relay.cli.output import say

MOST_BYTES = 16 * 1024 * 1024
# What the supervisor takes in one request, less what stands around the document.
_SENT_BYTES = 1024 * 1024 - 4096


@click.command(
    cls=Command,
    section="Control the running relay",
    examples=[
        "relay apply overrides.json",
        "relay apply --strict - < overrides.json",
        "relay apply --merge --dry-run overrides.json",
    ],
    exit_codes=exit_codes(
        "the overrides are as the file says; also if they were before",
        {EXIT_USAGE: "wrong usage, or the file is refused and nothing was changed"},
    ),
)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE")
@click.option("--merge", is_flag=True, help="Keep the overrides of backends not in the file.")
@click.option("--strict", is_flag=True, help="Refuse a backend that is not configured.")
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@config_option
def apply(config_file: Path | None, file: Path, merge: bool, strict: bool, dry_run: bool) -> int:
    """Change backends as a file says, all at once.

    FILE, or - for stdin, is what relay backend list --json prints. Backends without an
    entry are as configured afterwards. A backend that this relay's configuration does
    not have is kept, with a warning, and counts when a reload brings it.
    """
    name = "stdin" if str(file) == "-" else str(file)
    document = _parse(name, _read(name, file))
    try:
        reply = ask_relay(
            config_file,
            "apply",
            document=document,
            merge=merge,
            strict=strict,
            dry_run=dry_run,
            by=f"{user_name()} (relay apply)",
        )
    except RefusedError as error:
        problems = [f"{name}: {problem}" for problem in error.problems]
        raise RefusedError(str(error), error.code, problems) from None
    would = "would be" if dry_run else "is now"
    for one in reply["changes"]:
        key = f"{one['pool']}/{one['backend']}"
        click.echo(f"{key}: {would} {one['now']}, was {one['before']}")
    if not reply["changes"]:
        click.echo(f"nothing changes: backends with overrides: {reply['overrides']}")
    for warning in reply["warnings"]:
        say(warning)
    return EXIT_OK


def _read(name: str, file: Path) -> bytes:
    """At most one byte more than is allowed."""
    try:
        if name == "stdin":
            return sys.stdin.buffer.read(MOST_BYTES + 1)
        with file.open("rb") as opened:
            return opened.read(MOST_BYTES + 1)
    except OSError as error:
        raise _refused(name, f"cannot be read: {error.strerror or error}") from None


def _parse(name: str, data: bytes) -> Any:
    """The part of the file that counts: its version and its overrides."""
    if len(data) > MOST_BYTES:
        raise _refused(name, f"is larger than {MOST_BYTES} bytes")
    try:
        document = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_without_repeats)
    except UnicodeDecodeError:
        raise _refused(name, "is not UTF-8") from None
    except json.JSONDecodeError as error:
        what = f"is not JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        raise _refused(name, what) from None
    except (ValueError, RecursionError) as error:
        deep = isinstance(error, RecursionError)
        raise _refused(name, "is nested too deeply" if deep else str(error)) from None
    if isinstance(document, dict):
        document = {key: document[key] for key in ("version", "overrides") if key in document}
    if len(json.dumps(document)) > _SENT_BYTES:
        raise _refused(name, f"has overrides of more than {_SENT_BYTES} bytes")
    return document


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"has the key {json.dumps(repeated)[:60]} twice in one object")
    return found


def _refused(name: str, what: str) -> RefusedError:
    why = f"{name}: {what}; nothing was changed; for the form see: relay backend list --json"
    return RefusedError(why, EXIT_USAGE)
