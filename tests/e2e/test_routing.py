"""SNI routes to certificates, client CAs and backends, on IPv4 and IPv6.

One listener has a route for each of two tenants and a default route.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from relay.demo.ca import Authority, LeafSpec
from tests.support.backend import TlsBackend, name_itself
from tests.support.gateway import Gateway, wait_until
from tests.support.pki import BACKEND_NAME, Files, write
from tests.support.tables import listener_table, pool_table, route_table

PATIENCE_S = 20
VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}


@dataclass(frozen=True)
class Tenant:
    """A customer with its own CA for clients, backends and the machine certificate."""

    name: str
    ca: Path
    gateway: Files
    client: Files
    machine: Files
    backend: TlsBackend


def make_tenant(directory: Path, name: str, *names: str) -> Tenant:
    authority = Authority.root(f"{name} CA")
    ca = authority.write(directory / f"{name}-ca.pem")
    backend = write(
        directory,
        f"{name}-backend",
        authority.issue(LeafSpec("backend", dns=(BACKEND_NAME,), purposes=("server",))),
    )
    return Tenant(
        name=name,
        ca=ca,
        gateway=write(
            directory,
            f"{name}-gateway",
            authority.issue(LeafSpec(f"gateway of {name}", dns=names, purposes=("server",))),
        ),
        client=write(
            directory,
            f"{name}-client",
            authority.issue(LeafSpec(f"client of {name}", purposes=("client",))),
        ),
        machine=write(
            directory,
            f"{name}-machine",
            authority.issue(LeafSpec(f"machine of {name}", purposes=("client",))),
        ),
        backend=TlsBackend(backend.certificate, backend.key, ca, name_itself(name)),
    )


@pytest.fixture(scope="module")
def tenants(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tenants")
    made = (
        make_tenant(directory, "exact", "a.example.com"),
        make_tenant(directory, "wildcard", "*.example.com"),
        make_tenant(directory, "default", "anything.example.net"),
    )
    yield {tenant.name: tenant for tenant in made}
    for tenant in made:
        tenant.backend.close()


@pytest.fixture(scope="module")
def gateway(pki, tenants):
    snis = {
        "exact": {"sni": ["a.example.com"]},
        "wildcard": {"sni": ["*.example.com"]},
        "default": {},
    }
    routes = [
        route_table(
            pki, tenant.name, files=tenant.gateway, client_ca=tenant.ca, **snis[tenant.name]
        )
        for tenant in tenants.values()
    ]
    pools = [
        pool_table(
            pki,
            [tenant.backend.address],
            name=tenant.name,
            files=tenant.machine,
            backend_ca=tenant.ca,
        )
        for tenant in tenants.values()
    ]
    other = listener_table(routes[2], name="other", listen=["[::1]:0"])
    with Gateway(
        listener_table(*routes, listen=["127.0.0.1:0", "[::1]:0"]) + other + "".join(pools)
    ) as running:
        yield running


def context_for(tenant, *, trusts=None, version=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations((trusts or tenant).ca)
    context.load_cert_chain(tenant.client.certificate, tenant.client.key)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


class Answer(NamedTuple):
    """What one connection told the client.

    `shown` is the common name of relay's certificate, `client` the client's address as
    the access log writes it.
    """

    backend: str
    shown: str
    session: ssl.SSLSession
    resumed: bool
    client: str


def ask(address, context, name, session=None):
    """Connect, read the backend's name, close."""
    with context.wrap_socket(
        socket.create_connection(address, PATIENCE_S), server_hostname=name, session=session
    ) as tls:
        tls.sendall(b"who are you?")
        answer = tls.recv(1000)
        if not answer:
            raise ConnectionAbortedError("closed without an answer")
        subject = dict(pair for rdn in tls.getpeercert()["subject"] for pair in rdn)["commonName"]
        host, port, *_ = tls.getsockname()
        return Answer(
            answer.decode().strip(),
            subject,
            tls.session,
            bool(tls.session_reused),
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        )


