"""docs/metrics.md and conf/prometheus/alerts.yml agree with the metrics."""

from __future__ import annotations

import re

from relay.shared.catalogue import FAMILIES
from relay.shared.label_values import CHECK_RESULTS, HANDSHAKE_BUCKETS_S, SESSION_BUCKETS_S, WHYS
from tests.support.gateway import ROOT
from tests.support.programs import needs, run

PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
ALERTS_FILE = ROOT / "conf" / "prometheus" / "alerts.yml"
ALERTS_TEST_FILE = ALERTS_FILE.with_name("alerts_test.yml")
ALERTS = ALERTS_FILE.read_text(encoding="utf-8")


def part(name):
    """The text between the page's comments `<!-- name -->` and `<!-- /name -->`."""
    (found,) = re.findall(f"<!-- {name} -->(.*?)<!-- /{name} -->", PAGE, re.DOTALL)
    return found.strip("\n")


def expected_metrics():
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for family in FAMILIES.values():
        labels = ", ".join(f"`{label}`" for label in family.labels) or "(none)"
        rows.append(f"| `{family.name}` | {family.kind} | {labels} | {family.help} |")
    return "\n".join(rows)


def test_the_page_has_every_metric_as_it_is_exposed():
    assert part("metrics") == expected_metrics()


def test_the_page_has_the_buckets_and_the_closed_label_values():
    for name, bounds in (("buckets", HANDSHAKE_BUCKETS_S), ("session buckets", SESSION_BUCKETS_S)):
        assert " ".join(part(name).split()) == ", ".join(f"{bound:g}" for bound in bounds)
    for value in (*WHYS, *CHECK_RESULTS):
        assert f"`{value}`" in PAGE


def test_the_page_lists_every_alert_with_its_severity():
    rules = re.findall(r"- alert: (\w+)\n.*?severity: (\w+)", ALERTS, re.DOTALL)
    listed = re.findall(r"^\| `(\w+)` \| (\w+) \|", part("alerts"), re.MULTILINE)
    assert listed == rules


def test_alerts_ask_for_metrics_and_labels_that_exist():
    metrics = set(re.findall(r"\brelay_\w+", ALERTS))
    assert metrics <= set(FAMILIES)
    labels = {label for family in FAMILIES.values() for label in family.labels}
    asked = set(re.findall(r"\$labels\.(\w+)", ALERTS))
    assert asked <= labels | {"instance"}


def test_every_alert_has_a_runbook_and_a_test():
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    headings = {heading.lower() for heading in re.findall(r"^### (Relay\w+)$", text, re.MULTILINE)}
    rules = ALERTS.split("- alert: ")[1:]
    anchors = [re.findall(r"runbook: docs/troubleshooting\.md#(\w+)\n", rule) for rule in rules]
    assert all(len(anchor) == 1 for anchor in anchors)
    assert {anchor for (anchor,) in anchors} == headings
    tested = re.findall(r"alertname=\"(\w+)\"", ALERTS_TEST_FILE.read_text(encoding="utf-8"))
    assert sorted(tested) == sorted(rule.split("\n", 1)[0] for rule in rules)


@needs("promtool")
def test_each_alert_fires_when_it_should_and_no_other():
    done = run("promtool", "test", "rules", str(ALERTS_TEST_FILE))
    assert done.returncode == 0, done.stdout + done.stderr


@needs("promtool")
def test_promtool_accepts_the_alerts_and_the_scrape_configuration(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", part("scrape"), re.DOTALL)
    (tmp_path / ALERTS_FILE.name).write_text(ALERTS)
    (tmp_path / "prometheus.yml").write_text(text)
    checked = run("promtool", "check", "config", str(tmp_path / "prometheus.yml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    count = ALERTS.count("- alert: ")
    assert f"{count} rules found" in checked.stdout
