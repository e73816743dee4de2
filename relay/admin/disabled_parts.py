"""Which routes, pools and backends cannot work, as the supervisor has published it.

Never: decides it.
"""

from __future__ import annotations

from relay.shared.messages import Facts


def disabled_in(facts: Facts) -> dict[tuple[str, ...], str]:
    """The reasons, by (kind, parent, name) of what is disabled."""
    return {(one["kind"], one["parent"], one["name"]): one["why"] for one in facts["disabled"]}


def routes_disabled(facts: Facts) -> dict[tuple[str, str], str]:
    """Every route by (listener, label), and why it or its pool is disabled ("" if not).

    Routes with the same label count as disabled when any of them is.
    """
    disabled = disabled_in(facts)
    found: dict[tuple[str, str], str] = {}
    for listener, label, pool in facts["routes"]:
        own = disabled.get(("route", listener, label), "")
        why = own or disabled.get(("pool", "", pool), "")
        found[listener, label] = found.get((listener, label)) or why
    return found
