"""Rules of a listener's clients: PROXY headers, limits per client, probes.

Never: reads a file, or resolves a name.
"""

from __future__ import annotations

import ipaddress

from relay.config.explain import quoted
from relay.config.listener_model import Listener
from relay.config.model import Config
from relay.config.rules.problem_list import ProblemList
from relay.config.unix_addresses import unix_fault

# As an entry of `accept_proxy.from`: peers on unix sockets, which have no address.
UNIX = "unix"
_PREFIXES = {"per_client_prefix_v4", "per_client_prefix_v6"}
_LONGEST_WINDOW_S = 86_400


def check_client_side(found: ProblemList, where: str, listener: Listener, config: Config) -> None:
    """The keys of this listener that are about who connects to it."""
    _accept_proxy(found, where, listener)
    _unix(found, where, listener, config)
    _rate(found, where, listener, config)
    _probes(found, where, listener)


def _accept_proxy(found: ProblemList, where: str, listener: Listener) -> None:
    if listener.accept_proxy is None:
        return
    path = f"{where}.accept_proxy.from"
    for index, entry in enumerate(listener.accept_proxy.from_):
        if entry != UNIX:
            _network(found, f"{path}[{index}]", entry)


def _unix(found: ProblemList, where: str, listener: Listener, config: Config) -> None:
    """Unix sockets to listen on: only for balancers that send PROXY headers."""
    proxies = listener.accept_proxy
    on_unix = [each.startswith("unix:") for each in listener.listen]
    everywhere = [each for one in config.listener for each in one.listen] + [config.admin.listen]
    for index, address in enumerate(listener.listen):
        path = f"{where}.listen[{index}]"
        if not on_unix[index]:
            continue
        if fault := unix_fault(address):
            found.add(path, f"{quoted(address)} {fault}", 'write "unix:/run/relay/in.sock"')
        elif everywhere.count(address) > 1:
            found.add(path, f"{quoted(address)} is used twice", "give each its own path")
        elif proxies is None or UNIX not in proxies.from_:
            found.add(
                path,
                f"{quoted(address)} needs a balancer that says who the client is, and accept_proxy"
                f" has no {quoted(UNIX)}",
                'set accept_proxy = { from = ["unix"] }',
                compared=[f"{where}.accept_proxy"],
            )
    if proxies is not None:
        path = f"{where}.accept_proxy.from"
        if UNIX in proxies.from_ and not any(on_unix):
            found.add(
                f"{path}[{proxies.from_.index(UNIX)}]",
                f"{quoted(UNIX)} has no effect: the listener has no unix socket",
                'add an address such as "unix:/run/relay/in.sock" to listen, or remove it',
                compared=[f"{where}.listen"],
            )
        if set(proxies.from_) == {UNIX} and not all(on_unix):
            found.add(
                path,
                "names no address, so nobody could use the listener's IP addresses",
                "add the addresses of the balancers, or remove the IP addresses from listen",
                compared=[f"{where}.listen"],
            )


def _rate(found: ProblemList, where: str, listener: Listener, config: Config) -> None:
    rate, burst = listener.per_client_rate, listener.per_client_burst
    if not rate:
        limits = config.limits
        counted = limits.per_client or limits.half_open_per_client
        without_effect = {"per_client_burst"} | (set() if counted else _PREFIXES)
        for key in sorted(listener.model_fields_set & without_effect):
            if getattr(listener, key) != Listener.model_fields[key].default:
                found.add(
                    f"{where}.{key}",
                    "has no effect without per_client_rate",
                    "set per_client_rate, or remove this key",
                    compared=[f"{where}.per_client_rate"],
                )
    elif max(burst, 1) / rate > _LONGEST_WINDOW_S:
        found.add(
            f"{where}.per_client_rate",
            f"{rate:g} per second takes longer than a day to fill a burst of {max(burst, 1)}",
            "raise it, or lower per_client_burst",
            compared=[f"{where}.per_client_burst"],
        )


def _probes(found: ProblemList, where: str, listener: Listener) -> None:
    if listener.probes_from and listener.log_probes:
        found.add(
            f"{where}.probes_from",
            "has no effect: log_probes is true, so every probe is logged",
            "set log_probes = false, or remove this key",
            compared=[f"{where}.log_probes"],
        )
    for index, entry in enumerate(listener.probes_from):
        if entry != UNIX:
            _network(found, f"{where}.probes_from[{index}]", entry)


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
