"""`relay status`: what a person needs to know first, on one screen."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from relay.cli.client import ask_relay, config_option, exit_codes
from relay.cli.help import EXIT_OK, Command
from relay.cli.output import echo_rows, say
from relay.cli.readiness import QUIET_EXIT_CODES, QUIET_PATIENCE_S, judge
from relay.cli.running import SECTION
from relay.cli.status_lines import (
    fact_lines,
    header,
    problem_lines,
    traffic_lines,
    workers_line,
)

if TYPE_CHECKING:
    from relay.shared.replies import StatusReply, WorkerStatus

_WORKER_COLUMNS = (
    "slot",
    "pid",
    "generation",
    "phase",
    "connections",
    "age_s",
    "heartbeat_age_s",
    "drain_left_s",
)
_PROMPT_LINES = 1


@click.command(
    cls=Command,
    section=SECTION,
    examples=["relay status --config /etc/relay/relay.toml", "relay status --quiet"],
    exit_codes=exit_codes("the relay runs; with --quiet: it serves", QUIET_EXIT_CODES),
)
@click.option("--quiet", is_flag=True, help="Print nothing. The exit code says if it serves.")
@click.option("--all", "everything", is_flag=True, help="Print more than fits on the screen.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@config_option
def status(config_file: Path | None, quiet: bool, everything: bool, as_json: bool) -> int:
    """Show what needs attention, the last minute, and all parts.

    On a terminal the lines that do not fit on the screen are left out, the least
    important ones first. A pipe gets all of them, and a line for each worker.

    With --quiet, what /readyz says is the exit code, and if it is not 0, one line on
    stderr says why. A relay that does not answer within 2 s counts as not running.
    """
    if quiet:
        code, why = judge(ask_relay(config_file, "status", QUIET_PATIENCE_S))
        return say(why, code) if code else code
    reply = ask_relay(config_file, "status", lately=True)
    if as_json:
        found = {key: value for key, value in dict(reply).items() if key != "ok"}
        click.echo(json.dumps(found, indent=2))
    elif everything or not sys.stdout.isatty():
        _print_all(reply)
    else:
        _print_screen(reply)
    return EXIT_OK


def _print_all(reply: StatusReply) -> None:
    now_at = time.time()
    click.echo(header(reply))
    for line in problem_lines(reply, now_at):
        click.secho(line, fg="red")
    for line in _traffic(reply):
        click.echo(line)
    rows = [[_shown(worker, name) for name in _WORKER_COLUMNS] for worker in reply["workers"]]
    echo_rows("worker", _WORKER_COLUMNS, rows)
    for line in fact_lines(reply, now_at):
        click.echo(line)


def _print_screen(reply: StatusReply) -> None:
    """Print what fits, without scrolling."""
    now_at, size = time.time(), shutil.get_terminal_size()
    first = [header(reply)]
    problems = list(problem_lines(reply, now_at))
    traffic = [*_traffic(reply), workers_line(reply)]
    facts = list(fact_lines(reply, now_at))
    rest = size.lines - _PROMPT_LINES - _rows(first, size.columns)
    half_or_more = max(rest // 2, rest - _rows(problems, size.columns))
    traffic = _fitting(traffic, half_or_more, size.columns)
    rest -= _rows(traffic, size.columns)
    shown = _fitting(problems, rest, size.columns)
    kept = _fitting(facts, rest - _rows(shown, size.columns), size.columns)
    for line in first:
        click.secho(line, bold=True)
    for line in shown:
        click.secho(line, fg="red")
    for line in (*traffic, *kept):
        click.echo(line)


def _traffic(reply: StatusReply) -> list[str]:
    recent = reply.get("last_minute")
    return list(traffic_lines(recent)) if recent is not None else []


def _rows(lines: Sequence[str], columns: int) -> int:
    """How many rows of the screen these lines need."""
    return sum(max(1, -(-len(line) // columns)) for line in lines)


def _fitting(lines: Sequence[str], rows: int, columns: int) -> list[str]:
    """The first lines that fit, and how many more there are.

    If not even one fits, its beginning.
    """
    if _rows(lines, columns) <= rows:
        return list(lines)
    if rows < 1:
        return []
    count = 0
    while count < len(lines) and _rows(lines[: count + 1], columns) < rows:
        count += 1
    more = f"… and {len(lines) - count} more lines: relay status --all"
    room = rows - _rows([more], columns)
    cut = [] if count or room < 1 else [lines[0][: room * columns - 1] + "…"]
    return [*lines[:count], *cut, more]


def _shown(worker: WorkerStatus, column: str) -> str:
    value = dict(worker).get(column)
    if value is not None:
        return str(value)
    return "no-limit" if worker["phase"] == "draining" else "-"
