"""`relay kick`: end the sessions of a client and keep it out for a time.

Never: ends anything itself. The supervisor tells the workers.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING

import click

from relay.cli.client import ask_relay, config_option, exit_codes, user_name
from relay.cli.durations import Duration
from relay.cli.help import EXIT_OK, EXIT_USAGE, Command
from relay.cli.output import echo_rows, say
from relay.cli.running import SECTION

if TYPE_CHECKING:
    from relay.shared.replies import KickReply

_COLUMNS = ("client", "kind", "until", "by", "why")


@click.command(
    cls=Command,
    section=SECTION,
    examples=[
        'relay kick "CN=alice,O=Example" --for 2h --why "lost laptop"',
        "relay kick 192.0.2.7",
        "relay kick --list",
        "relay kick --undo 192.0.2.7",
    ],
    exit_codes=exit_codes(
        "the sessions are ended; also if there were none",
        {EXIT_USAGE: "wrong usage, or the text names no client"},
    ),
)
@click.argument("client", required=False, metavar="[CLIENT]")
@click.option(
    "--for",
    "duration_s",
    type=Duration(zero=True),
    default="10m",
    metavar="TIME",
    help="Keep the client out for this time: 90s, 10m, 2h, 1d. 0 ends its sessions"
    " only. Default: 10m.",
)
@click.option("--why", default="", metavar="TEXT", help="The reason, for the logs.")
@click.option("--undo", is_flag=True, help="Let the client in again.")
@click.option("--list", "wants_list", is_flag=True, help="Show who is kept out.")
@config_option
def kick(
    config_file: Path | None,
    client: str | None,
    duration_s: float,
    why: str,
    undo: bool,
    wants_list: bool,
) -> int:
    """End a client's sessions and keep it out for a time.

    CLIENT is an address, a network, the SHA-256 of a certificate, a subject as the
    access log prints it, CN=NAME, or a URI of the certificate. A reload keeps the
    kicks; a restart of the relay forgets them.
    """
    if wants_list:
        if client or undo:
            raise click.UsageError("--list takes no client and no --undo")
        return _show(config_file)
    if client is None:
        raise click.UsageError("name the client to kick, or ask for --list")
    reply = ask_relay(
        config_file,
        "kick",
        target=client,
        duration_s=0 if undo else duration_s,
        by=user_name(),
        why=why,
        undo=undo,
    )
    click.echo(_undone(config_file, reply) if undo else _done(reply))
    if reply["silent"]:
        pids = ", ".join(map(str, reply["silent"]))
        say(f"no answer yet from the workers with pid {pids}; they act when they run again")
    return EXIT_OK


def _undone(config_file: Path | None, reply: KickReply) -> str:
    target = reply["target"]
    if not reply["lifted"]:
        return f"{target} was not kept out; see: relay kick --list"
    if reply["kind"] == "address":
        for other in ask_relay(config_file, "kicks")["kicks"]:
            if other["kind"] == "address" and ip_network(target).overlaps(
                ip_network(other["target"])
            ):
                return f"the kick of {target} is undone; that of {other['target']} still holds"
    return f"{target} may connect again"


def _done(reply: KickReply) -> str:
    ended, target = reply["ended"], reply["target"]
    what = f"no session matches {target}"
    if ended:
        what = f"ended {ended} session{'s' if ended > 1 else ''} of {target}"
    if not reply["left_s"]:
        return f"{what}; new ones are accepted"
    return f"{what}; kept out until {_until(reply['left_s'])}"


def _show(config_file: Path | None) -> int:
    reply = ask_relay(config_file, "kicks")
    rows = [
        [one["target"], one["kind"], _until(one["left_s"]), one["by"], one["why"]]
        for one in reply["kicks"]
    ]
    echo_rows("kick", _COLUMNS, rows)
    return EXIT_OK


def _until(left_s: float) -> str:
    return f"{datetime.fromtimestamp(time.time() + left_s, UTC):%Y-%m-%dT%H:%M:%SZ}"
