"""`relay backend`: list the backends of the running relay, or change one of them.

Never: changes anything itself. The supervisor does, and keeps it across restarts.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from relay.cli.client import ask_relay, config_option, exit_codes, user_name
from relay.cli.durations import Duration
from relay.cli.help import EXIT_USAGE, Group
from relay.cli.output import echo_rows, say
from relay.core.overrides import MAX_WEIGHT

if TYPE_CHECKING:
    from relay.shared.messages import OverriddenSetting
    from relay.shared.replies import BackendReply, PoolReply

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


# click.ParamType is generic only in new versions of click.
class _BackendKey(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    name = "pool/backend"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Pool and backend. A pool's name has no slash."""
        pool, slash, name = str(value).partition("/")
        if not slash or not pool or not name:
            self.fail(
                f"{value!r} is not POOL/BACKEND; for the names see: relay backend list",
                param,
                ctx,
            )
        return pool, name


_key = click.argument("key", type=_BackendKey(), metavar="POOL/BACKEND")
_for = click.option(
    "--for",
    "duration_s",
    type=Duration(),
    metavar="TIME",
    help="Undo the change after this time: 90s, 10m, 2h, 1d. Default: never.",
)
_LIST_EXIT_CODES = exit_codes("the list is printed")
_CHANGE_EXIT_CODES = exit_codes(
    "the change is made", {EXIT_USAGE: "wrong usage, or no backend of this name"}
)


@click.group(
    cls=Group,
    section="Control the running relay",
    examples=[
        "relay backend list",
        "relay backend drain httpslb/worker1 --for 10m",
    ],
    exit_codes=_CHANGE_EXIT_CODES,
)
def backend() -> None:
    """List backends, or change one: drain, disable, weight.

    A change survives reloads and restarts, until it is cleared or its time is over.
    """


@backend.command(
    "list",
    section="Look",
    examples=["relay backend list", "relay backend list --json > overrides.json"],
    exit_codes=_LIST_EXIT_CODES,
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, which relay apply takes too.")
@config_option
def list_backends(config_file: Path | None, as_json: bool) -> int:
    """Show every backend with its status and its changes.

    Below the list, it says why a backend is not used.
    """
    reply = ask_relay(config_file, "backends")
    if as_json:
        shown = {key: value for key, value in reply.items() if key != "ok"}
        click.echo(json.dumps(shown, indent=2))
        return 0
    rows = [
        [_cell(pool, one, column) for column in _COLUMNS]
        for pool in reply["pools"]
        for one in pool["backends"]
    ]
    echo_rows("backend", _COLUMNS, rows)
    for pool in reply["pools"]:
        for backend in pool["backends"]:
            if why := why_unused(backend):
                click.echo(f"{pool['name']}/{backend['backend']} is not used: {why}")
    for one in reply["inactive"]:
        key = f"{one['pool']}/{one['backend']}"
        click.echo(
            f"{key} is overridden, but the configuration has no such backend;"
            f" remove the override with: relay backend clear {key}"
        )
    return 0


def why_unused(backend: BackendReply) -> str:
    """Why a backend is not used, and the remedy; "" if no fault is known."""
    if backend["disabled"] or backend["up"]:
        return backend["disabled"]
    health = backend["health"]
    if health["state"] == "down":
        return "; ".join(filter(None, (health["reason"] or "its checks fail", health["remedy"])))
    return "a connection to it failed; the relay's log has the reason and the remedy"


def _cell(pool: PoolReply, backend: BackendReply, column: str) -> str:
    if column == "backend":
        return f"{pool['name']}/{backend['backend']}"
    if column != "overridden":
        return str(dict(backend)[column])
    override = backend["override"]
    changed: dict[str, OverriddenSetting | None] = {
        "mode": override["mode"],
        "weight": override["weight"],
    }
    settings = [
        f"{name}:{setting['value']}{_until(setting['until'])}"
        for name, setting in changed.items()
        if setting
    ]
    return ",".join(settings) or "no"


def _until(until_at: float | None) -> str:
    if until_at is None:
        return ""
    return f":until_{datetime.fromtimestamp(max(until_at, time.time()), UTC):%Y-%m-%dT%H:%M:%SZ}"


def _change(config_file: Path | None, key: tuple[str, str], **wanted: Any) -> int:
    pool, name = key
    by = f"{user_name()} (relay backend)"
    reply = ask_relay(config_file, "override", pool=pool, backend=name, by=by, **wanted)
    click.echo(f"{pool}/{name}: {reply['now']}")
    if "warning" in reply:
        say(reply["warning"])
    return 0


def _example(command: str, more: str = " --for 10m") -> dict[str, Any]:
    return {
        "section": "Change",
        "examples": [f"relay backend {command} httpslb/worker1{more}"],
        "exit_codes": _CHANGE_EXIT_CODES,
    }


@backend.command(**_example("drain"))
@_key
@_for
@config_option
def drain(config_file: Path | None, key: tuple[str, str], duration_s: float | None) -> int:
    """Send no new clients, except by cookie.

    Running sessions finish. A client whose cookie names this backend still gets it.
    """
    return _change(config_file, key, mode="drain", duration_s=duration_s)


@backend.command(**_example("disable"))
@_key
@_for
@config_option
def disable(config_file: Path | None, key: tuple[str, str], duration_s: float | None) -> int:
    """Send no new clients at all.

    Running sessions finish.
    """
    return _change(config_file, key, mode="disabled", duration_s=duration_s)


@backend.command(**_example("enable"))
@_key
@_for
@config_option
def enable(config_file: Path | None, key: tuple[str, str], duration_s: float | None) -> int:
    """Send clients, even if configured as standby."""
    return _change(config_file, key, mode="enabled", duration_s=duration_s)


@backend.command(**_example("standby"))
@_key
@_for
@config_option
def standby(config_file: Path | None, key: tuple[str, str], duration_s: float | None) -> int:
    """Send clients only when no other backend is left."""
    return _change(config_file, key, mode="standby", duration_s=duration_s)


@backend.command(**_example("weight", " 20 --for 10m"))
@_key
@click.argument("weight", type=click.IntRange(0, MAX_WEIGHT))
@_for
@config_option
def weight(
    config_file: Path | None, key: tuple[str, str], weight: int, duration_s: float | None
) -> int:
    """Set the weight, 1 to 256; 0 is the configured one."""
    return _change(config_file, key, weight=weight, duration_s=duration_s)


@backend.command(**_example("clear", ""))
@_key
@config_option
def clear(config_file: Path | None, key: tuple[str, str]) -> int:
    """Undo all changes of a backend."""
    return _change(config_file, key, mode="none")
