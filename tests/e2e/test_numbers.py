"""Metrics and probes report what the traffic was."""

from __future__ import annotations

import socket
import ssl

import pytest

from tests.support.client import context_of, talk
from tests.support.gateway import wait_until
from tests.support.peer import dial
from tests.support.programs import needs, run


@pytest.fixture
def settle(scrape):
    """`settle(gateway, closed)`: the samples after `closed` sessions have closed."""

    def wait(gateway, closed):
        def settled():
            samples = scrape(gateway)
            ended = sum(
                value
                for name, value in samples.items()
                if name.startswith("relay_sessions_closed_total{")
            )
            return samples if ended == closed and samples["relay_connections_active"] == 0 else {}

        return wait_until(
            f"{closed} sessions are counted as closed",
            settled,
            detail=lambda: str(
                {k: v for k, v in scrape(gateway).items() if "closed" in k or "active" in k}
            ),
        )

    return wait


def test_metrics_equal_the_traffic(start, pki, simple, settle):
    gateway = start(simple, limits={"connections": 100})
    context, sessions, size = context_of(pki), 7, 5000
    for _ in range(sessions):
        peer = dial(gateway.port(), context)
        peer.send(b"x" * size)
        assert peer.receive(size) == b"x" * size
        peer.close()
    for certificate in (None, pki.client_foreign, pki.client_expired):
        refused = (
            context_of(pki, certificate)
            if certificate
            else ssl.create_default_context(cafile=str(pki.ca))
        )
        with pytest.raises(OSError, match=r"(?i)alert"):
            talk(pki, gateway.port(), context=refused)
    with socket.create_connection(gateway.address()) as silent:
        silent.close()
    samples = settle(gateway, sessions + 4)

    def at(name, **labels):
        key = (
            name
            + "{"
            + ",".join(f"{label}={value}" for label, value in sorted(labels.items()))
            + "}"
        )
        return samples.get(key, 0)

    assert at("relay_connections_total", listener="https", route="default") == sessions + 3
    assert at("relay_connections_total", listener="https", route="none") == 1
    route = {"listener": "https", "route": "default"}
    none = {"listener": "https", "route": "none"}
    assert at("relay_sessions_closed_total", **route, reason="finished") == sessions
    for reason in ("no_certificate", "unknown_ca", "expired"):
        assert at("relay_sessions_closed_total", **route, reason=reason) == 1
        assert at("relay_handshakes_total", **route, side="inbound", result=reason) == 1
    assert at("relay_sessions_closed_total", **none, reason="peer_gone") == 1
    assert (
        at("relay_bytes_total", pool="main", backend="w1", direction="to_backend")
        == sessions * size
    )
    assert (
        at("relay_bytes_total", pool="main", backend="w1", direction="from_backend")
        == sessions * size
    )
    assert at("relay_backend_selected_total", pool="main", backend="w1", why="balanced") == sessions
    assert at("relay_handshakes_total", **route, side="inbound", result="ok") == sessions
    outbound = {
        result: at("relay_handshakes_total", **route, side="outbound", result=result)
        for result in ("ok", "resumed")
    }
    assert sum(outbound.values()) == sessions
    assert outbound["ok"] >= 1
    assert outbound["resumed"] >= 1, "sessions to a backend are resumed"
    for side in ("inbound", "outbound"):
        assert at("relay_handshake_seconds_count", side=side) == sessions
        assert at("relay_handshake_seconds_bucket", side=side, le="+Inf") == sessions
        assert 0 < at("relay_handshake_seconds_sum", side=side) < 20 * sessions
        assert at("relay_session_seconds_count", side=side) == sessions
        assert 0 < at("relay_session_seconds_sum", side=side) < 20 * sessions
    assert at("relay_backend_connections_active", pool="main", backend="w1") == 0
    assert at("relay_backend_up", pool="main", backend="w1") == 1
    assert samples["relay_worker_restarts_total"] == 0
    assert samples["relay_access_log_dropped_total"] == 0
    assert samples["relay_config_generation"] == 1
    assert samples["relay_connections_limit"] == 100 * samples["relay_slots"]
    assert at("relay_worker_resident_bytes", slot="0") > 1_000_000
    expiry = pki.gateway.issued.certificate.not_valid_after_utc.timestamp()
    assert (
        at(
            "relay_certificate_not_after_timestamp_seconds",
            file=str(pki.gateway.certificate),
            subject="CN=gateway",
        )
        == expiry
    )


@needs("promtool")
def test_promtool_accepts_the_metrics_of_a_relay_at_work(start, pki, simple, fetch):
    gateway = start(simple)
    talk(pki, gateway.port())
    gateway.wait_for_access(1)
    _, text = fetch(f"{gateway.admin_url}/metrics")
    checked = run("promtool", "check", "metrics", said=text)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_a_draining_relay_is_healthy_but_not_ready(start, pki, simple, fetch):
    gateway = start(simple)
    url = gateway.admin_url
    peer = dial(gateway.port(), context_of(pki))
    peer.send(b"x")
    assert peer.receive(1) == b"x"
    assert fetch(f"{url}/healthz") == (200, "ok\n")
    assert fetch(f"{url}/readyz") == (200, "ok\n")
    assert gateway.command("drain").returncode == 0
    wait_until(
        "it says that it drains",
        lambda: (
            fetch(f"{url}/readyz") == (503, "the relay is draining; it takes no new connections\n")
        ),
    )
    assert fetch(f"{url}/healthz") == (200, "ok\n")
    assert fetch(f"{url}/metrics")[0] == 200
    peer.send(b"still here")
    assert peer.receive(10) == b"still here"
    peer.close()
    assert gateway.wait() == 0
