"""The address of a backend, which has one of several forms.

    192.0.2.1:443, [2001:db8::1]:443      fixed
    host.example.com:443                  a host name: looked up again and again
    srv:_https._tcp.app.example.com       a service: its SRV records (RFC 2782) have
                                          hosts, ports, priorities and weights
    unix:/run/app.sock                    fixed

Never: looks a name up.
"""

from __future__ import annotations

from relay.config.address import host_name_fault, is_ip, parse_address, unix_path
from relay.errors import ConfigError, Problem

SERVICE_PREFIX = "srv:"


def is_service(address: str) -> bool:
    """Whether this is the name of SRV records."""
    return address.startswith(SERVICE_PREFIX)


def lookup_name(address: str) -> str:
    """What is looked up: a host name, "srv:NAME", or "" for a fixed address."""
    if is_service(address):
        return address
    if unix_path(address):
        return ""
    host, _ = parse_address(address)
    return "" if is_ip(host) else host


def host_of(address: str) -> str:
    """The host: what the backend's certificate must carry, unless `name` says more.

    For a service it is the domain after the labels of service and protocol, never the
    target of a record: an answer of the DNS is not authenticated, so it must not decide
    whose certificate is accepted (RFC 9525, section 6.1).
    """
    if not is_service(address):
        return parse_address(address)[0]
    labels = address.removeprefix(SERVICE_PREFIX).split(".")
    while labels and labels[0].startswith("_"):
        labels.pop(0)
    return ".".join(labels)


def check_service(address: str) -> None:
    """Raises ConfigError with one Problem, whose `where` is the address."""
    name = address.removeprefix(SERVICE_PREFIX)
    example = 'write the name of the SRV records, for example "srv:_https._tcp.app.example.com"'
    if ":" in name:
        what = f'"{address}" has a port or a second colon; the SRV records have the ports'
        raise ConfigError([Problem(address, what, example)])
    if why := host_name_fault(name):
        raise ConfigError([Problem(address, f'the name in "{address}" {why}', example)])
    if not host_of(address):
        what = f'"{address}" has no domain after the labels with an underscore'
        raise ConfigError([Problem(address, what, example)])
