"""A relay whose clients are looked up in revocation lists from files."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from relay.demo.ca import LeafSpec
from tests.support.backend import name_itself
from tests.support.client import context_of, talk
from tests.support.crl_server import CrlServer
from tests.support.crls import large_crl, make_crl, to_pem
from tests.support.gateway import Gateway, wait_until
from tests.support.pki import BACKEND_NAME
from tests.support.programs import looks_into_processes
from tests.support.tables import listener_table, pool_table, route_table

LARGE = 200_000


@pytest.fixture
def file(tmp_path):
    return tmp_path / "ca.crl"


@pytest.fixture
def body(pki, echo, file):
    return listener_table(route_table(pki, client_crl=[file])) + pool_table(pki, [echo.address])


def serves(pki, gateway, files):
    """Whether this client gets an answer."""
    try:
        return talk(pki, gateway.port(), context=context_of(pki, files)) == b"hello"
    except (ssl.SSLError, ConnectionError):
        return False


def renew(gateway, file, data):
    file.write_bytes(data)
    return gateway.command("reload")


def test_a_revoked_client_is_refused_with_the_list(start, pki, body, file):
    revoked = pki.client_spiffe
    file.write_bytes(to_pem(make_crl(pki.authority, [revoked.issued.certificate], number=17)))
    gateway = start(body)
    assert serves(pki, gateway, pki.client)
    assert not serves(pki, gateway, revoked)
    [line] = gateway.wait_for_access(reason="revoked")
    words = f'revoked 2026-11-26, CRL 17 of "CN=Test CA" from {file}, next update '
    assert words in line["detail"]


def test_a_newer_list_takes_effect_with_a_reload(start, pki, body, file):
    file.write_bytes(make_crl(pki.authority, number=1))
    gateway = start(body)
    assert serves(pki, gateway, pki.client)
    newer = make_crl(pki.authority, [pki.client.issued.certificate], number=2)
    assert renew(gateway, file, newer).returncode == 0
    assert not serves(pki, gateway, pki.client)
    assert serves(pki, gateway, pki.client_spiffe)


@pytest.mark.parametrize("kind", ["older", "foreign", "forged", "page", "empty", "missing"])
def test_a_bad_list_leaves_the_good_one_in_use(start, pki, body, file, kind):
    revoked = pki.client.issued.certificate
    file.write_bytes(make_crl(pki.authority, [revoked], number=5))
    gateway = start(body)
    bad = {
        "older": make_crl(pki.authority, number=4),
        "foreign": make_crl(pki.foreign_authority, number=9),
        "forged": make_crl(pki.authority, number=9, signer=pki.foreign_authority.key),
        "page": b"<!DOCTYPE html>",
        "empty": b"",
        "missing": b"",
    }[kind]
    file.write_bytes(bad)
    if kind == "missing":
        file.unlink()
    done = gateway.command("reload")
    assert done.returncode != 0
    assert "ca.crl" in done.stderr
    assert not serves(pki, gateway, pki.client)
    assert serves(pki, gateway, pki.client_spiffe)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda pki: make_crl(pki.foreign_authority), 'the CA "CN=Test CA" has no list'),
        (lambda _: b"<html>", "it looks like an HTML page"),
        (lambda pki: make_crl(pki.authority, scope={"indirect_crl": True}), "indirect list"),
    ],
    ids=["foreign", "page", "indirect"],
)
def test_a_start_with_a_bad_list_is_refused(pki, body, file, make, words):
    file.write_bytes(make(pki))
    gateway = Gateway(body).launch()
    try:
        assert gateway.wait() == 78
        said, checked = gateway.log(), gateway.command("check")
    finally:
        gateway.close()
    assert words in said
    assert checked.returncode == 78
    assert words in checked.stdout + checked.stderr


def test_relay_check_shows_each_list(pki, body, file):
    file.write_bytes(make_crl(pki.authority, [1, 2, 3], number=17))
    gateway = Gateway(body)
    try:
        checked = gateway.command("check")
    finally:
        gateway.close()
    assert checked.returncode == 0
    assert re.search(r"CRL 17 of .*valid until .*revoked: 3", checked.stdout)


def test_operators_see_which_lists_are_in_use(start, pki, echo, file, scrape):
    table = {"files": [file], "expired": "grace", "grace_s": 86_400 * 3}
    body = listener_table(route_table(pki, crl=table)) + pool_table(pki, [echo.address])
    file.write_bytes(make_crl(pki.authority, [1, 2], number=17, age=timedelta(days=8)))
    gateway = start(body)
    assert serves(pki, gateway, pki.client), "the grace lasts for 3 days"
    gateway.wait_for_log("CRL 17 of")
    samples = scrape(gateway)
    labels = f"{{issuer=CN=Test CA,source={file}}}"
    assert samples[f"relay_crl_entries{labels}"] == 2
    assert samples[f"relay_crl_in_grace{labels}"] == 1
    ends_at = samples[f"relay_crl_next_update_timestamp_seconds{labels}"]
    assert ends_at == pytest.approx(time.time() - 86_400, abs=60)
    shown = gateway.command("status").stdout
    assert "revocation lists: 1, revoked certificates: 2\n" in shown
    assert f'CRL 17 of "CN=Test CA" from {file} expired on ' in shown
    assert "it counts until" in shown


def test_an_expired_list_refuses_its_clients_but_no_start(start, pki, echo, file):
    bad = route_table(pki, sni=["other.example.com"])
    good = route_table(pki, client_crl=[file])
    file.write_bytes(make_crl(pki.authority, age=timedelta(days=8)))
    gateway = start(listener_table(bad, good) + pool_table(pki, [echo.address]))
    assert not serves(pki, gateway, pki.client)
    gateway.wait_for_access(reason="crl_expired")
    gateway.wait_for_log("what it covers is refused")
    newer = make_crl(pki.authority, number=2)
    assert renew(gateway, file, newer).returncode == 0
    assert serves(pki, gateway, pki.client)


def test_a_revoked_backend_goes_down_and_comes_back(start, pki, make_backend, file):
    spec = LeafSpec("backend", dns=(BACKEND_NAME,), purposes=("server",))
    own = pki.write(pki.authority.issue(spec))
    backends = make_backend(name_itself("one"), files=own), make_backend(name_itself("two"))
    file.write_bytes(make_crl(pki.authority, number=1))
    pool = pool_table(
        pki,
        [each.address for each in backends],
        backend_crl=[file],
        health={"interval_s": 0.2, "rise": 1, "fall": 1},
    )
    gateway = start(listener_table(route_table(pki)) + pool)
    gateway.wait_for_log("pool main: backend w1 is up")
    gateway.wait_for_log("pool main: backend w2 is up")
    revoked = [own.issued.certificate]
    assert renew(gateway, file, make_crl(pki.authority, revoked, number=2)).returncode == 0
    log = gateway.wait_for_log("pool main: backend w1 is down")
    [line] = [json.loads(each)["message"] for each in log.splitlines() if "w1 is down" in each]
    assert "backend_revoked" in line
    assert f'revoked 2026-11-26, CRL 2 of "CN=Test CA" from {file}, next update ' in line
    assert {talk(pki, gateway.port()) for _ in range(4)} == {b"two\n"}
    assert renew(gateway, file, make_crl(pki.authority, number=3)).returncode == 0
    answers = set()
    wait_until(
        "both backends are used",
        lambda: answers.add(talk(pki, gateway.port())) or answers == {b"one\n", b"two\n"},
        detail=gateway.log,
    )


def revoked_bytes(pid):
    """The resident memory of a process's sets of revoked certificates, and its part."""
    mapped = part = 0
    name = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        key, *values = line.split()
        if not key.endswith(":"):
            name = " ".join(values[4:])
        elif "memfd:revoked" in name and key == "Rss:":
            mapped += 1024 * int(values[0])
        elif "memfd:revoked" in name and key == "Pss:":
            part += 1024 * int(values[0])
    return mapped, part


