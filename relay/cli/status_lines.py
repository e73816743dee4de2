"""The lines of `relay status`: first what needs attention, then what there is.

Never: asks the relay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from relay.dates import minute

if TYPE_CHECKING:
    from relay.shared.canary_replies import CanaryStatus
    from relay.shared.messages import CrlFact
    from relay.shared.replies import NameReply, SlotStatus, StatusReply
    from relay.shared.status_facts import EndingCertificate, LastMinute, ShortPool

_DAY_S = 86_400
_ENDS_SOON_S = 14 * _DAY_S
_LIST_ENDS_SOON_S = 4 * 3600
_REASONS = 3
_BACKENDS = 3


def header(reply: StatusReply) -> str:
    """Which relay it is, and what it does."""
    return (
        f"relay {reply['version']}, pid {reply['supervisor']['pid']}: {_state(reply)},"
        f" generation {reply['generation']},"
        f" since {_at(reply['started_at'])}"
    )


def problem_lines(reply: StatusReply, now_at: float) -> Iterator[str]:
    """One line for everything that needs attention, the worst first."""
    not_ready = reply.get("not_ready", "")
    if not_ready:
        yield f"not ready: {not_ready}"
    for one in reply.get("disabled", ()):
        parent = f"{one['parent']}/" if one["parent"] else ""
        yield f"{one['kind']} {parent}{one['name']} is disabled: {one['why']}"
    for pool in sorted(reply.get("short_pools", ()), key=lambda each: each["up"]):
        yield _pool_line(pool)
    for slot in reply["slots"]:
        if slot["parked"] or slot["next_start_in_s"] > 0:
            yield _waiting_slot(slot)
    yield from _full_workers(reply)
    recent = reply.get("last_minute")
    if recent is not None and recent["restarts"]:
        yield (
            f"in the last hour, workers ended unexpectedly: {recent['restarts']};"
            " the log has the reason"
        )
    reload = reply.get("last_reload")
    if reload is not None and not reload["ok"]:
        why = reload.get("why")
        yield f"the last reload was refused: {why}" if why else "the last reload was refused"
    for pending in reply.get("pending", ()):
        yield f"{pending['file']} is not in use since {_at(pending['since'])}: {pending['why']}"
    yield from _ending(reply.get("certificates", ()), now_at)
    yield from _ending_lists(reply.get("crls", ()), now_at)
    for fetch in reply.get("fetches", ()):
        if fetch["error"]:
            since = fetch["failing_since"]
            when = f" since {_at(since)}" if since is not None else ""
            yield f"revocation list {fetch['url']} cannot be fetched{when}: {fetch['error']}"
    for staple in reply.get("staples", ()):
        if staple["why"]:
            yield (
                f"route {staple['listener']}/{staple['route']} staples nothing:"
                f" {staple['file']} {staple['why']}"
            )
    for name in reply.get("names", ()):
        if name["gone"] or name["failing"]:
            yield _name_line(name)
    if recent is not None and recent["log_lines_dropped"]:
        yield f"lines of the access log lost in the last minute: {recent['log_lines_dropped']}"


def traffic_lines(recent: LastMinute) -> Iterator[str]:
    """What clients and backends did in the last minute."""
    clients = f"last {recent['seconds']:.0f} s: {recent['clients']} clients"
    if recent["admitted"]:
        resumed = 100 * recent["resumed"] // recent["admitted"]
        clients += f", {recent['admitted']} admitted ({resumed} % resumed)"
    if recent["probes"]:
        clients += f", {recent['probes']} probes"
    yield f"{clients}, {_counted(recent['refused'], 'refused')}"
    failed, ended = recent["backend_failures"], recent["ended"]
    if failed:
        yield f"  connections to backends: {_counted(failed, 'failed')}"
    if ended:
        yield f"  sessions: {_counted(ended, 'ended early')}"


def fact_lines(reply: StatusReply, now_at: float) -> Iterator[str]:
    """What there is, without the workers."""
    upgraded = reply.get("upgraded")
    if upgraded is not None:
        yield f"upgraded from {upgraded['before']} at {_at(upgraded['at'])}"
    reload = reply.get("last_reload")  # an earlier version may run
    if reload is not None:
        how = "succeeded" if reload["ok"] else "failed; the last success was"
        yield f"last reload: {how} at {_at(reload['at'])}"
    if canary := reply.get("canary"):
        yield _canary_line(canary)
    certificates = reply.get("certificates", ())
    if certificates and certificates[0]["not_after"] >= now_at + _ENDS_SOON_S:
        yield f"certificates: the first one ends on {minute(certificates[0]['not_after'])}"
    yield from _all_lists(reply.get("crls", ()), now_at)
    yield f"configuration {reply['config']}"
    yield f"admin: {_admin_url(reply['admin'])}"
    if reply.get("checker", {}).get("pid"):
        yield f"checker: pid {reply['checker']['pid']}"
    if reply.get("watcher", {}).get("pid"):
        yield f"watcher: pid {reply['watcher']['pid']}"
    for name, addresses in reply["listeners"].items():
        yield f"listener {name}: {', '.join(addresses)}"
    for looked_up in reply.get("names", ()):
        if not looked_up["gone"] and not looked_up["failing"]:
            yield _name_line(looked_up)


def workers_line(reply: StatusReply) -> str:
    """All workers in one line."""
    serving = [each for each in reply["workers"] if each["phase"] == "serving"]
    connections = sum(each["connections"] for each in reply["workers"])
    line = f"workers: {len(serving)} of {len(reply['slots'])} serve, {connections} connections"
    draining = [each for each in reply["workers"] if each["phase"] == "draining"]
    if draining:
        left = [each["drain_left_s"] for each in draining]
        longest = [each for each in left if each is not None]
        until = "without limit" if None in left else f"for {max(longest):g} s at most"
        line += (
            f"; {len(draining)} drain {until}"
            f" ({sum(each['connections'] for each in draining)} connections)"
        )
    return line


def _counted(reasons: Mapping[str, int], what: str) -> str:
    """Such as "12 refused (unknown_ca 9, expired 3)"."""
    ordered = sorted(reasons.items(), key=lambda each: -each[1])
    named = ", ".join(f"{reason} {count}" for reason, count in ordered[:_REASONS])
    more = ", …" if len(ordered) > _REASONS else ""
    return f"{sum(reasons.values())} {what}" + (f" ({named}{more})" if named else "")


def _pool_line(pool: ShortPool) -> str:
    down = pool["backends"] - pool["up"]
    named = ", ".join(f"{one['backend']} ({one['why']})" for one in pool["down"][:_BACKENDS])
    more = f" and {down - _BACKENDS} more" if down > _BACKENDS else ""
    return (
        f"pool {pool['pool']}: {pool['up']} of {pool['backends']} backends used, not {named}{more}"
    )


def _ending(certificates: Sequence[EndingCertificate], now_at: float) -> Iterator[str]:
    """Certificates that end soon. One that has ended has disabled something."""
    for one in certificates:
        left_s = one["not_after"] - now_at
        if left_s < _ENDS_SOON_S:
            days = (
                f"in {left_s / _DAY_S:.0f} days"
                if left_s >= 2 * _DAY_S
                else (f"in {left_s / 3600:.0f} h" if left_s >= 0 else "it has expired")
            )
            yield f"{one['file']} ({one['subject']}) ends on {minute(one['not_after'])}, {days}"


def _all_lists(lists: Sequence[CrlFact], now_at: float) -> Iterator[str]:
    if lists:
        revoked = sum(one["entries"] for one in lists)
        ends = [at for one in lists if (at := one["next_update"]) is not None and at >= now_at]
        due = f", next update {minute(min(ends))}" if ends else ""
        yield f"revocation lists: {len(lists)}, revoked certificates: {revoked}{due}"


def _ending_lists(lists: Sequence[CrlFact], now_at: float) -> Iterator[str]:
    """Revocation lists that have expired, or will soon without a newer one."""
    for one in lists:
        until_at = one["next_update"]
        if until_at is None:
            continue
        number = "" if one["number"] is None else f" {one['number']}"
        which = f'CRL{number} of "{one["issuer"]}" from {one["source"]}'
        if until_at < now_at:
            in_grace = now_at <= until_at + one["grace_s"]
            then = (
                f"it counts until {minute(until_at + one['grace_s'])}"
                if in_grace
                else "what it covers is refused"
            )
            yield f"{which} expired on {minute(until_at)}: {then}"
        elif until_at - now_at < min(_LIST_ENDS_SOON_S, (until_at - one["this_update"]) / 10):
            yield f"{which} ends on {minute(until_at)}, and no newer one is here"


def _state(reply: StatusReply) -> str:
    """What the relay does, in words."""
    drains_in_s = reply.get("drains_in_s")
    return reply["state"] if drains_in_s is None else f"draining in {drains_in_s:g} s"


def _canary_line(canary: CanaryStatus) -> str:
    return (
        f"canary: generation {canary['generation']} in worker {canary['slot']},"
        f" {canary['left_s']:g} s left: {canary['clients']} clients, {canary['refused']} refused"
        f" (the other workers: {canary['others_clients']}, {canary['others_refused']} refused)"
    )


def _at(unix_s: float) -> str:
    local = datetime.fromtimestamp(unix_s, UTC).astimezone()
    return local.isoformat(sep=" ", timespec="seconds")


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


def _full_workers(reply: StatusReply) -> Iterator[str]:
    """Workers that accept nobody now. No log has a line for the clients that wait."""
    allowed = reply.get("connections_allowed", 0)
    full = [each for each in reply["workers"] if 0 < allowed <= each["connections"]]
    if full:
        yield (
            f"workers with all {allowed} connections that they can have: {len(full)};"
            " new clients wait"
        )


def _waiting_slot(slot: SlotStatus) -> str:
    what = "is parked" if slot["parked"] else "has no worker"
    deaths = ""
    if slot["early_deaths"]:  # 0 when the last worker could not even be forked
        deaths = f" after {slot['early_deaths']} early deaths of its workers"
    return f"slot {slot['slot']} {what}{deaths}; next try in {slot['next_start_in_s']:g} s"
