"""Revocation lists that a running relay fetches by HTTP."""

from __future__ import annotations

import shutil
import signal
import socket
import ssl
from datetime import timedelta

import pytest

from relay.checker.crl_cache import cached_list
from relay.demo.ca import Leaf, LeafSpec
from relay.tls.revocation.crl import FUTURE_S
from tests.support.client import context_of, talk
from tests.support.crl_server import CrlServer
from tests.support.crls import make_crl, with_points
from tests.support.gateway import Gateway, wait_until
from tests.support.pki import BACKEND_NAME
from tests.support.tables import listener_table, pool_table, route_table


@pytest.fixture
def server():
    with CrlServer() as server:
        yield server


@pytest.fixture
def body(pki, echo):
    """A configuration whose clients' CA has lists at these URLs."""

    def make(*urls, **crl):
        return listener_table(route_table(pki, crl={"urls": urls, **crl})) + pool_table(
            pki, [echo.address]
        )

    return make


def kept(gateway, url):
    file = cached_list(gateway.state_dir, url)
    return file.read_bytes() if file.exists() else None


def wait_for_list(gateway, url, body):
    wait_until("the list is kept", lambda: kept(gateway, url) == body, detail=gateway.log)


def test_a_confined_checker_fetches_and_counts(start, server, body, pki, scrape):
    good = make_crl(pki.authority, number=3)
    server.put(good)
    url = server.url(host="localhost")  # the resolver works, too
    missing = server.url("/missing.crl")
    gateway = start(body(url, missing))
    wait_for_list(gateway, url, good)
    gateway.wait_for_log(f'{url}: fetched CRL 3 of \\"CN=Test CA\\" of ')
    gateway.wait_for_log(
        f"{missing}: the revocation list cannot be fetched: the server answered 404; "
        "there is no list of it yet; check the URL, for example with curl -v"
    )
    samples = scrape(gateway)
    assert samples["relay_crl_fetch_total{result=ok}"] == 1
    assert samples["relay_crl_fetch_total{result=http_failed}"] >= 1
    assert samples["relay_crl_fetch_total{result=timeout}"] == 0
    at = samples[f"relay_crl_last_success_timestamp_seconds{{url={url}}}"]
    assert at == pytest.approx(cached_list(gateway.state_dir, url).stat().st_mtime, abs=2)
    assert samples[f"relay_crl_last_success_timestamp_seconds{{url={missing}}}"] == 0
    assert gateway.log().count(missing) == 1
    status = wait_until("the failure is shown", lambda: shown(gateway, missing), detail=gateway.log)
    assert status.endswith(": the server answered 404")
    assert not shown(gateway, url)
    server.put(good, path="/missing.crl")
    ask_until(gateway, f"{missing}: fetched CRL 3 of ")
    wait_until("it is over", lambda: not shown(gateway, missing), detail=gateway.log)


def shown(gateway, url):
    """The line of `relay status` about a list that cannot be fetched; "" for none."""
    lines = gateway.command("status").stdout.splitlines()
    start = f"revocation list {url} cannot be fetched since "
    return next((line for line in lines if line.startswith(start)), "")


def test_a_deleted_directory_gets_its_lists_again(start, server, body, pki):
    good = make_crl(pki.authority)
    url = server.put(good, etag='"1"')
    gateway = start(body(url))
    wait_for_list(gateway, url, good)
    shutil.rmtree(gateway.state_dir)
    wait_for_list(gateway, url, good)
    assert server.answers == [200, 200]
    assert "the checker ended" not in gateway.log()


def test_a_reload_asks_for_changes_and_forgets_urls(start, server, body, pki):
    good = make_crl(pki.authority)
    first = server.put(good, path="/first", etag='"1"')
    second = server.put(good, path="/second", etag='"1"')
    gateway = start(body(first, second))
    for url in (first, second):
        wait_for_list(gateway, url, good)
    gateway.write(body(second))
    assert gateway.command("reload").returncode == 0
    wait_until("the other is gone", lambda: kept(gateway, first) is None, detail=gateway.log)
    wait_until("it asked again", lambda: server.count("/second") >= 2, detail=gateway.log)
    assert kept(gateway, second) == good
    # The earlier checker is asked to fetch, and the next one fetches at its start.
    assert server.answers[:2] == [200, 200]
    assert set(server.answers[2:]) == {304}


