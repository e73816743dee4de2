"""What is needed to build TLS contexts, besides the configuration itself.

Never: reads a file again that was already read, or resolves a host name.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from relay.config.address import parse_address
from relay.config.backend_address import host_of, is_service, lookup_name
from relay.config.key_path import pool_path
from relay.errors import ConfigError, Problem
from relay.files import Files
from relay.shared.addresses import Located
from relay.tls.certificates.validity_periods import ValidityPeriod, ValidityPeriods
from relay.tls.revocation.revoked_set import RevokedSet


@dataclass(frozen=True, slots=True)
class ContextInputs:
    """What was read, resolved and checked before the contexts are built.

    `files` holds the same bytes that were checked. `addresses` are those of the
    backends' host names; a name that does not resolve has none. `periods` are by
    configuration key, `revoked` by the name of the trust set, and `users` are the user
    ids of `peer_user` by name.
    """

    files: Files = field(default_factory=Files)
    addresses: Mapping[str, tuple[Located, ...]] = field(default_factory=dict)
    ciphers_checked: bool = False
    periods: Mapping[str, ValidityPeriod] = field(default_factory=dict)
    revoked: Mapping[str, RevokedSet] = field(default_factory=dict)
    users: Mapping[str, int] = field(default_factory=dict)


def periods_of_route(periods: Mapping[str, ValidityPeriod], where: str) -> ValidityPeriods:
    """When the certificate and the CAs of the route at this key path are valid."""
    return _together(periods, f"{where}.certificate", f"{where}.client_ca")


def periods_of_pool(periods: Mapping[str, ValidityPeriod], name: str) -> ValidityPeriods:
    """When a pool's machine certificate and CAs are valid."""
    where = pool_path(name)
    return _together(periods, f"{where}.machine_certificate", f"{where}.backend_ca")


def _together(periods: Mapping[str, ValidityPeriod], *wheres: str) -> ValidityPeriods:
    return ValidityPeriods.of(periods[where] for where in wheres if where in periods)


def endpoint_of(
    where: str, address: str, addresses: Mapping[str, tuple[Located, ...]]
) -> tuple[int, tuple[Any, ...]]:
    """Family and first socket address; 0 and () for a name without an address."""
    name = lookup_name(address)
    port = 0 if is_service(address) else parse_address(address)[1]
    if name:
        found = addresses.get(name, ())
        return found[0].endpoint(port) if found else (0, ())
    return _numeric(where, host_of(address), port)


def sources_of(where: str, source: Sequence[str]) -> dict[int, tuple[Any, ...]]:
    """The socket addresses that a pool connects from, by family."""
    return dict(_numeric(f"{where}.source", each, 0) for each in source)


def _numeric(where: str, host: str, port: int) -> tuple[int, tuple[Any, ...]]:
    try:
        numeric = socket.AI_NUMERICHOST
        family, _, _, _, sockaddr = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=numeric
        )[0]
    except OSError as error:  # for example, a scope with an unknown interface
        what = f"this machine cannot use the address {host}: {error.strerror or error}"
        raise ConfigError([Problem(where, what, "correct the address")]) from None
    return int(family), sockaddr
