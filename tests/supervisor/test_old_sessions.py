"""Sessions on workers of older generations, judged by what the new one trusts."""

from __future__ import annotations

import contextlib
import time

import pytest

from relay.demo.ca import LeafSpec
from relay.supervisor.control_client import ask
from tests.support.backend import TlsBackend
from tests.support.client import PATIENCE_S, context_of, echoes, talk
from tests.support.configs import write_body
from tests.support.crls import COMPROMISED, make_crl


@pytest.fixture
def on_both(dial):
    """Sessions of this client on both workers of the serving generation."""

    def on_both(gateway, context):
        found = [dial(gateway, context)]
        while not all(workers_with_sessions(gateway)):
            found.append(dial(gateway, context))
        return found

    return on_both


def workers_with_sessions(gateway):
    status = ask(gateway.state_dir, "status", 5)
    return [
        worker["connections"] > 0
        for worker in status["workers"]
        if worker["generation"] == status["generation"]
    ]


def wait_for_ends(clients):
    for client in clients:
        client.settimeout(PATIENCE_S)
        with contextlib.suppress(OSError):
            assert client.recv(1) == b""


def reload(gateway):
    said = gateway.command("reload")
    assert (said.returncode, said.stderr) == (0, "")
    return time.monotonic()


def test_a_denied_client_loses_its_sessions_on_old_workers(
    relay, body, pki, echo, bob, dial, on_both
):
    gateway = relay()
    mine, other = on_both(gateway, context_of(pki)), dial(gateway, bob)
    gateway.write(body, timeouts={"idle_s": 299})
    reload(gateway)
    mine += on_both(gateway, context_of(pki))  # now on two generations
    gateway.write(denying(body, "alice"))
    replied_at = reload(gateway)
    wait_for_ends(mine)
    assert time.monotonic() - replied_at < 1
    lines = gateway.wait_for_access(len(mine), reason="not_allowed_during_session")
    assert "alice" in lines[0]["detail"]
    assert echoes(other)
    assert talk(pki, gateway.port(), context=bob) == b"hello"
    assert {line["reason"] for line in gateway.access()} <= {
        "not_allowed_during_session",
        "finished",
        "truncated",
    }


def denying(body, name):
    return body.replace('pool = "echo"\n', f'pool = "echo"\ndeny = {{ cn = ["{name}"] }}\n')


def test_a_removed_ca_ends_sessions_on_old_workers(relay, body, pki, bob, dial, on_both, tmp_path):
    both = tmp_path / "both.pem"
    both.write_bytes(pki.ca.read_bytes() + pki.foreign_ca.read_bytes())
    line = f'client_ca = "{pki.ca}"'
    gateway = relay(body.replace(line, f'client_ca = "{both}"'))
    mine, other = on_both(gateway, context_of(pki, pki.client_foreign)), dial(gateway, bob)
    gateway.write(body, timeouts={"idle_s": 299})
    reload(gateway)
    wait_for_ends(mine)
    [one, *_] = gateway.wait_for_access(len(mine), reason="not_allowed_during_session")
    assert "is no longer in client_ca" in one["detail"]
    assert echoes(other)


def test_a_new_list_ends_sessions_on_old_workers(relay, body, pki, bob, dial, on_both, tmp_path):
    gateway = relay()
    mine, other = on_both(gateway, context_of(pki)), dial(gateway, bob)
    crl = tmp_path / "a.crl"
    revoked = [(pki.client.issued.certificate, COMPROMISED)]
    crl.write_bytes(make_crl(pki.authority, revoked))
    with_list = body.replace('pool = "echo"\n', f'pool = "echo"\nclient_crl = ["{crl}"]\n')
    gateway.write(with_list)
    replied_at = reload(gateway)
    wait_for_ends(mine)
    assert time.monotonic() - replied_at < 1
    [one, *_] = gateway.wait_for_access(len(mine), reason="revoked_during_session")
    assert one["detail"].startswith("revoked 2026-11-26 (key compromise)")
    assert echoes(other)


def test_a_removed_backend_ca_ends_sessions_with_old_backends(
    relay, body, pki, echo, bob, on_both, stack, tmp_path
):
    spec = LeafSpec("foreign", dns=("backend.example.com",), purposes=("server",))
    files = pki.write(pki.foreign_authority.issue(spec))
    foreign = TlsBackend(files.certificate, files.key, pki.ca)
    stack.callback(foreign.close)
    trusting = f'backend_ca = "{pki.foreign_ca}"'
    before = write_body(pki, foreign).replace(f'backend_ca = "{pki.ca}"', trusting)
    gateway = relay(before)
    mine = on_both(gateway, bob)
    gateway.write(body)
    reload(gateway)
    wait_for_ends(mine)
    [one, *_] = gateway.wait_for_access(len(mine), reason="backend_not_trusted_during_session")
    assert one["side"] == "outbound"
    assert talk(pki, gateway.port(), context=bob) == b"hello"


def test_sessions_of_a_route_that_is_gone_go_on(relay, body, pki, dial):
    first = f"""
[[listener.route]]
sni = ["app.example.com"]
pool = "echo"
certificate = "{pki.gateway.certificate}"
private_key = "{pki.gateway.key}"
client_ca = "{pki.ca}"
"""
    gateway = relay(with_route(body, first))
    mine = dial(gateway, context_of(pki))
    gateway.write(denying(body, "alice"))
    reload(gateway)
    gateway.wait_for_log("generation 2 serves")
    assert echoes(mine)
    with pytest.raises(OSError, match="alert"):
        talk(pki, gateway.port())


def with_route(body, route):
    return body.replace("\n[[listener.route]]", f"{route}\n[[listener.route]]", 1)


def test_renewed_files_end_sessions_in_all_generations(
    relay, body, pki, bob, dial, on_both, tmp_path
):
    """Without a reload: the files are watched."""
    cas, crl = tmp_path / "cas.pem", tmp_path / "a.crl"
    cas.write_bytes(pki.ca.read_bytes() + pki.foreign_ca.read_bytes())
    crl.write_bytes(make_crl(pki.authority, number=1))
    settings = f'crl = {{ files = ["{crl}"], missing = "accept" }}'
    text = body.replace(f'client_ca = "{pki.ca}"', f'client_ca = "{cas}"\n{settings}')
    gateway = relay(text, relay={"watch_s": 0.2})
    foreign, alice, other = [], [], []
    for idle_s in (298, 299):
        gateway.write(text, timeouts={"idle_s": idle_s})
        reload(gateway)
        foreign += on_both(gateway, context_of(pki, pki.client_foreign))
        alice += on_both(gateway, context_of(pki))
        other.append(dial(gateway, bob))
    generation = gateway.endpoints["generation"]
    crl.write_bytes(make_crl(pki.authority, [pki.client.issued.certificate], number=2))
    wait_for_ends(alice)
    assert all(map(echoes, [*foreign, *other]))
    cas.write_bytes(pki.ca.read_bytes())
    wait_for_ends(foreign)
    assert all(map(echoes, other))
    gateway.wait_for_access(len(alice), reason="revoked_during_session")
    gateway.wait_for_access(len(foreign), reason="not_allowed_during_session")
    assert gateway.endpoints["generation"] == generation
    assert len(gateway.access()) == len(alice) + len(foreign)
