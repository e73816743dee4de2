"""One look-up of a name: a host name, or a service.

Never: keeps an answer, or decides what a failure means.
Next: `relay.checker.host_lookup.look_up_host`
"""

from __future__ import annotations

from collections.abc import Iterable

from relay.checker.host_lookup import Found, look_up_host
from relay.config.backend_address import is_service


def preload(names: Iterable[str]) -> None:
    """Import what looking these names up needs.

    dnspython takes 0.3 s and 14 MB, so it is imported only for services. Call this
    while the process may still read Python's files.
    """
    if any(map(is_service, names)):
        from relay.checker import service_lookup  # noqa: F401


def look_up(name: str) -> Found:
    """What the name has now. Raises OSError."""
    if is_service(name):
        from relay.checker.service_lookup import look_up_service

        return look_up_service(name)
    return Found(look_up_host(name))
