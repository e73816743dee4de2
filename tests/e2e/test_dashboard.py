"""Each query of conf/grafana/relay.json has data in a Prometheus beside a relay."""

from __future__ import annotations

import contextlib
import json
import re
import ssl
import subprocess
import time
import urllib.parse
import urllib.request

import pytest

from relay.shared.catalogue import FAMILIES
from tests.support.client import context_of, talk
from tests.support.crls import make_crl
from tests.support.gateway import ROOT, wait_until
from tests.support.ports import held_port
from tests.support.programs import needs, program
from tests.support.tables import listener_table, pool_table, route_table

DASHBOARD = json.loads((ROOT / "conf" / "grafana" / "relay.json").read_text(encoding="utf-8"))
QUERIES = [
    (panel["title"], target["expr"])
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", ())
]
# What the relay of this test does not have.
WITHOUT_DATA = {"relay_name_lookup_failing", "relay_ocsp_response_next_update_timestamp_seconds"}
SUFFIXES = re.compile(r"_(bucket|sum|count)$")


def filled(query):
    """The query as Grafana sends it, for all instances, routes and pools."""
    for name in ("instance", "route", "pool"):
        query = query.replace(f"${name}", ".*")
    query = query.replace("$__rate_interval", "10s")
    assert "$" not in query
    return query


def metrics_in(query):
    return {SUFFIXES.sub("", name) for name in re.findall(r"\brelay_\w+", query)}


def test_the_dashboard_asks_for_metrics_that_exist_and_fits_its_grid():
    assert set().union(*(metrics_in(query) for _, query in QUERIES)) <= set(FAMILIES)
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not taken & cells, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    variables = [each["name"] for each in DASHBOARD["templating"]["list"]]
    assert variables == ["datasource", "instance", "route", "pool"]
    assert all(
        panel["datasource"]["uid"] == "${datasource}"
        for panel in DASHBOARD["panels"]
        if panel["type"] != "row"
    )


@pytest.fixture
def relay(start, pki, echo, tmp_path):
    """A relay with health checks, a revocation list, and a second pool that is dead."""
    crl = tmp_path / "ca.crl"
    crl.write_bytes(make_crl(pki.authority))
    return start(
        listener_table(route_table(pki, client_crl=[str(crl)]))
        + listener_table(route_table(pki, "dead"), name="dead")
        + pool_table(pki, [echo.address], health={"interval_s": 1})
        + pool_table(pki, ["127.0.0.1:1"], name="dead", retry_s=1),
        admin={},
    )


@pytest.fixture
def prometheus(relay, tmp_path):
    """`ask(query)`: the result in a Prometheus that scrapes this relay every second."""
    (tmp_path / "prometheus.yml").write_text(
        "scrape_configs:\n  - job_name: relay\n    scrape_interval: 1s\n"
        f'    static_configs: [{{targets: ["{relay.endpoints["admin"]}"]}}]\n'
    )
    with held_port() as port:
        pass
    log = (tmp_path / "prometheus.log").open("w")
    process = subprocess.Popen(
        [
            program("prometheus"),
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=log,
        stderr=log,
    )

    def ask(query):
        asked = urllib.parse.urlencode({"query": query})
        url = f"http://127.0.0.1:{port}/api/v1/query?{asked}"
        with urllib.request.urlopen(url, timeout=10) as reply:
            found = json.load(reply)
        assert found["status"] == "success", found
        return found["data"]["result"]

    yield ask
    process.terminate()
    process.wait(20)
    log.close()


@needs("prometheus")
def test_each_panel_of_the_dashboard_has_data(relay, pki, prometheus):
    stranger = ssl.create_default_context(cafile=str(pki.ca))

    def scraped():
        with contextlib.suppress(OSError):
            return prometheus("up == 1")
        return []

    wait_until("Prometheus scrapes the relay", scraped)
    missing = {query: title for title, query in QUERIES if not metrics_in(query) & WITHOUT_DATA}
    deadline = time.monotonic() + 60
    while missing and time.monotonic() < deadline:
        for _ in range(3):
            talk(pki, relay.port(), context=context_of(pki))
        with pytest.raises(OSError, match=r"(?i)alert"):
            talk(pki, relay.port(), context=stranger)
        with contextlib.suppress(OSError):
            talk(pki, relay.port("dead"))
        for query in list(missing):
            if prometheus(filled(query)):
                del missing[query]
    assert not missing
    for _, query in QUERIES:
        if metrics_in(query) & WITHOUT_DATA:
            assert prometheus(filled(query)) == []
    for variable in DASHBOARD["templating"]["list"][1:]:
        asked = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
        metric, label = asked.groups()
        values = {each["metric"].get(label) for each in prometheus(filled(metric))}
        assert values, variable
        assert None not in values