@looks_into_processes
def test_all_workers_share_the_memory_of_a_large_list(start, pki, body, file):
    revoked = [pki.client.issued.certificate]
    file.write_bytes(large_crl(pki.authority, LARGE, *revoked, number=1))
    gateway = start(body, relay={"workers": 3})
    for _ in range(6):
        assert not serves(pki, gateway, pki.client)
        assert serves(pki, gateway, pki.client_spiffe)
    parts = [revoked_bytes(pid) for pid in (gateway.pid, *gateway.workers().values())]
    size = 12 * (LARGE + 1)
    assert max(mapped for mapped, _ in parts) <= size + 65_536
    # The parts of all processes together are one copy.
    assert sum(part for _, part in parts) <= size + 65_536
    for pid in gateway.workers().values():
        assert "memfd:revoked" in Path(f"/proc/{pid}/maps").read_text()


def open_session(pki, gateway, stack, files):
    """A session of this client that stays open."""
    raw = socket.create_connection(("127.0.0.1", gateway.port()), 20)
    context = context_of(pki, files)
    tls = stack.enter_context(context.wrap_socket(raw, server_hostname="app.example.com"))
    tls.sendall(b"hello")
    assert tls.recv(5) == b"hello"
    return tls


WATCHED = {"watch_s": 0.2}


