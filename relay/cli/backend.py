"""`relay backend`: the backends of the running relay, and changing them by hand.

Never: changes anything itself; the supervisor does, and remembers it.
"""

from __future__ import annotations

import getpass
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from relay.cli.client import ask_relay, config_option
from relay.core.overrides import MAX_WEIGHT

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "": 1}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)")
_COLUMNS = (
    "backend",
    "address",
    "status",
    "mode",
    "weight",
    "elected",
    "busy",
    "to_bytes",
    "from_bytes",
    "overridden",
)


class _Duration(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click alone
    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Seconds of "90", "90s", "10m", "2h" or "1d"."""
        match = _DURATION.fullmatch(str(value))
        if match is None or float(match[1]) == 0:
            self.fail(f"{value!r} is no duration; write for example 90s, 10m, 2h or 1d", param, ctx)
        return float(match[1]) * _UNITS_S[match[2]]


class _BackendKey(click.ParamType):  # type: ignore[type-arg]  # see above
    name = "pool/backend"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Pool and backend; the name of a pool has no slash."""
        pool, slash, name = str(value).partition("/")
        if not slash or not pool or not name:
            self.fail(
                f"{value!r} names no backend; write POOL/BACKEND, see: relay backend list",
                param,
                ctx,
            )
        return pool, name


_member = click.argument("member", type=_BackendKey(), metavar="POOL/BACKEND")
_for = click.option(
    "--for",
    "duration_s",
    type=_Duration(),
    metavar="TIME",
    help="Undo it after this time: 90s, 10m, 2h, 1d.",
)


@click.group()
def backend() -> None:
    """List the backends of the running relay, or change one until it is changed back."""


@backend.command("list")
@config_option
def list_backends(config_file: Path | None) -> int:
    """Show every pool and backend."""
    reply = ask_relay(config_file, "backends")
    rows = [
        [_shown(pool, one, column) for column in _COLUMNS]
        for pool in reply["pools"]
        for one in pool["backends"]
    ]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*(column.replace("_", " ") for column in _COLUMNS))
        for row in rows:
            table.add_row(*row)
        Console().print(table, markup=False)
    else:
        for row in rows:
            click.echo(
                "backend "
                + " ".join(f"{column}={value}" for column, value in zip(_COLUMNS, row, strict=True))
            )
    for one in reply["inactive"]:
        click.echo(
            f"{one['pool']}/{one['backend']} is overridden, but the configuration has no such backend; forget it with: relay backend clear {one['pool']}/{one['backend']}"
        )
    return 0


def _shown(pool: dict[str, Any], one: dict[str, Any], column: str) -> str:
    if column == "backend":
        return f"{pool['name']}/{one['backend']}"
    if column != "overridden":
        return str(one[column])
    settings = {name: setting for name, setting in one["override"].items() if setting}
    return (
        ",".join(
            f"{name}:{setting['value']}{_until(setting['until'])}"
            for name, setting in settings.items()
        )
        or "no"
    )


def _until(until_at: float | None) -> str:
    if until_at is None:
        return ""
    return f":until_{datetime.fromtimestamp(max(until_at, time.time()), UTC):%Y-%m-%dT%H:%M:%SZ}"


def _change(config_file: Path | None, member: tuple[str, str], **wanted: Any) -> int:
    reply = ask_relay(
        config_file,
        "override",
        pool=member[0],
        backend=member[1],
        by=f"{_user()} (relay backend)",
        **wanted,
    )
    click.echo(f"{member[0]}/{member[1]}: {reply['now']}")
    if "warning" in reply:
        click.echo(f"relay: {reply['warning']}", err=True)
    return 0


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


@backend.command()
@_member
@_for
@config_option
def drain(config_file: Path | None, member: tuple[str, str], duration_s: float | None) -> int:
    """Let its sessions finish; only clients whose cookie sends them there still get it."""
    return _change(config_file, member, mode="drain", duration_s=duration_s)


@backend.command()
@_member
@_for
@config_option
def disable(config_file: Path | None, member: tuple[str, str], duration_s: float | None) -> int:
    """Send nobody there; its sessions go on to their end."""
    return _change(config_file, member, mode="disabled", duration_s=duration_s)


@backend.command()
@_member
@_for
@config_option
def enable(config_file: Path | None, member: tuple[str, str], duration_s: float | None) -> int:
    """Send clients there, also to one that is configured as standby."""
    return _change(config_file, member, mode="enabled", duration_s=duration_s)


@backend.command()
@_member
@_for
@config_option
def standby(config_file: Path | None, member: tuple[str, str], duration_s: float | None) -> int:
    """Send clients there only when no other backend is left."""
    return _change(config_file, member, mode="standby", duration_s=duration_s)


@backend.command()
@_member
@click.argument("weight", type=click.IntRange(0, MAX_WEIGHT))
@_for
@config_option
def weight(
    config_file: Path | None, member: tuple[str, str], weight: int, duration_s: float | None
) -> int:
    """Give it another weight, 1 to 256; 0 is the configured one."""
    return _change(config_file, member, weight=weight, duration_s=duration_s)


@backend.command()
@_member
@config_option
def clear(config_file: Path | None, member: tuple[str, str]) -> int:
    """Undo every change of it: as configured."""
    return _change(config_file, member, mode="none")
