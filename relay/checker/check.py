"""What a check is to do, and what came of it.

Never: does it.
"""

from __future__ import annotations

from dataclasses import dataclass

from relay.config.http_statuses import Statuses, parse_statuses
from relay.config.model import Config, Health, Pool
from relay.shared.catalogue import CHECK_OK

# Nobody in particular (the PROXY protocol, 2.1 and 2.2): a connection of the gateway's own.
_HELLOS = {"": b"", "v1": b"PROXY UNKNOWN\r\n", "v2": b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00"}


@dataclass(frozen=True, slots=True)
class CheckSettings:
    """How the backends of a pool are checked. `path` "" is the handshake alone, `alpn` what is offered, `hello` the PROXY header."""

    timeout_s: float
    path: str = ""
    statuses: Statuses = ()
    alpn: bytes = b""
    hello: bytes = b""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What came of a check. `word` is "ok", a Reason, or for the GET http_status, http_timeout, http_gone, not_http; instants are CLOCK_MONOTONIC."""

    label: str
    word: str
    detail: str
    remedy: str
    began_at: float
    ended_at: float
    place: int = 0
    address: str = ""
    tls_version: str = ""
    not_after_at: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the backend did all that was asked."""
        return self.label == CHECK_OK


def plan_of(pool: Pool, health: Health, config: Config, name: str) -> CheckSettings:
    """How a pool's backends are checked. What is offered by ALPN is what sessions may offer: servers that insist on it refuse others."""
    offered = [
        route.alpn
        for listener in config.listener
        for route in listener.route
        if route.pool == name and route.alpn
    ]
    alpn = "" if not offered else "http/1.1" if health.http_get else offered[0][0]
    return CheckSettings(
        health.timeout_s,
        health.http_get,
        parse_statuses(health.http_status),
        alpn.encode("ascii"),
        _HELLOS[pool.send_proxy],
    )
