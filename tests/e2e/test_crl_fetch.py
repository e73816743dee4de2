"""Revocation lists that a running relay fetches by HTTP."""

from __future__ import annotations

import shutil

import pytest

from relay.checker.crl_cache import cached_list
from tests.support.crl_server import CrlServer
from tests.support.crls import make_crl
from tests.support.gateway import wait_until
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
    assert "relay_crl_fetch_total{result=timeout}" not in samples
    at = samples[f"relay_crl_last_success_timestamp_seconds{{url={url}}}"]
    assert at == pytest.approx(cached_list(gateway.state_dir, url).stat().st_mtime, abs=2)
    assert f"relay_crl_last_success_timestamp_seconds{{url={missing}}}" not in samples
    assert gateway.log().count(missing) == 1


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
    assert server.answers == [200, 200, 304]
