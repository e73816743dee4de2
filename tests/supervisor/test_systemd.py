"""The messages to systemd, and the unit."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import time

import pytest

from relay.supervisor.systemd import Notifier
from tests.support.gateway import PATIENCE_S, ROOT
from tests.support.programs import needs, output_of, program, run

UNIT = ROOT / "systemd" / "relay.service"
needs_analyze = needs("systemd-analyze")


@pytest.fixture(params=["path", "abstract"])
def manager(request, short_path):
    """A socket as systemd has it, and its name for NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(20)
        name = f"{short_path}/notify" if request.param == "path" else f"@relay-test-{os.getpid()}"
        listener.bind("\0" + name[1:] if name.startswith("@") else name)
        yield listener, name


def told(listener):
    return dict(line.split("=", 1) for line in listener.recv(4096).decode().splitlines())


def told_until(listener, word):
    """All messages up to the first with this word. Keep-alives do not prolong it."""
    deadline = time.monotonic() + PATIENCE_S
    seen = [told(listener)]
    while word not in seen[-1]:
        assert time.monotonic() < deadline, (
            f"the manager was not told {word} within {PATIENCE_S:g} s, but {seen}"
        )
        seen.append(told(listener))
    return seen


def test_each_message_is_what_sd_notify_documents(manager):
    listener, name = manager
    environment = {
        "NOTIFY_SOCKET": name,
        "WATCHDOG_USEC": "4000000",
        "WATCHDOG_PID": str(os.getpid()),
        "OTHER": "stays",
    }
    notifier = Notifier(environment)
    assert environment == {"OTHER": "stays"}
    notifier.ready("all is well")
    assert told(listener) == {"READY": "1", "STATUS": "all is well"}
    notifier.reloading()
    message = told(listener)
    assert (message["RELOADING"], message["STATUS"]) == ("1", "reloading")
    assert 0 <= time.monotonic_ns() // 1000 - int(message["MONOTONIC_USEC"]) < 20_000_000
    notifier.stopping("draining")
    assert told(listener) == {"STOPPING": "1", "STATUS": "draining"}
    assert notifier.watchdog_s == 2
    for now in (100.0, 101.0, 102.0):
        notifier.watchdog(now)
    listener.setblocking(False)
    assert [told(listener), told(listener)] == [{"WATCHDOG": "1"}] * 2
    with pytest.raises(BlockingIOError):
        listener.recv(1)
    notifier.close()