def test_a_list_on_disk_is_in_use_within_seconds(start, pki, body, file, stack):
    file.write_bytes(make_crl(pki.authority, number=1))
    gateway = start(body, relay=WATCHED)
    theirs = open_session(pki, gateway, stack, pki.client)
    other = open_session(pki, gateway, stack, pki.client_spiffe)
    new = file.with_suffix(".new")
    new.write_bytes(make_crl(pki.authority, [pki.client.issued.certificate], number=2))
    new.rename(file)
    assert theirs.recv(1) == b""
    gateway.wait_for_access(reason="revoked_during_session")
    assert not serves(pki, gateway, pki.client)
    other.sendall(b"hello")
    assert other.recv(5) == b"hello"
    assert gateway.endpoints["generation"] == 1
    assert f"renewed in place: {file}; generation 1 goes on" in gateway.log()


def test_a_bad_list_on_disk_is_pending_until_a_good_one_comes(start, pki, body, file, scrape):
    file.write_bytes(make_crl(pki.authority, number=5))
    gateway = start(body, relay=WATCHED)
    file.write_bytes(make_crl(pki.authority, number=4))
    gateway.wait_for_log("the list in use has the number 5")
    shown = gateway.command("status").stdout
    assert str(file) in shown
    assert scrape(gateway)[f"relay_files_pending{{file={file}}}"] == 1
    assert serves(pki, gateway, pki.client)
    file.write_bytes(make_crl(pki.authority, [pki.client.issued.certificate], number=6))
    gateway.wait_for_log("renewed in place")
    assert not serves(pki, gateway, pki.client)
    wait_until(
        "no file is pending", lambda: scrape(gateway)[f"relay_files_pending{{file={file}}}"] == 0
    )


@pytest.mark.parametrize("bad", [b"<html>503</html>", None], ids=["page", "missing"])
def test_a_bad_list_holds_up_no_revocation_of_another_ca(start, pki, echo, tmp_path, bad):
    """Of the bad one, what is in use stays in use."""
    ca, ours, theirs = tmp_path / "ca.pem", tmp_path / "ours.crl", tmp_path / "theirs.crl"
    ca.write_bytes(pki.ca.read_bytes() + pki.foreign_ca.read_bytes())
    foreign = pki.client_foreign.issued.certificate
    ours.write_bytes(make_crl(pki.authority))
    theirs.write_bytes(make_crl(pki.foreign_authority, [foreign]))
    route = route_table(pki, client_ca=ca, client_crl=[ours, theirs])
    gateway = start(listener_table(route) + pool_table(pki, [echo.address]), relay=WATCHED)
    assert serves(pki, gateway, pki.client)
    if bad is None:
        theirs.unlink()
    else:
        theirs.write_bytes(bad)
    gateway.wait_for_log("what is in use stays in use")
    shown = gateway.command("status").stdout
    assert f"{theirs} is not in use since" in shown
    assert f"{ours} is not in use since" not in shown
    ours.write_bytes(make_crl(pki.authority, [pki.client.issued.certificate], number=2))
    gateway.wait_for_log("renewed in place: the good lists of")
    assert not serves(pki, gateway, pki.client)
    assert not serves(pki, gateway, pki.client_foreign)
    assert serves(pki, gateway, pki.client_spiffe)
    assert str(theirs) in gateway.command("status").stdout
    said = gateway.command("reload")
    assert said.returncode == 78
    assert "renewed in place" not in said.stderr, "nothing is newer"
    theirs.write_bytes(make_crl(pki.foreign_authority, number=2))
    wait_until("the good list counts", lambda: serves(pki, gateway, pki.client_foreign))
    assert not serves(pki, gateway, pki.client)


