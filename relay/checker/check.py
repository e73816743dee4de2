"""The settings of a health check, and its result.

Never: runs a check.
"""

from __future__ import annotations

from dataclasses import dataclass

from relay.config.http_statuses import Statuses, parse_statuses
from relay.config.model import Config
from relay.config.pool_model import Health, Pool
from relay.config.rules.stickiness import alpn_of
from relay.core.proxy_header_out import SendProxy
from relay.shared.label_values import CHECK_OK
from relay.tls.revocation.reports import ListReports


@dataclass(frozen=True, slots=True)
class CheckSettings:
    """How the backends of a pool are checked.

    Without a `path`, a check is a TLS handshake only. `alpn` is the protocol to offer.
    `proxy_header` is sent first, or first inside TLS. `reports` takes where the
    backend's certificate says its revocation list is.
    """

    timeout_s: float
    path: str = ""
    statuses: Statuses = ()
    alpn: bytes = b""
    proxy_header: bytes = b""
    header_inside_tls: bool = False
    reports: ListReports | None = None


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of a check.

    `label` is the metric's: one of CHECK_RESULTS. `reason` is "ok", a `Reason`, or for
    the GET http_status, http_timeout, http_gone or not_http. `endpoint` is the number
    of the endpoint that was checked last. `began_at` and `ended_at` are
    CLOCK_MONOTONIC, `not_after_at` is Unix time.
    """

    label: str
    reason: str
    detail: str
    remedy: str
    began_at: float
    ended_at: float
    endpoint: int = 0
    address: str = ""
    tls_version: str = ""
    not_after_at: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the backend passed the check."""
        return self.label == CHECK_OK


def check_settings(
    pool: Pool, health: Health, config: Config, name: str, reports: ListReports | None = None
) -> CheckSettings:
    """How the backends of the pool `name` are checked.

    A check offers the ALPN protocol that sessions may offer, because some servers
    refuse clients without it.
    """
    offered = [
        alpn_of(config, route)
        for listener in config.listener
        for route in listener.route
        if route.pool == name and alpn_of(config, route)
    ]
    send = SendProxy.of(pool)
    alpn = "" if not offered else "http/1.1" if health.http_get else offered[0][0]
    return CheckSettings(
        health.timeout_s,
        health.http_get,
        parse_statuses(health.http_status),
        alpn.encode("ascii"),
        send.own if send is not None else b"",
        send is not None and send.inside_tls,
        reports,
    )
