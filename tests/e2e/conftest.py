from __future__ import annotations

import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.gateway import Gateway
from tests.support.tables import listener_table, pool_table, route_table


@pytest.fixture
def echo(make_backend):
    """A backend that sends back what it gets."""
    return make_backend()


@pytest.fixture
def simple(pki, echo):
    """The body of a configuration with one listener, one route for every name and the echo backend."""
    return listener_table(route_table(pki)) + pool_table(pki, [echo.address])


@pytest.fixture
def start():
    """Start gateways that end with the test: `start(body, relay={…})`."""
    gateways = []

    def begin(body, **sections):
        gateway = Gateway(body, **sections)
        gateways.append(gateway)
        return gateway.start()

    yield begin
    for gateway in gateways:
        print(gateway.log())
        gateway.close()


@pytest.fixture
def fetch():
    """`fetch(url)`: status and text of a page of the admin process, also of one that is not 200."""

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
    """`scrape(gateway)`: every sample by its name and labels, `{"relay_x_total{a=b}": 1.0}`, zeros included."""

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