@pytest.fixture
def chain(pki, server):
    """A client below an intermediate; both certificates say where their lists are."""
    middle = pki.intermediate
    urls = {"root": server.url("/root.crl"), "middle": server.url("/middle.crl")}
    above = with_points(pki.authority, middle.certificate, urls["root"])
    leaf = middle.issue(LeafSpec("carol", purposes=("client",)))
    certificate = with_points(middle, leaf.certificate, "ldap://x/cn=y", urls["middle"])
    return urls, pki.write(Leaf(certificate, leaf.key, (above,)))


def test_lists_are_found_in_the_certificates_of_clients(start, server, echo, pki, chain):
    urls, client = chain
    crl = {"from_certificates": True, "hosts": ["127.0.0.1"]}
    pool = pool_table(pki, [echo.address])
    gateway = start(
        listener_table(route_table(pki, crl=crl)) + pool, relay={"workers": 1, "watch_s": 0.2}
    )
    context = context_of(pki, client)
    lists = {"root": make_crl(pki.authority), "middle": make_crl(pki.intermediate)}
    for name, body in lists.items():
        server.put(body, path=f"/{name}.crl")
    assert refused(gateway, pki, context)
    assert gateway.wait_for_access()[-1]["reason"] == "crl_missing"
    wait_until("both lists count", lambda: answers(gateway, pki, context), detail=gateway.log)
    for name, body in lists.items():
        assert kept(gateway, urls[name]) == body
    # The list of an intermediate that is in no file here counts.
    server.put(
        make_crl(pki.intermediate, [client.issued.certificate], number=2), path="/middle.crl"
    )
    ask_until(gateway, f"{urls['middle']}: fetched CRL 2 of ")
    wait_until("it is revoked", lambda: not answers(gateway, pki, context), detail=gateway.log)
    assert refused(gateway, pki, context)
    line = gateway.wait_for_access(reason="revoked")[-1]
    assert "CRL 2 of" in line["detail"]


def ask_until(gateway, text, how="command"):
    """Reload until the log says this. What was just fetched is not fetched again."""

    def said():
        if how == "command":
            assert gateway.command("reload").returncode == 0
        else:
            gateway.signal(signal.SIGHUP)
        return text in gateway.log()

    wait_until(f"the log says {text}", said, detail=gateway.log)


def refused(gateway, pki, context):
    return not answers(gateway, pki, context)


@pytest.mark.parametrize("health", [None, {"interval_s": 0.2}])
def test_lists_are_found_in_the_certificates_of_backends(
    start, server, pki, chain, make_backend, health
):
    urls, _ = chain
    middle, lists = pki.intermediate, {}
    above = with_points(pki.authority, middle.certificate, urls["root"])
    leaf = middle.issue(LeafSpec("b", dns=(BACKEND_NAME,), purposes=("server",)))
    shown = pki.write(
        Leaf(with_points(middle, leaf.certificate, urls["middle"]), leaf.key, (above,))
    )
    for name, issuer in (("root", pki.authority), ("middle", middle)):
        lists[name] = make_crl(issuer)
        server.put(lists[name], path=f"/{name}.crl")
    crl = {"from_certificates": True, "hosts": ["127.0.0.1"]}
    more = {} if health is None else {"health": health}
    pool = pool_table(pki, [make_backend(files=shown).address], crl=crl, retry_s=0.1, **more)
    gateway = start(listener_table(route_table(pki)) + pool, relay={"workers": 1, "watch_s": 0.2})
    if health is None:
        assert not answers(gateway, pki)
        assert gateway.wait_for_access()[-1]["reason"] == "backend_crl_missing"
    for name, body in lists.items():
        wait_for_list(gateway, urls[name], body)
    wait_until("a session passes", lambda: answers(gateway, pki), detail=gateway.log)


def answers(gateway, pki, context=None):
    try:
        return talk(pki, gateway.port(), context=context) == b"hello"
    except (ssl.SSLError, ConnectionError):
        return False