def test_a_bad_ca_file_is_not_said_to_be_renewed_with_its_lists(start, pki, echo, file, tmp_path):
    ca = tmp_path / "ca.pem"
    ca.write_bytes(pki.ca.read_bytes())
    file.write_bytes(make_crl(pki.authority))
    route = route_table(pki, client_ca=ca, client_crl=[file])
    gateway = start(listener_table(route) + pool_table(pki, [echo.address]), relay=WATCHED)
    ca.write_bytes(b"")
    gateway.wait_for_log(f"{ca}: what is in use stays in use")
    file.write_bytes(make_crl(pki.authority, [pki.client.issued.certificate], number=2))
    gateway.wait_for_log(f"renewed in place: {file}; generation 1 goes on")
    assert f"renewed in place: {ca}" not in gateway.log()
    assert not serves(pki, gateway, pki.client)
    assert serves(pki, gateway, pki.client_spiffe)


def test_a_ca_and_its_list_are_renewed_together(start, pki, echo, tmp_path):
    ca, file = tmp_path / "ca.pem", tmp_path / "ca.crl"
    ca.write_bytes(pki.ca.read_bytes())
    file.write_bytes(make_crl(pki.authority))
    route = route_table(pki, client_ca=ca, client_crl=[file])
    gateway = start(listener_table(route) + pool_table(pki, [echo.address]), relay=WATCHED)
    assert not serves(pki, gateway, pki.client_foreign)
    ca.write_bytes(pki.ca.read_bytes() + pki.foreign_ca.read_bytes())
    gateway.wait_for_log('the CA \\"CN=Foreign CA\\" has no list')

    def lacks_a_list():
        assert not serves(pki, gateway, pki.client_foreign)
        return "crl_missing" in {line["reason"] for line in gateway.access()}

    wait_until("the workers have the new CA", lacks_a_list)
    both = to_pem(make_crl(pki.authority, number=2), make_crl(pki.foreign_authority))
    file.write_bytes(both)
    wait_until("the new CA has a list", lambda: serves(pki, gateway, pki.client_foreign))
    assert serves(pki, gateway, pki.client)


def test_sessions_of_an_older_generation_see_a_new_list(start, pki, body, file, stack):
    file.write_bytes(make_crl(pki.authority, number=1))
    gateway = start(body, relay=WATCHED)
    theirs = open_session(pki, gateway, stack, pki.client)
    gateway.write(body, timeouts={"idle_s": 299})
    assert gateway.command("reload").returncode == 0
    assert gateway.endpoints["generation"] == 2
    theirs.sendall(b"hello")
    assert theirs.recv(5) == b"hello"
    file.write_bytes(make_crl(pki.authority, [pki.client.issued.certificate], number=2))
    assert theirs.recv(1) == b""
    gateway.wait_for_access(reason="revoked_during_session")


def test_a_worker_that_is_replaced_has_the_renewed_list(start, pki, body, file):
    file.write_bytes(make_crl(pki.authority, number=1))
    gateway = start(body, relay=WATCHED)
    revoked = [pki.client.issued.certificate]
    assert renew(gateway, file, make_crl(pki.authority, revoked, number=2)).returncode == 0
    before = gateway.workers()
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    gateway.wait_for_workers(
        lambda now: now.keys() == before.keys() and not (set(now.values()) & set(before.values()))
    )
    for _ in range(4):
        assert not serves(pki, gateway, pki.client)
        assert serves(pki, gateway, pki.client_spiffe)


def test_fetched_lists_are_noticed_without_a_watch(start, pki, echo):
    with CrlServer() as server:
        url = server.put(make_crl(pki.authority))
        body = listener_table(route_table(pki, crl={"urls": [url]})) + pool_table(
            pki, [echo.address]
        )
        gateway = start(body, relay={"watch_s": 0})
        wait_until("the fetched list is in use", lambda: serves(pki, gateway, pki.client))
    assert gateway.endpoints["generation"] == 1


@pytest.mark.serial
def test_no_handshake_waits_while_a_large_list_is_loaded(start, pki, body, file):
    revoked = [pki.client_spiffe.issued.certificate]
    file.write_bytes(large_crl(pki.authority, LARGE, number=1))
    gateway = start(body)
    larger = large_crl(pki.authority, LARGE, *revoked, number=2)
    durations = []
    done = threading.Event()

    def load():
        renew(gateway, file, larger)
        done.set()

    loading = threading.Thread(target=load)
    loading.start()
    while not done.is_set():
        before = time.monotonic()
        assert serves(pki, gateway, pki.client)
        durations.append(time.monotonic() - before)
    loading.join(20)
    assert len(durations) > 20
    assert max(durations) < 1
    assert not serves(pki, gateway, pki.client_spiffe)
