"""`relay status`, `drain` and `stop`: commands for the running relay."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from relay.cli.client import ask_relay, config_option, exit_codes
from relay.cli.help import EXIT_OK, Command
from relay.cli.output import echo_rows, say
from relay.cli.readiness import QUIET_EXIT_CODES, QUIET_PATIENCE_S, judge
from relay.dates import minute

if TYPE_CHECKING:
    from relay.shared.canary_replies import CanaryStatus
    from relay.shared.messages import CrlFact
    from relay.shared.replies import NameReply, SlotStatus, StatusReply, WorkerStatus

SECTION = "Control the running relay"
STOP_PATIENCE_S = 15.0
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


def _state(reply: StatusReply) -> str:
    """What the relay does, in words."""
    drains_in_s = reply.get("drains_in_s")
    return reply["state"] if drains_in_s is None else f"draining in {drains_in_s:g} s"


@click.command(
    cls=Command,
    section=SECTION,
    examples=["relay status --config /etc/relay/relay.toml", "relay status --quiet"],
    exit_codes=exit_codes("the relay runs; with --quiet: it serves", QUIET_EXIT_CODES),
)
@click.option("--quiet", is_flag=True, help="Print nothing. The exit code says if it serves.")
@config_option
def status(config_file: Path | None, quiet: bool) -> int:
    """Show generation, listeners, workers and disabled parts.

    With --quiet, what /readyz says is the exit code, and if it is not 0, one line on
    stderr says why. A relay that does not answer within 2 s counts as not running.
    """
    if quiet:
        code, why = judge(ask_relay(config_file, "status", QUIET_PATIENCE_S))
        return say(why, code) if code else code
    reply = ask_relay(config_file, "status")
    click.echo(
        f"relay {reply['version']}, pid {reply['supervisor']['pid']}: {_state(reply)},"
        f" generation {reply['generation']},"
        f" since {_at(reply['started_at'])}"
    )
    upgraded = reply.get("upgraded")
    if upgraded is not None:
        click.echo(f"upgraded from {upgraded['before']} at {_at(upgraded['at'])}")
    click.echo(f"configuration {reply['config']}")
    for name, addresses in reply["listeners"].items():
        click.echo(f"listener {name}: {', '.join(addresses)}")
    click.echo(f"admin: {_admin_url(reply['admin'])}")
    if reply.get("checker", {}).get("pid"):
        click.echo(f"checker: pid {reply['checker']['pid']}")
    if reply.get("watcher", {}).get("pid"):
        click.echo(f"watcher: pid {reply['watcher']['pid']}")
    if "last_reload" in reply:
        how = "succeeded" if reply["last_reload"]["ok"] else "failed; the last success was"
        click.echo(f"last reload: {how} at {_at(reply['last_reload']['at'])}")
    if canary := reply.get("canary"):
        click.echo(_canary_line(canary))
    rows = [[_shown(worker, name) for name in _WORKER_COLUMNS] for worker in reply["workers"]]
    echo_rows("worker", _WORKER_COLUMNS, rows)
    for one in reply.get("disabled", ()):
        parent = f"{one['parent']}/" if one["parent"] else ""
        click.echo(f"{one['kind']} {parent}{one['name']} is disabled: {one['why']}")
    for looked_up in reply.get("names", ()):
        click.echo(_name_line(looked_up))
    for line in list_lines(reply.get("crls", ()), time.time()):
        click.echo(line)
    for fetch in reply.get("fetches", ()):
        if fetch["error"]:
            since = fetch["failing_since"]
            when = f" since {_at(since)}" if since is not None else ""
            click.echo(f"revocation list {fetch['url']} cannot be fetched{when}: {fetch['error']}")
    for staple in reply.get("staples", ()):
        if staple["why"]:
            click.echo(
                f"route {staple['listener']}/{staple['route']} staples nothing:"
                f" {staple['file']} {staple['why']}"
            )
    for pending in reply.get("pending", ()):
        click.echo(
            f"{pending['file']} is not in use since {_at(pending['since'])}: {pending['why']}"
        )
    for slot in reply["slots"]:
        if slot["parked"] or slot["next_start_in_s"] > 0:
            click.echo(_waiting_slot(slot))
    return EXIT_OK


def list_lines(lists: Sequence[CrlFact], now_at: float) -> Iterator[str]:
    """One line for all revocation lists, and one for each that has expired."""
    if not lists:
        return
    revoked = sum(one["entries"] for one in lists)
    ends = [at for one in lists if (at := one["next_update"]) is not None and at >= now_at]
    due = f", next update {minute(min(ends))}" if ends else ""
    yield f"revocation lists: {len(lists)}, revoked certificates: {revoked}{due}"
    for one in lists:
        until_at = one["next_update"]
        if until_at is not None and until_at < now_at:
            in_grace = now_at <= until_at + one["grace_s"]
            then = (
                f"it counts until {minute(until_at + one['grace_s'])}"
                if in_grace
                else "what it covers is refused"
            )
            number = "" if one["number"] is None else f" {one['number']}"
            yield (
                f'CRL{number} of "{one["issuer"]}" from {one["source"]} expired on'
                f" {minute(until_at)}: {then}"
            )


def _canary_line(canary: CanaryStatus) -> str:
    return (
        f"canary: generation {canary['generation']} in worker {canary['slot']},"
        f" {canary['left_s']:g} s left: {canary['clients']} clients, {canary['refused']} refused"
        f" (the other workers: {canary['others_clients']}, {canary['others_refused']} refused)"
    )


def _at(unix_s: float) -> str:
    local = datetime.fromtimestamp(unix_s, UTC).astimezone()
    return local.isoformat(sep=" ", timespec="seconds")


def _shown(worker: WorkerStatus, column: str) -> str:
    value = dict(worker).get(column)
    if value is not None:
        return str(value)
    return "no-limit" if worker["phase"] == "draining" else "-"


def _name_line(one: NameReply) -> str:
    """A service with its endpoints, or a host name that has a problem."""
    kind, _, rest = one["name"].rpartition(":")
    name = f"service {rest}" if kind else f"host {rest}"
    endpoints = ", ".join(
        f"{each['address']} (priority {each['priority']}, weight {each['weight']})"
        if kind
        else each["address"]
        for each in one["endpoints"]
    )
    if one["gone"]:
        return f"{name} has no address: its backends get no new sessions"
    if one["failing"]:
        kept = f"{endpoints} stays in use" if endpoints else "no address is known"
        return f"{name} cannot be looked up now; {kept}"
    return f"{name} is at {endpoints}" if endpoints else f"{name} has not been looked up yet"


def _admin_url(address: str) -> str:
    if not address:
        return "off"
    return address if address.startswith("unix:") else f"http://{address}"


def _waiting_slot(slot: SlotStatus) -> str:
    what = "is parked" if slot["parked"] else "has no worker"
    deaths = ""
    if slot["early_deaths"]:  # 0 when the last worker could not even be forked
        deaths = f" after {slot['early_deaths']} early deaths of its workers"
    return f"slot {slot['slot']} {what}{deaths}; next try in {slot['next_start_in_s']:g} s"


@click.command(
    cls=Command,
    section=SECTION,
    examples=["relay drain --config /etc/relay/relay.toml"],
    exit_codes=exit_codes("the relay drains"),
)
@config_option
def drain(config_file: Path | None) -> int:
    """Stop accepting, let sessions finish, then stop.

    Clients are accepted for relay.drain_delay_s, or until the second drain. Sessions
    may take relay.drain_timeout_s; then they are closed. Returns at once.
    """
    reply = ask_relay(config_file, "drain")
    click.echo(f"relay (pid {reply['supervisor']['pid']}) drains, and stops after that")
    return EXIT_OK


@click.command(
    cls=Command,
    section=SECTION,
    examples=["relay stop --config /etc/relay/relay.toml"],
    exit_codes=exit_codes("the relay has stopped"),
)
@config_option
def stop(config_file: Path | None) -> int:
    """Stop now, and close all sessions.

    Returns when the relay has stopped.
    """
    reply = ask_relay(config_file, "stop", STOP_PATIENCE_S, until_end=True)
    click.echo(f"relay (pid {reply['supervisor']['pid']}) has stopped")
    return EXIT_OK
