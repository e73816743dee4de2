"""What a session needs of its [[listener]].

Never: accepts (that is `relay.worker.listener`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from relay.core.address_set import AddressSet
from relay.core.proxy_header import Endpoint
from relay.core.routes import RouteTable
from relay.core.sticky import CLIENT_PREFIXES, Prefixes
from relay.tls.generation import AnyRoute
from relay.worker.client_rate import ClientRate
from relay.worker.patience import Patience
from relay.worker.probes import Probes


class Listener(NamedTuple):
    """The [[listener]] that a client connected to."""

    name: str
    routes: RouteTable[AnyRoute]
    patience: Mapping[str, Patience] = {}  # by pool
    proxies: AddressSet | None = None  # the peers that must send a PROXY header
    max_session_s: float = 0  # 0: no limit
    starttls: bool = False  # a route of it has starttls
    rate: ClientRate | None = None
    probes: Probes | None = None
    prefixes: Prefixes = CLIENT_PREFIXES  # how many bits of an address are one client
    only_address: Endpoint | None = None  # all its clients connect to it
