"""Connections that only ask whether the port is open.

A probe connects and leaves without a byte, as TCP health checks do, or is a balancer's
own connection (LOCAL in its PROXY header) through which no byte was relayed. Every one
is counted. `log_probes` and `probes_from` say which have a line in the access log.

Never: hides a connection that reached a backend with a byte.
"""

from __future__ import annotations

from relay.config.listener_model import Listener
from relay.core.address_set import AddressSet


class Probes:
    """The probes of one listener: `cell` counts them."""

    __slots__ = ("_unlogged", "cell")

    def __init__(self, listener: Listener, cell: int) -> None:
        self.cell = cell
        self._unlogged: AddressSet | None = None
        if not listener.log_probes:
            self._unlogged = AddressSet(listener.probes_from)

    def logged(self, host: str) -> bool:
        """Whether a probe from this address has a line in the access log."""
        unlogged = self._unlogged
        return unlogged is None or (bool(unlogged) and not unlogged.holds(host))
