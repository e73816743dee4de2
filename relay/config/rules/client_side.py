"""Rules of a listener's clients: PROXY headers, limits per client, probes.

Never: reads a file, or resolves a name.
"""

from __future__ import annotations

import ipaddress

from relay.config.explain import quoted
from relay.config.listener_model import Listener
from relay.config.rules.problem_list import ProblemList

# As an entry of `accept_proxy.from`: peers on unix sockets, which have no address.
UNIX = "unix"


def check_client_side(found: ProblemList, where: str, listener: Listener) -> None:
    """The keys of this listener that are about who connects to it."""
    _accept_proxy(found, where, listener)


def _accept_proxy(found: ProblemList, where: str, listener: Listener) -> None:
    if listener.accept_proxy is None:
        return
    path = f"{where}.accept_proxy.from"
    for index, entry in enumerate(listener.accept_proxy.from_):
        if entry != UNIX:
            _network(found, f"{path}[{index}]", entry)


def _network(found: ProblemList, where: str, entry: str) -> None:
    """An IP address, or a network without host bits."""
    try:
        network = ipaddress.ip_network("?" if "%" in entry else entry, strict=False)
    except ValueError:
        found.add(
            where,
            f"{quoted(entry)} is not an IP address or network",
            'write an address such as "192.0.2.7", or a network such as "10.0.0.0/8"',
        )
        return
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is not None:
        found.add(
            where,
            f"{quoted(entry)} is an IPv4 address written as IPv6",
            f"write {quoted(str(mapped))}, with a prefix of the IPv4 network if needed",
        )
        return
    try:
        ipaddress.ip_network(entry)
    except ValueError:
        found.add(
            where,
            f"{quoted(entry)} has bits outside of its prefix",
            f"write {quoted(str(network))} for the network, or"
            f" {quoted(entry.partition('/')[0])} for the one address",
        )