@pytest.mark.parametrize("index", [0, 1], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize(
    ("tenant", "name"),
    [
        ("exact", "a.example.com"),
        ("exact", "A.Example.COM"),
        ("wildcard", "b.example.com"),
        ("default", "anything.example.net"),
    ],
)
def test_a_name_selects_certificate_client_ca_and_backends(gateway, tenants, tenant, name, index):
    chosen = tenants[tenant]
    before = len(chosen.backend.peers)
    answer = ask(gateway.address(index=index), context_for(chosen), name)
    assert (answer.backend, answer.shown) == (tenant, f"gateway of {tenant}")
    assert answer.client.startswith("[::1]:" if index else "127.0.0.1:")
    peers = wait_until("the backend has seen the relay", lambda: chosen.backend.peers[before:])
    assert (
        dict(pair for rdn in peers[0]["subject"] for pair in rdn)["commonName"]
        == f"machine of {tenant}"
    )
    (line,) = gateway.wait_for_access(client=answer.client)
    expected = {"exact": "a.example.com", "wildcard": "*.example.com", "default": "default"}[tenant]
    assert (line["pool"], line["sni"], line["route"]) == (tenant, name.lower(), expected)


def test_a_client_without_sni_gets_the_default_route(gateway, tenants):
    context = context_for(tenants["default"])
    context.check_hostname = False
    assert ask(gateway.address(), context, None).backend == "default"


def test_the_second_listener_has_only_its_own_route(gateway, tenants):
    context = context_for(tenants["default"])
    context.check_hostname = False  # a.example.com, but with the certificate of the only route
    answer = ask(gateway.address("other"), context, "a.example.com")
    assert (answer.backend, answer.shown) == ("default", "gateway of default")
    assert gateway.wait_for_access(1, listener="other")[-1]["route"] == "default"


def test_a_client_of_one_tenant_is_refused_at_another(gateway, tenants):
    intruder = context_for(tenants["exact"], trusts=tenants["wildcard"])
    with pytest.raises(OSError, match=r"(?i)unknown ca|closed without an answer"):
        ask(gateway.address(), intruder, "b.example.com")
    line = gateway.wait_for_access(1, reason="unknown_ca", sni="b.example.com")[-1]
    assert line["subject"] == "CN=client of exact"
    assert line["issuer"] == "CN=exact CA"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_session_of_one_tenant_resumes_nowhere_else(gateway, tenants, version):
    context = context_for(tenants["exact"], version=VERSIONS[version])
    context.load_verify_locations(tenants["wildcard"].ca)
    context.check_hostname = False
    session = ask(gateway.address(), context, "a.example.com").session
    assert ask(gateway.address(), context, "a.example.com", session).resumed
    logged = sum(line["sni"] == "b.example.com" for line in gateway.access())
    for _ in range(4):
        with pytest.raises(OSError, match=r"(?i)unknown ca|alert|closed without an answer"):
            ask(gateway.address(), context, "b.example.com", session)
    lines = gateway.wait_for_access(logged + 4, sni="b.example.com")[logged:]
    assert [
        (line["reason"], line["route"], line["tls_version"], line["resumed"]) for line in lines
    ] == [("unknown_ca", "*.example.com", version, False)] * 4
    assert {line["subject"] for line in lines} == {"CN=client of exact"}, (
        "not its CA, which this client sends along"
    )


@pytest.mark.parametrize("sticky", ["source", "none"])
def test_sticky_clients_keep_their_backend_on_every_worker(start, pki, make_backend, sticky):
    backends = [make_backend(name_itself(f"w{number}")) for number in (1, 2, 3)]
    gateway = start(
        listener_table(route_table(pki))
        + pool_table(pki, [each.address for each in backends], sticky=sticky),
        relay={"workers": 2},
    )
    context = ssl.create_default_context(cafile=str(pki.ca))
    context.load_cert_chain(pki.client.certificate, pki.client.key)
    seen: dict[str, set[str]] = {}
    visits = 12
    for number in range(1, 9):
        source = f"127.0.0.{number}"
        for _ in range(visits):
            raw = socket.create_connection(
                gateway.address(), PATIENCE_S, source_address=(source, 0)
            )
            with context.wrap_socket(raw, server_hostname="app.example.com") as tls:
                tls.sendall(b"who?")
                seen.setdefault(source, set()).add(tls.recv(100).decode().strip())
    lines = gateway.wait_for_access(8 * visits)
    workers = {
        source: {
            line["session"].split("-")[0]
            for line in lines
            if line["client"].startswith(source + ":")
        }
        for source in seen
    }
    assert all(len(of_one) == 2 for of_one in workers.values()), (
        "12 connections of each client should have met both workers"
    )
    if sticky == "source":
        assert {len(of_one) for of_one in seen.values()} == {1}
        assert {line["why"] for line in lines} == {"sticky"}
        assert len(set().union(*seen.values())) > 1
    else:
        assert {len(of_one) for of_one in seen.values()} == {3}
        assert {line["why"] for line in lines} == {"balanced"}


def test_a_sticky_client_fails_over_when_its_backend_dies(start, pki, make_backend):
    backends = {f"w{number}": make_backend(name_itself(f"w{number}")) for number in (1, 2, 3)}
    gateway = start(
        listener_table(route_table(pki))
        + pool_table(pki, [each.address for each in backends.values()], sticky="source", retry_s=60)
    )
    context = ssl.create_default_context(cafile=str(pki.ca))
    context.load_cert_chain(pki.client.certificate, pki.client.key)
    first = ask(gateway.address(), context, "app.example.com").backend
    backends[first].close()
    others = {ask(gateway.address(), context, "app.example.com").backend for _ in range(6)}
    assert len(others) == 1, "sticky also while its backend is away"
    assert first not in others
    assert gateway.wait_for_access(1, why="failover")
