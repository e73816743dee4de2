"""What is known of a configuration before its contexts are built.

Never: reads a file that was read before, or asks a resolver.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from relay.config.address import is_ip
from relay.config.key_path import pool_path
from relay.errors import ConfigError, Problem
from relay.files import Files
from relay.shared.addresses import Ip
from relay.tls.certificates.validity_periods import ValidityPeriod, ValidityPeriods


@dataclass(frozen=True, slots=True)
class ContextInputs:
    """What was found out about a configuration before its contexts are built.

    `files` hold the very bytes that were judged; `addresses` are those of backends' host names, none where a name does not resolve.
    """

    files: Files = field(default_factory=Files)
    addresses: Mapping[str, tuple[Ip, ...]] = field(default_factory=dict)
    ciphers_checked: bool = False
    periods: Mapping[str, ValidityPeriod] = field(
        default_factory=dict
    )  # by the key of the configuration

    def periods_of(self, *wheres: str) -> ValidityPeriods:
        """When everything that these keys name is valid."""
        return ValidityPeriods.of(self.periods[where] for where in wheres if where in self.periods)


def periods_of_pool(context_inputs: ContextInputs, name: str) -> ValidityPeriods:
    """When a pool's machine certificate and CAs are valid."""
    where = pool_path(name)
    return context_inputs.periods_of(f"{where}.machine_certificate", f"{where}.backend_ca")


def endpoint_of(
    where: str, host: str, port: int, addresses: Mapping[str, tuple[Ip, ...]]
) -> tuple[int, tuple[Any, ...]]:
    """Family and socket address to begin with; 0 and () for a name without an address."""
    if not is_ip(host):
        found = addresses.get(host, ())
        if not found:
            return 0, ()
        text, scope = found[0]
        if ":" in text:
            return int(socket.AF_INET6), (text, port, 0, scope)
        return int(socket.AF_INET), (text, port)
    try:
        numeric = socket.AI_NUMERICHOST
        family, _, _, _, sockaddr = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=numeric
        )[0]
    except OSError as error:  # an interface that is not there
        what = f"{host} is not an address of this machine's networks: {error.strerror or error}"
        raise ConfigError([Problem(where, what, "correct the address")]) from None
    return int(family), sockaddr
