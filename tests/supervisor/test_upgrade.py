"""`relay upgrade`: another version takes over, or the old one goes on."""

from __future__ import annotations

import os
import re
import signal
import urllib.request
from pathlib import Path

import psutil
import pytest

from bench.endurance_ready import ReadyPoller
from relay.admin.metrics import parse_metrics
from tests.support.client import talk
from tests.support.gateway import wait_until
from tests.support.traffic import LongSession, Traffic
from tests.support.versions import Installation, append

PATIENCE_S = 120
pytestmark = pytest.mark.timeout(600)
# A longer proof is RELAY_TEST_UPGRADES=10.
UPGRADES = int(os.environ.get("RELAY_TEST_UPGRADES", "2"))


@pytest.fixture
def installed(short_path):
    """Where the program is installed that `old` runs."""
    return Installation(short_path / "lib")


@pytest.fixture
def old(relay, installed):
    """A relay that runs from the installation, as version 1.0.0."""
    return relay(env={"PYTHONPATH": str(installed.directory)}, admin={})


def upgrade(gateway):
    return gateway.command("upgrade", patience_s=PATIENCE_S)


def status_of(gateway):
    answered = gateway.command("status", patience_s=PATIENCE_S)
    assert answered.returncode == 0, answered.stderr
    return answered.stdout


def counters(gateway):
    with urllib.request.urlopen(f"{gateway.admin_url}/metrics", timeout=PATIENCE_S) as answer:
        found = parse_metrics(answer.read().decode())
    return {key: value for key, value in found.items() if "_total" in key[0]}


def open_files(gateway):
    """How many files the supervisor has open; only root may look."""
    return len(list(Path(f"/proc/{gateway.pid}/fd").iterdir())) if os.geteuid() == 0 else 0


def add_a_counter(package):
    """Another layout of the rows: one more counter before all others."""
    file = package / "shared" / "entities.py"
    text = file.read_text()
    first = '    yield Series("relay_access_log_dropped_total")\n'
    assert first in text
    file.write_text(text.replace(first, f'    yield Series("relay_future_total")\n{first}'))


def test_another_version_takes_over_under_load(old, installed, pki):
    """No client fails, sessions go on, and no counter goes back, over many upgrades."""
    pid, port = old.pid, old.port()
    with Traffic(pki, port, patience_s=PATIENCE_S) as traffic, LongSession(pki, port) as session:
        files = []
        for number in range(UPGRADES):
            traffic.wait_for_more()
            before, counted = set(old.workers().values()), counters(old)
            change = add_a_counter if number % 2 == 0 else lambda _package: None
            installed.install(f"2.0.{number}", change)
            answered = upgrade(old)
            assert (answered.returncode, answered.stderr) == (0, ""), old.log()
            assert f"to 2.0.{number}: generation {number + 2} serves" in answered.stdout
            assert not before & set(old.workers().values())
            now = counters(old)
            assert [key for key, value in counted.items() if now.get(key, -1) < value] == []
            traffic.wait_for_more()
            session.wait_for_more()
            files.append(open_files(old))
        assert f"relay 2.0.{UPGRADES - 1}, pid {pid}: serving" in status_of(old)
    assert (traffic.failures, session.failures) == ([], [])
    assert files[-1] <= files[0] + 2 * (UPGRADES - 1), "only what old workers with sessions need"
    wait_until("the first worker has ended", lambda: len(old.children("relay worker 0")) == 1)
    assert old.stop() == 0


def spoil_the_configuration(package):
    """When it takes over, somebody has just begun to write the file anew."""
    text = (
        "\n\n_receive = receive\n\n\ndef receive():\n    given = _receive()\n"
        "    if given is not None and given.purpose == 'take':\n"
        "        import pathlib, sys\n"
        "        pathlib.Path(sys.argv[sys.argv.index('--config') + 1]).write_text('[relay')\n"
        "    return given\n"
    )
    append("supervisor/handover.py", text)(package)


def test_a_file_that_changes_after_its_check_does_no_harm(old, installed, pki):
    installed.install("2.0.0", spoil_the_configuration)
    answered = upgrade(old)
    assert (answered.returncode, answered.stderr) == (0, ""), old.log()
    assert old.config.read_text() == "[relay"
    assert talk(pki, old.port()) == b"hello"
    reloaded = old.command("reload", patience_s=PATIENCE_S)
    assert reloaded.returncode == 78
    assert old.stop() == 0


def raise_at_start(package):
    append("supervisor/main.py", "\n\ndef run(*_a, **_k):\n    raise RuntimeError('new')\n")(
        package
    )


def test_readyz_says_yes_during_an_upgrade(old, installed):
    """A balancer that asks all the time never hears that nobody serves."""
    host, _, port = old.admin_url.removeprefix("http://").rpartition(":")
    poller = ReadyPoller(host, int(port))
    poller.start()
    try:
        for number in range(2):
            installed.install(f"2.0.{number}")
            answered = upgrade(old)
            assert answered.returncode == 0, answered.stderr
    finally:
        poller.stop()
    assert poller.failures == []
    assert set(poller.answers) == {"200"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (append("supervisor/main.py", "\n)\n"), "unmatched"),
        (append("worker/lingering_close.py", "\nimport no_such_thing\n"), "no_such_thing"),
        (append("admin/filters.py", "\nraise OSError('late')\n"), "late"),
        (raise_at_start, "new"),
    ],
    ids=["syntax", "dependency", "late import", "start"],
)
def test_a_version_that_cannot_start_leaves_the_old_one(old, installed, pki, change, told):
    workers = old.workers()
    installed.install("2.0.0", change)
    answered = upgrade(old)
    assert answered.returncode == 71, (answered.stdout, answered.stderr)
    assert told in answered.stderr
    assert "relay 1.0.0 goes on" in answered.stderr
    installed.install("1.0.0")
    assert "relay 1.0.0, " in status_of(old)
    assert old.workers() == workers
    assert talk(pki, old.port()) == b"hello"


def test_a_refused_configuration_leaves_the_old_version(old, installed, pki):
    text = old.config.read_text()
    old.config.write_text(text + "\n[nonsense]\nx = 1\n")
    installed.install("2.0.0")
    answered = upgrade(old)
    assert answered.returncode == 78
    assert answered.stderr.startswith(f"relay: {old.config}:"), answered.stderr
    assert ": nonsense: unknown key" in answered.stderr
    old.config.write_text(text)
    assert talk(pki, old.port()) == b"hello"
    assert upgrade(old).returncode == 0, old.log()


def test_sigusr2_upgrades_and_kicks_stay(old, installed, pki):
    assert old.command("kick", "203.0.113.9", "--for", "1h").returncode == 0
    old.signal(signal.SIGUSR2)
    old.wait_for_log("upgraded from relay 1.0.0 to 1.0.0")
    listed = old.command("kick", "--list")
    assert "203.0.113.9" in listed.stdout, listed.stdout + listed.stderr
    assert re.search(r"upgraded from 1\.0\.0 at ", status_of(old))
    old.change_a_setting()
    assert old.command("reload", patience_s=PATIENCE_S).returncode == 0
    assert talk(pki, old.port()) == b"hello"


def test_nothing_of_the_old_version_runs_afterwards(old, installed):
    children = psutil.Process(old.pid).children()
    assert upgrade(old).returncode == 0, old.log()
    wait_until("they have ended", lambda: not any(child.is_running() for child in children))