def fill(listener, name):
    """Fill the manager's queue; returns the number of messages in it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        for count in range(100_000):
            try:
                other.sendto(b"OTHER=1", "\0" + name[1:] if name.startswith("@") else name)
            except BlockingIOError:
                return count
    raise AssertionError("its queue has no end")


def empty(listener):
    """What the manager has in its queue."""
    listener.setblocking(False)
    seen = []
    with contextlib.suppress(BlockingIOError):
        while True:
            seen.append(told(listener))
    listener.settimeout(20)
    return seen


def test_a_full_manager_socket_gets_the_latest_state_later(manager):
    listener, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "60000000"})
    notifier.watchdog(time.monotonic())
    empty(listener)
    count = fill(listener, name)
    started = time.monotonic()
    notifier.ready("1 of 2")
    notifier.ready("2 of 2")
    assert time.monotonic() - started < 1
    assert notifier.watchdog_at <= time.monotonic() + 0.2, "it wants to be called again soon"
    assert empty(listener) == [{"OTHER": "1"}] * count
    notifier.watchdog(time.monotonic() + 1)
    assert empty(listener) == [{"READY": "1", "STATUS": "2 of 2"}]
    fill(listener, name)
    notifier.ready("one reload")
    notifier.reloading()
    notifier.ready("another")
    notifier.watchdog(time.monotonic() + 40)
    empty(listener)
    notifier.watchdog(time.monotonic() + 41)
    heard = empty(listener)
    assert ["RELOADING" in one for one in heard] == [True, False, False]
    assert heard[1:] == [{"READY": "1", "STATUS": "another"}, {"WATCHDOG": "1"}]
    fill(listener, name)
    notifier.ready("late")
    notifier.stopping("draining")
    empty(listener)
    notifier.close()
    assert empty(listener) == [{"STOPPING": "1", "STATUS": "draining"}]


def test_a_busy_manager_still_receives_ready(relay, manager):
    """READY=1 was once dropped: systemd ended the relay at TimeoutStartSec."""
    listener, name = manager
    fill(listener, name)
    gateway = relay(env={"NOTIFY_SOCKET": name})
    assert gateway.command("status").returncode == 0
    assert told_until(listener, "READY")[-1]["STATUS"] == "generation 1, 2 of 2 workers serve"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": "/nowhere/at/all"},
        {"NOTIFY_SOCKET": "vsock:2:1"},
        {"WATCHDOG_USEC": "x"},
    ],
)
def test_without_a_listening_manager_nothing_happens(environment):
    notifier = Notifier(dict(environment))
    notifier.ready("x")
    notifier.watchdog(1e9)
    assert notifier.watchdog_s == float("inf")
    notifier.close()


def test_a_watchdog_of_another_process_is_not_ours():
    assert Notifier({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}).watchdog_s == float("inf")


def test_a_relay_tells_its_whole_life(relay, manager):
    listener, name = manager
    gateway = relay(start=False, env={"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "400000"}).launch()
    seen = told_until(listener, "READY")
    assert seen[-1]["STATUS"] == "generation 1, 2 of 2 workers serve"
    assert (gateway.state_dir / "endpoints.json").exists()
    told_until(listener, "WATCHDOG")
    gateway.change_a_setting()
    assert gateway.command("reload").returncode == 0
    seen = told_until(listener, "READY")
    assert [message for message in seen if "RELOADING" in message]
    assert seen[-1]["STATUS"].startswith("generation 2, ")
    gateway.stop()
    assert told_until(listener, "STOPPING")[-1]["STATUS"] == "draining"


@needs_analyze
def test_systemd_finds_nothing_to_complain_about_in_the_unit(short_path):
    # In a checkout the program is elsewhere, and systemd insists on finding it.
    unit = short_path / "relay.service"
    unit.write_text(UNIT.read_text().replace("/usr/local/bin/relay", sys.executable))
    verified = run("systemd-analyze", "verify", "--man=no", unit)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


@needs_analyze
def test_systemd_finds_nothing_to_complain_about_in_the_socket_unit(short_path):
    service = short_path / "relay.service"
    service.write_text(UNIT.read_text().replace("/usr/local/bin/relay", sys.executable))
    unit = short_path / "relay.socket"
    unit.write_text(UNIT.with_suffix(".socket").read_text())
    verified = run("systemd-analyze", "verify", "--man=no", unit)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


@needs_analyze
def test_the_units_exposure_is_as_low_as_documented():
    judged = run("systemd-analyze", "security", "--offline=true", "--no-pager", UNIT)
    if "Overall exposure" not in judged.stdout:
        pytest.skip("this systemd-analyze cannot judge a file offline")
    assert (
        float(re.search(r"Overall exposure level for relay\.service: ([0-9.]+)", judged.stdout)[1])
        <= 2.0
    )


def test_the_unit_outlasts_the_drain_and_restarts_as_it_should():
    from relay.config.model import Relay
    from relay.core.fleet_view import Rules

    settings = dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE))
    assert (
        float(settings["TimeoutStopSec"])
        > Relay().drain_timeout_s + Rules().drain_grace_s + Rules().quit_grace_s
    )
    assert float(settings["TimeoutStartSec"]) > Rules().start_timeout_s
    assert set(settings["RestartPreventExitStatus"].split()) == {"78", "64"}
    assert (settings["Restart"], settings["StartLimitIntervalSec"]) == ("on-failure", "0")
    assert settings["Type"] == "notify"
    assert (
        settings["AmbientCapabilities"]
        == settings["CapabilityBoundingSet"]
        == "CAP_NET_BIND_SERVICE"
    )


def allowed_calls():
    """The system calls that the unit allows, as systemd-analyze expands them."""

    def expand(names):
        found = set()
        for name in names:
            if name.startswith("@"):
                listed = output_of("systemd-analyze", "syscall-filter", "--no-pager", name)
                found |= expand(
                    line.strip()
                    for line in listed.splitlines()[1:]
                    if line.strip() and not line.strip().startswith("#")
                )
            else:
                found.add(name)
        return found

    calls = set()
    for names in re.findall(r"^SystemCallFilter=(.*)$", UNIT.read_text(), re.MULTILINE):
        if names.startswith("~"):
            calls -= expand(names[1:].split())
        else:
            calls |= expand(names.split())
    return calls


@needs_analyze
@needs("strace")
def test_the_unit_allows_every_system_call_of_the_relay(relay, pki):
    from tests.support.client import talk
    from tests.support.gateway import wait_until

    # The unit starts it as an ordinary user, which it stays.
    same_user = {"admin_user": "root"} if os.geteuid() == 0 else {}
    gateway = relay(start=False, relay={"workers": 1, **same_user}, admin={})
    trace = gateway.directory / "trace"
    gateway.launch(program("strace"), "-f", "-qq", "-e", "signal=none", "-o", str(trace))
    wait_until(
        "it accepts",
        (gateway.state_dir / "endpoints.json").exists,
        patience_s=60,
        detail=gateway.log,
    )
    assert talk(pki, gateway.port()) == b"hello"
    gateway.change_a_setting()
    assert gateway.command("reload", patience_s=60).returncode == 0
    assert gateway.command("drain").returncode == 0
    gateway.wait(60)
    used = set(re.findall(r"^\d+ +(?:<\.\.\. )?(\w+)[( ]", trace.read_text(), re.MULTILINE))
    assert {"epoll_wait", "accept4", "capset", "execve"} & used
    assert used - allowed_calls() == set()
