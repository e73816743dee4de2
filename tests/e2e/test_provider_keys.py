"""A relay whose keys never leave a token: a provider of OpenSSL signs with them."""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path

import pytest

from relay.demo.ca import LeafSpec
from tests.support.client import context_of, talk
from tests.support.gateway import wait_until
from tests.support.pki import GATEWAY_NAMES
from tests.support.programs import looks_into_processes
from tests.support.tables import listener_table, pool_table, route_table
from tests.support.token import needs_token, software_token

pytestmark = needs_token

GATEWAY = LeafSpec("gateway", dns=GATEWAY_NAMES, purposes=("server",))


@pytest.fixture
def token():
    with software_token() as found:
        yield found


def body_of(pki, echo, token, files, machine=None, **pool):
    route = route_table(pki, files=files, key_passphrase_file=token.pin_file)
    if machine is None:
        return listener_table(route) + pool_table(pki, [echo.address])
    return listener_table(route) + pool_table(
        pki, [echo.address], files=machine, key_passphrase_file=token.pin_file, **pool
    )


def test_keys_of_a_token_serve_clients_and_backends(start, pki, echo, token):
    """Also after a reload, and after a worker was killed."""
    gateway_files = token.issue(pki.authority, GATEWAY)
    machine = token.issue(pki.authority, LeafSpec("machine", purposes=("client",)))
    health = {"interval_s": 0.2, "timeout_s": 5}
    body = body_of(pki, echo, token, gateway_files, machine, health=health)
    gateway = start(body, env=token.environment)
    for _ in range(20):
        assert talk(pki, gateway.port()) == b"hello"
    gateway.write(body, timeouts={"idle_s": 299})
    done = gateway.command("reload")
    assert done.returncode == 0, done
    for _ in range(20):
        assert talk(pki, gateway.port()) == b"hello"
    old = gateway.workers()
    os.kill(old[0], 9)
    wait_until("another worker serves", lambda: gateway.workers()[0] != old[0], detail=gateway.log)
    for _ in range(20):
        assert talk(pki, gateway.port()) == b"hello"
    assert "open sesame" not in gateway.log()


def test_a_certificate_of_a_tokens_key_is_renewed_without_a_reload(start, pki, echo, token):
    files = token.issue(pki.authority, GATEWAY)
    body = body_of(pki, echo, token, files)
    gateway = start(body, env=token.environment, relay={"watch_s": 0.2})
    assert talk(pki, gateway.port()) == b"hello"
    new = token.issue(pki.authority, GATEWAY)
    new.key.rename(files.key)
    new.certificate.rename(files.certificate)
    renewed = "renewed in place"
    wait_until("the new ones are in use", lambda: renewed in gateway.log(), detail=gateway.log)
    for _ in range(10):
        assert talk(pki, gateway.port()) == b"hello"
    assert gateway.endpoints["generation"] == 1
    os.kill(gateway.workers()[0], 9)
    wait_until("there is a worker", lambda: gateway.log().count("worker 0 started") == 2)
    for _ in range(10):
        assert talk(pki, gateway.port()) == b"hello"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_every_worker_resumes_the_sessions_of_a_tokens_key(start, pki, echo, token, version):
    """The ticket owner has no key; each worker has a material of its own."""
    body = body_of(pki, echo, token, token.issue(pki.authority, GATEWAY))
    gateway = start(body, env=token.environment)
    context = context_of(pki)
    context.minimum_version = context.maximum_version = version

    def visit(session):
        raw = socket.create_connection(("127.0.0.1", gateway.port()), 20)
        with context.wrap_socket(raw, server_hostname="app.example.com", session=session) as tls:
            tls.sendall(b"hello")
            assert tls.recv(5) == b"hello"
            return tls.session, tls.session_reused

    session, _ = visit(None)
    for _ in range(20):
        session, reused = visit(session)
        assert reused


@looks_into_processes
def test_the_admin_process_gets_no_way_to_the_token(start, pki, echo, token):
    body = body_of(pki, echo, token, token.issue(pki.authority, GATEWAY))
    gateway = start(body, env=token.environment, admin={})
    assert talk(pki, gateway.port()) == b"hello"
    admin = gateway.child("relay.admin.main")
    assert "OPENSSL_CONF" not in admin.environ()
    opened = [str(link.readlink()) for link in Path(f"/proc/{admin.pid}/fd").iterdir()]
    assert not [path for path in opened if "relay-token-" in path]
