"""Changes under traffic.

New certificates, new rules, more and fewer workers, and workers that die.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl

import pytest

from relay.demo.ca import LeafSpec
from tests.support.client import context_of
from tests.support.gateway import wait_until
from tests.support.peer import dial
from tests.support.pki import GATEWAY_NAMES, write
from tests.support.tables import listener_table, pool_table, route_table
from tests.support.traffic import Traffic

PATIENCE_S = 20


def serial_shown(pki, port):
    with context_of(pki).wrap_socket(
        socket.create_connection(("127.0.0.1", port), PATIENCE_S), server_hostname="app.example.com"
    ) as tls:
        return int(tls.getpeercert()["serialNumber"], 16)


@pytest.mark.parametrize("how", ["HUP", "command"])
def test_new_clients_see_a_new_certificate_and_old_sessions_go_on(start, pki, echo, tmp_path, how):
    old = write(tmp_path, "gateway", pki.gateway.issued)
    gateway = start(listener_table(route_table(pki, files=old)) + pool_table(pki, [echo.address]))
    port = gateway.port()
    assert serial_shown(pki, port) == old.issued.certificate.serial_number
    peer = dial(port, context_of(pki))
    peer.send(b"before")
    assert peer.receive(6) == b"before"
    new = write(
        tmp_path,
        "gateway",
        pki.authority.issue(LeafSpec("gateway", dns=GATEWAY_NAMES, purposes=("server",))),
    )
    if how == "HUP":
        gateway.signal(signal.SIGHUP)
        wait_until(
            "new clients see it",
            lambda: serial_shown(pki, port) == new.issued.certificate.serial_number,
            detail=gateway.log,
        )
    else:
        done = gateway.command("reload")
        assert done.returncode == 0, done
        assert f"renewed in place: {new.certificate}\n" in done.stdout
    assert gateway.endpoints["generation"] == 1
    assert (
        serial_shown(pki, port)
        == new.issued.certificate.serial_number
        != old.issued.certificate.serial_number
    )
    peer.send(b"after")
    assert peer.receive(5) == b"after"
    peer.close()
    assert gateway.wait_for_access(1, reason="finished")


def test_a_refused_reload_leaves_the_old_configuration_serving(start, pki, simple, echo):
    gateway = start(simple)
    with Traffic(pki, gateway.port(), clients=1) as traffic:
        gateway.write(
            listener_table(route_table(pki, client_ca="/no/such/ca.pem", typo=1))
            + pool_table(pki, [echo.address])
        )
        refused = gateway.command("reload")
        assert refused.returncode == 78
        assert "typo" in refused.stderr
        assert "Traceback" not in refused.stderr + gateway.log()
        assert gateway.endpoints["generation"] == 1
        traffic.wait_for_more(3)
    assert traffic.failures == []


@pytest.mark.parametrize(
    "version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLSv1.2", "TLSv1.3"]
)
def test_a_client_no_longer_allowed_cannot_resume_its_session(start, pki, echo, version):
    gateway = start(
        listener_table(route_table(pki, allow={"cn": ["alice", "bob"]}))
        + pool_table(pki, [echo.address])
    )
    context = context_of(pki)
    context.minimum_version = context.maximum_version = version

    def visit(session=None):
        with context.wrap_socket(
            socket.create_connection(gateway.address(), PATIENCE_S),
            server_hostname="app.example.com",
            session=session,
        ) as tls:
            tls.sendall(b"hello")
            assert tls.recv(100) == b"hello"
            return tls.session, tls.session_reused

    session, _ = visit()
    assert visit(session)[1]
    gateway.write(
        listener_table(route_table(pki, allow={"cn": ["bob"]})) + pool_table(pki, [echo.address])
    )
    assert gateway.command("reload").returncode == 0
    with pytest.raises(OSError, match=r"(?i)alert|eof"):
        visit(session)
    (line,) = gateway.wait_for_access(reason="not_allowed")
    assert (line["subject"], line["resumed"]) == ("CN=alice", False)
    assert "allow" in line["remedy"]


# By kind: the client, the rules that let it in, and those that no longer do.
CHANGES = {
    "deny": ("client", {}, {"deny": {"issuer": ["CN=Test CA"]}}, "deny.issuer has"),
    "allow": ("client_spiffe", {}, {"allow": {"email": ["*@example.com"]}}, "no entry of allow"),
    "consent": (
        "client_wrong_purpose",
        {"allow": {"cn": ["alice"]}, "accept_server_certificates": True},
        {"allow": {"cn": ["alice"]}},
        "it is for servers only",
    ),
}


RENAMED = {
    "order": ("https", ("b.example.com", "app.example.com"), {"deny": {"cn": ["alice"]}}),
    "listener": ("web", ("app.example.com",), {}),
}


@pytest.mark.parametrize("kind", RENAMED)
def test_a_renamed_route_still_judges_its_old_sessions(start, pki, echo, tmp_path, kind):
    listener, names, rules = RENAMED[kind]
    ca = tmp_path / "ca.pem"
    ca.write_bytes(pki.ca.read_bytes() + pki.foreign_ca.read_bytes())

    def body(name, sni, **more):
        route = route_table(pki, client_ca=ca, sni=list(sni), **more)
        return listener_table(route, name=name) + pool_table(pki, [echo.address])

    gateway = start(body("https", ("app.example.com", "b.example.com")), relay={"watch_s": 0.1})
    peer = dial(gateway.port(), context_of(pki), name="app.example.com")
    peer.send(b"hello")
    assert peer.receive(5) == b"hello"
    gateway.write(body(listener, names, **rules))
    assert gateway.command("reload").returncode == 0
    if not rules:
        ca.write_bytes(pki.foreign_ca.read_bytes())
    gateway.wait_for_access(reason="not_allowed_during_session")
    peer.sock.close()


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_of_rules_ends_the_sessions_it_excludes(start, pki, echo, kind):
    name, before, after, words = CHANGES[kind]

    def body(rules):
        return listener_table(route_table(pki, **rules)) + pool_table(pki, [echo.address])

    gateway = start(body(before))
    peer = dial(gateway.port(), context_of(pki, getattr(pki, name)))
    peer.send(b"hello")
    assert peer.receive(5) == b"hello"
    gateway.write(body(after))
    assert gateway.command("reload").returncode == 0
    (line,) = gateway.wait_for_access(reason="not_allowed_during_session")
    assert words in line["detail"]
    peer.sock.close()


def test_reloads_that_change_the_number_of_workers_lose_no_request(start, pki, simple):
    gateway = start(simple)
    kept = dial(gateway.port(), context_of(pki))
    with Traffic(pki, gateway.port()) as traffic:
        for generation, workers in ((2, 3), (3, 2), (4, 1)):
            traffic.wait_for_more(5)
            gateway.write(simple, relay={"workers": workers})
            done = gateway.command("reload")
            assert (done.returncode, gateway.endpoints["generation"]) == (0, generation), done
            assert len(gateway.workers()) == workers
            kept.send(b"kept")
            assert kept.receive(4) == b"kept"
        traffic.wait_for_more(5)
    kept.close()
    assert traffic.failures == []
    gateway.wait_for_access(sum(traffic.done) + 1)


def test_a_killed_worker_costs_no_other_session_and_no_counter(start, pki, simple, scrape):
    gateway = start(simple)
    context = context_of(pki)
    kept = []

    def one_on_each_worker():
        peer = dial(gateway.port(), context)
        peer.send(b"x")
        assert peer.receive(1) == b"x"
        kept.append(peer)
        lines = [
            line
            for line in gateway.command("status").stdout.splitlines()
            if line.startswith("worker")
        ]
        return all("connections=0" not in line for line in lines)

    wait_until("both workers have a session", one_on_each_worker)
    before = scrape(gateway)
    victim = gateway.workers()[0]
    os.kill(victim, signal.SIGKILL)
    gateway.wait_for_workers(lambda workers: len(workers) == 2 and workers[0] != victim)
    alive = 0
    for peer in kept:
        try:
            peer.send(b"y")
            alive += peer.receive_some() == b"y"
        except (OSError, EOFError):
            pass
    assert 0 < alive < len(kept)
    with Traffic(pki, gateway.port(), clients=2) as traffic:
        traffic.wait_for_more(5)
    assert traffic.failures == []
    after = scrape(gateway)
    assert after["relay_worker_restarts_total"] == 1
    counters = [
        name
        for name in before
        if name.split("{")[0].endswith(("_total", "_count", "_sum", "_bucket"))
        and "_created" not in name
    ]
    assert [name for name in counters if after[name] < before[name]] == []
    for peer in kept:
        peer.close()


def test_under_traffic_a_killed_worker_loses_only_its_own_sessions(start, pki, simple):
    gateway = start(simple)
    clients = 3
    with Traffic(pki, gateway.port(), clients) as traffic:
        for _ in range(2):
            traffic.wait_for_more(5)
            workers = gateway.workers()
            os.kill(workers[1], signal.SIGKILL)
            gateway.wait_for_workers(lambda now, before=workers: now.get(1, before[1]) != before[1])
        traffic.wait_for_more(5)
    assert len(traffic.failures) <= 2 * clients, traffic.failures