def test_a_start_without_a_network_uses_the_lists_of_the_last_one(start, server, body, pki):
    revoked = pki.write(pki.authority.client("mallory"))
    good = make_crl(pki.authority, [revoked.issued.certificate], number=3)
    url = server.put(good, etag='"3"')
    gateway = start(body(url))
    wait_for_list(gateway, url, good)
    assert gateway.stop() == 0
    server.stop()
    gateway.start()
    assert talk(pki, gateway.port()) == b"hello"
    assert refused(gateway, pki, context_of(pki, revoked))
    line = gateway.wait_for_access(reason="revoked")[-1]
    assert f'CRL 3 of "CN=Test CA" from {url}' in line["detail"]
    gateway.wait_for_log(
        f"{url}: the revocation list cannot be fetched: Connection refused; the last good one is"
        " kept: CRL 3 of "
    )
    # What the directory holds counts because of its signature only.
    assert gateway.stop() == 0
    cached_list(gateway.state_dir, url).write_bytes(make_crl(pki.foreign_authority))
    gateway.start()
    assert refused(gateway, pki, None)
    assert gateway.wait_for_access(reason="crl_missing")


def test_who_is_revoked_at_the_server_is_out_within_seconds(start, server, body, pki):
    """The first list ends soon, so the relay asks for the next one soon."""
    short = {"age": timedelta(0), "lasts": timedelta(seconds=10)}
    mallory = pki.write(pki.authority.client("mallory"))
    url = server.put(make_crl(pki.authority, number=1, **short))
    gateway = start(body(url, expired="grace"), relay={"watch_s": 0.2})
    wait_until("the first list is used", lambda: answers(gateway, pki), detail=gateway.log)
    context = context_of(pki, mallory)
    raw = socket.create_connection(gateway.address(), 20)
    with context.wrap_socket(raw, server_hostname="app.example.com") as live:
        live.sendall(b"hello")
        assert live.recv(64) == b"hello"
        next_list = make_crl(
            pki.authority, [mallory.issued.certificate], number=2, age=timedelta(0)
        )
        server.put(next_list)
        assert ended(live), "an open session ends"
    gateway.wait_for_access(reason="revoked_during_session")
    gateway.wait_for_log(f"renewed in place: {url}; generation 1 goes on", count=2)
    assert refused(gateway, pki, context)
    assert answers(gateway, pki)
    assert gateway.endpoints["generation"] == 1


def ended(live):
    live.settimeout(20)
    try:
        return live.recv(64) == b""
    except (ssl.SSLError, ConnectionError):
        return True


@pytest.mark.parametrize("how", ["command", "signal"])
def test_a_reload_makes_the_relay_ask_at_once(start, server, body, pki, how):
    mallory = pki.write(pki.authority.client("mallory"))
    url = server.put(make_crl(pki.authority, number=1))
    gateway = start(body(url), relay={"watch_s": 0.2})
    context = context_of(pki, mallory)
    wait_until("the first list is used", lambda: answers(gateway, pki), detail=gateway.log)
    server.put(make_crl(pki.authority, [mallory.issued.certificate], number=2))
    ask_until(gateway, "fetched CRL 2 of ", how)
    wait_until(
        "the new list is used", lambda: not answers(gateway, pki, context), detail=gateway.log
    )
    assert refused(gateway, pki, context)
    assert gateway.wait_for_access(reason="revoked")


def test_a_list_that_came_too_early_counts_when_its_time_has_come(start, server, body, pki):
    """As after a start with a clock that is behind: the kept list is of the future."""
    early = make_crl(pki.authority, age=timedelta(seconds=-FUTURE_S - 4))
    url = server.put(early)
    gateway = Gateway(body(url), relay={"watch_s": 0.2})
    try:
        file = cached_list(gateway.state_dir, url)
        file.parent.mkdir(parents=True)
        file.write_bytes(early)
        gateway.start()
        gateway.wait_for_log("was issued in the future", count=2)
        assert not answers(gateway, pki)
        wait_until("the list counts", lambda: answers(gateway, pki), detail=gateway.log)
    finally:
        print(gateway.log())
        gateway.close()
