"""The catalogue of metrics: name, type, help, labels, and the source of the value.

The values of most metrics are cells of the scoreboard; see `shared.entities`. A metric
with `source = "admin"` is computed by the admin process.

Never: holds a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from relay.shared.label_values import CANARY_RESULTS, CRL_FETCH_RESULTS, LOOK_UP_RESULTS

MetricType = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. `scale` converts a cell's integer to the metric's unit."""

    name: str
    kind: MetricType
    help: str
    labels: tuple[str, ...] = ()
    scale: float = 1
    source: Literal["scoreboard", "admin"] = "scoreboard"


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "relay_connections_total",
            "counter",
            "Client connections accepted, by their route; none if refused before routing.",
            ("listener", "route"),
        ),
        Family(
            "relay_probes_total",
            "counter",
            "Client connections that only asked whether the port is open: no byte came, or LOCAL.",
            ("listener",),
        ),
        Family("relay_connections_active", "gauge", "Client connections open now."),
        Family(
            "relay_connections_limit",
            "gauge",
            "Client connections that the workers can have; more clients wait in the kernel.",
            source="admin",
        ),
        Family(
            "relay_sessions_closed_total",
            "counter",
            "Sessions ended, by route and reason.",
            ("listener", "route", "reason"),
        ),
        Family(
            "relay_session_seconds",
            "histogram",
            "How long an admitted client, and a backend's connection in use, was connected.",
            ("side",),
            1e-6,
        ),
        Family(
            "relay_sessions_unjudged_total",
            "counter",
            "Sessions closed because it could not be told whether they are still trusted.",
        ),
        Family(
            "relay_handshakes_total",
            "counter",
            "TLS handshakes ended, by side and result: ok, resumed, or the reason of the failure.",
            ("listener", "route", "side", "result"),
        ),
        Family(
            "relay_handshake_seconds",
            "histogram",
            "Wall time of completed TLS handshakes.",
            ("side",),
            1e-6,
        ),
        Family(
            "relay_bytes_total",
            "counter",
            "Plaintext bytes relayed.",
            ("pool", "backend", "direction"),
        ),
        Family(
            "relay_backend_connections_active",
            "gauge",
            "Connections to the backend open now.",
            ("pool", "backend"),
        ),
        Family(
            "relay_backend_selected_total",
            "counter",
            "Times the backend was chosen, and why.",
            ("pool", "backend", "why"),
        ),
        Family(
            "relay_route_disabled",
            "gauge",
            "1 while the route or its pool cannot work and its clients are refused, otherwise 0.",
            ("listener", "route"),
            source="admin",
        ),
        Family(
            "relay_backend_up",
            "gauge",
            "1 while the backend is used; 0 for retry_s after a failure, while its health checks"
            " fail, and while it or its pool is disabled.",
            ("pool", "backend"),
            source="admin",
        ),
        Family(
            "relay_health_checks_total",
            "counter",
            "Health checks ended, by result: ok, connect_failed, handshake_failed, http_failed.",
            ("pool", "backend", "result"),
        ),
        Family(
            "relay_backend_certificate_not_after_timestamp_seconds",
            "gauge",
            "When the certificate that the last health check saw expires, Unix time.",
            ("pool", "backend"),
            source="admin",
        ),
        Family(
            "relay_certificate_not_after_timestamp_seconds",
            "gauge",
            "When a configured certificate expires, Unix time.",
            ("file", "subject"),
            source="admin",
        ),
        Family(
            "relay_ocsp_response_next_update_timestamp_seconds",
            "gauge",
            "Until when the OCSP response of a route may be stapled, Unix time; 0: it is not.",
            ("listener", "route"),
            source="admin",
        ),
        Family(
            "relay_crl_next_update_timestamp_seconds",
            "gauge",
            "When the next revocation list of this CA is due and this one expires, Unix time.",
            ("issuer", "source"),
            source="admin",
        ),
        Family(
            "relay_crl_entries",
            "gauge",
            "Revoked certificates on the revocation list.",
            ("issuer", "source"),
            source="admin",
        ),
        Family(
            "relay_crl_in_grace",
            "gauge",
            "1 while the revocation list has expired and still counts, otherwise 0.",
            ("issuer", "source"),
            source="admin",
        ),
        Family(
            "relay_name_lookups_total",
            "counter",
            f"Look-ups of backends' names ended, by result: {', '.join(LOOK_UP_RESULTS)}.",
            ("result",),
        ),
        Family(
            "relay_name_addresses",
            "gauge",
            "Addresses that a name in a backend's address has now, as looked up; 0 if none.",
            ("name",),
        ),
        Family(
            "relay_name_lookup_failing",
            "gauge",
            "1 while the last look-up of a name has failed and an earlier answer is used.",
            ("name",),
        ),
        Family(
            "relay_backend_endpoint_info",
            "gauge",
            "1 for each address of a backend with srv:NAME, with priority and weight.",
            ("pool", "backend", "endpoint", "priority", "weight"),
        ),
        Family(
            "relay_crl_fetch_total",
            "counter",
            f"Fetches of revocation lists ended, by result: {', '.join(CRL_FETCH_RESULTS)}.",
            ("result",),
        ),
        Family(
            "relay_crl_last_success_timestamp_seconds",
            "gauge",
            "When the server of a revocation list last had it or confirmed it, Unix time; 0 if"
            " never.",
            ("url",),
            source="admin",
        ),
        Family("relay_ready", "gauge", "1 while /readyz says ok, otherwise 0.", source="admin"),
        Family(
            "relay_workers",
            "gauge",
            "Workers of all generations, by phase: starting, serving, draining.",
            ("phase",),
            source="admin",
        ),
        Family("relay_slots", "gauge", "Workers that are to serve.", source="admin"),
        Family(
            "relay_worker_restarts_total",
            "counter",
            "Workers that ended unexpectedly and were replaced.",
        ),
        Family(
            "relay_worker_cpu_seconds_total",
            "counter",
            "CPU time of the slot's workers, user and system.",
            ("slot",),
            source="admin",
        ),
        Family(
            "relay_worker_resident_bytes",
            "gauge",
            "Resident memory of the slot's worker, shared pages included.",
            ("slot",),
            source="admin",
        ),
        Family(
            "relay_access_log_dropped_total",
            "counter",
            "Access-log lines dropped because the log's destination did not accept them.",
        ),
        Family(
            "relay_messages_dropped_total",
            "counter",
            "Log messages of the relay dropped because stderr did not accept them.",
        ),
        Family(
            "relay_build_info",
            "gauge",
            "Always 1; the labels are the versions of the relay and of OpenSSL.",
            ("version", "openssl"),
            source="admin",
        ),
        Family(
            "relay_config_generation",
            "gauge",
            "Generation in use: 1 at start, one more after a reload of settings or an upgrade.",
            source="admin",
        ),
        Family(
            "relay_config_last_reload_successful",
            "gauge",
            "1 if the last reload took all settings and files, otherwise 0.",
            source="admin",
        ),
        Family(
            "relay_config_last_reload_timestamp_seconds",
            "gauge",
            "When a reload last succeeded, or the relay started, Unix time.",
            source="admin",
        ),
        Family(
            "relay_canaries_total",
            "counter",
            f"Canaries that have served, by result: {', '.join(CANARY_RESULTS)}.",
            ("result",),
        ),
        Family(
            "relay_files_pending",
            "gauge",
            "1 while the file differs from what is in use and cannot be used, otherwise 0.",
            ("file",),
            source="admin",
        ),
        Family(
            "relay_renewals_total",
            "counter",
            "Sets of files that had changed, by result: renewed, refused, failed.",
            ("result",),
        ),
    )
}
