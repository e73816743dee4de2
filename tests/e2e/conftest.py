from __future__ import annotations

import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.gateway import Gateway
from tests.support.tables import listener_table, pool_table, route_table


@pytest.fixture
def echo(make_backend):
    """A backend that echoes."""
    return make_backend()


@pytest.fixture
def simple(pki, echo):
    """A configuration with a listener, a default route and the echo backend."""
    return listener_table(route_table(pki)) + pool_table(pki, [echo.address])


@pytest.fixture
def start(request):
    """`start(body, relay={…})`: a relay that is stopped after the test.

    It has an admin process if the test also uses `fetch` or `scrape`.
    """
    gateways = []
    wanted = {"admin": {}} if "fetch" in request.fixturenames else {}

    def begin(body, **sections):
        gateway = Gateway(body, **{**wanted, **sections})
        gateways.append(gateway)
        return gateway.start()

    yield begin
    for gateway in gateways:
        print(gateway.log())
        gateway.close()


@pytest.fixture
def fetch():
    """`fetch(url)`: any status, and the text, of a page of the admin process."""

    def get(url):
        try:
            with urllib.request.urlopen(url, timeout=20) as page:
                return page.status, page.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return get


@pytest.fixture
def scrape(fetch):
    """`scrape(gateway)`: every sample by its name and labels.

    For example `{"relay_x_total{a=b}": 1.0}`. Samples with the value 0 are included.
    """

    def samples(gateway):
        status, text = fetch(f"{gateway.admin_url}/metrics")
        assert status == 200, text
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
                found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
        return found

    return samples
