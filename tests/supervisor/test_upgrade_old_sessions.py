"""Sessions on workers of the version before an upgrade are judged by today's trust."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from relay.supervisor.control_client import ask
from tests.support.client import PATIENCE_S, context_of, echoes
from tests.support.crls import COMPROMISED, make_crl
from tests.support.gateway import wait_until
from tests.support.versions import Installation

UPGRADE_S = 120
pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def installed(short_path):
    return Installation(short_path / "lib")


@pytest.fixture
def start(relay, installed):
    """Start a relay that runs from the installation."""
    return lambda text=None: relay(text, env={"PYTHONPATH": str(installed.directory)})


def upgrade(gateway, *sessions):
    """Upgrade; the sessions go on meanwhile. The backend would end idle ones."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(gateway.command, "upgrade", patience_s=UPGRADE_S)
        while not wait([running], 1).done:
            assert all(map(echoes, sessions))
    answered = running.result()
    assert (answered.returncode, answered.stderr) == (0, ""), gateway.log()


def reload(gateway):
    said = gateway.command("reload", patience_s=UPGRADE_S)
    assert (said.returncode, said.stderr) == (0, "")


def wait_for_end(client):
    client.settimeout(PATIENCE_S)
    with contextlib.suppress(OSError):
        assert client.recv(1) == b""


def with_other_messages(package):
    file = package / "supervisor" / "update_messages.py"
    text = file.read_text()
    assert "MEANING = 2\n" in text
    file.write_text(text.replace("MEANING = 2\n", "MEANING = 3\n"))


def test_a_kick_reaches_sessions_from_before(start, installed, pki, bob, dial):
    gateway = start()
    mine, other = dial(gateway, context_of(pki)), dial(gateway, bob)
    for version in ("2.0.0", "3.0.0"):
        installed.install(version)
        upgrade(gateway, mine, other)
    said = gateway.command("kick", "CN=alice", patience_s=UPGRADE_S)
    assert (said.returncode, said.stderr) == (0, ""), said.stdout
    assert "1 session" in said.stdout
    wait_for_end(mine)
    assert gateway.wait_for_access(1, reason="kicked")
    assert echoes(other)


def test_a_renewed_list_ends_sessions_from_before(start, body, pki, bob, dial, tmp_path):
    """The new version renews the file; nobody asks it to."""
    crl = tmp_path / "a.crl"
    crl.write_bytes(make_crl(pki.authority, []))
    gateway = start(body.replace('pool = "echo"\n', f'pool = "echo"\nclient_crl = ["{crl}"]\n'))
    mine, other = dial(gateway, context_of(pki)), dial(gateway, bob)
    upgrade(gateway, mine, other)
    revoked = [(pki.client.issued.certificate, COMPROMISED)]
    crl.write_bytes(make_crl(pki.authority, revoked, number=2))
    wait_for_end(mine)
    assert gateway.wait_for_access(1, reason="revoked_during_session")
    assert echoes(other)


def test_a_ca_removed_in_an_upgrade_ends_its_sessions(start, body, pki, bob, dial, tmp_path):
    """The new version reads the files; the old one has not seen this."""
    both = tmp_path / "both.pem"
    both.write_bytes(pki.ca.read_bytes() + pki.foreign_ca.read_bytes())
    line = f'client_ca = "{pki.ca}"'
    gateway = start(body.replace(line, f'client_ca = "{both}"'))
    mine, other = dial(gateway, context_of(pki, pki.client_foreign)), dial(gateway, bob)
    gateway.write(body)
    upgrade(gateway, other)
    wait_for_end(mine)
    [one] = gateway.wait_for_access(1, reason="not_allowed_during_session")
    assert "is no longer in client_ca" in one["detail"]
    assert echoes(other)


def test_another_drain_time_counts_for_sessions_from_before(start, body, pki, dial):
    gateway = start()
    mine = dial(gateway, context_of(pki))
    upgrade(gateway, mine)
    assert echoes(mine)
    gateway.write(body, relay={"reload_drain_s": 1})
    reload(gateway)
    wait_for_end(mine)
    assert gateway.wait_for_access(1, reason="drain_timeout")


@pytest.mark.parametrize("change", ["kick", "reload"])
def test_workers_that_do_not_understand_end(start, installed, body, pki, dial, change):
    """They cannot be told what is trusted now, so all their sessions end."""
    gateway = start()
    mine = dial(gateway, context_of(pki))
    installed.install("2.0.0", with_other_messages)
    upgrade(gateway, mine)
    gateway.wait_for_log("do not understand this one")
    assert echoes(mine)
    if change == "kick":
        said = gateway.command("kick", "CN=alice", patience_s=UPGRADE_S)
        assert said.returncode == 0, said.stderr
    else:
        gateway.write(body.replace('pool = "echo"\n', 'pool = "echo"\ndeny = { cn = ["x"] }\n'))
        reload(gateway)
    wait_for_end(mine)
    gateway.wait_for_log("is ended with 1 sessions: it is of another version")
    wait_until("the new workers are the only ones", lambda: len(workers(gateway)) == 2)


def workers(gateway):
    return ask(gateway.state_dir, "status", PATIENCE_S)["workers"]
