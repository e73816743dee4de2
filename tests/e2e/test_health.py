"""Health checks of a running relay.

Which backends are down, where that is reported, and what survives a new checker or a
reload.
"""

from __future__ import annotations

import json
import os
import signal

import psutil
import pytest

from relay.demo.ca import LeafSpec
from relay.shared.backends_view import HEALTH_FILE
from tests.support.client import talk
from tests.support.gateway import wait_until
from tests.support.http import answer, status
from tests.support.pki import BACKEND_NAME
from tests.support.stub_relay import STUB, stub
from tests.support.tables import listener_table, pool_table, route_table

QUICK = {"interval_s": 0.2, "timeout_s": 2, "rise": 2, "fall": 2}


def health_of(gateway):
    """Each backend's entry in the health file, by its route; empty without a file."""
    file = gateway.state_dir / HEALTH_FILE
    return (
        {
            key.removeprefix("main/"): entry
            for key, entry in json.loads(file.read_text()).items()
            if "/" in key
        }
        if file.exists()
        else {}
    )


def checker_pid(gateway):
    return json.loads((gateway.state_dir / HEALTH_FILE).read_text())["pid"]


def states(gateway):
    return {route: entry["state"] for route, entry in health_of(gateway).items()}


def wait_for_states(gateway, **expected):
    wait_until(
        f"the backends are {expected}",
        lambda: states(gateway) == expected,
        detail=lambda: f"{health_of(gateway)}\n{gateway.log()}",
    )


@pytest.fixture
def body(pki):
    """`body(backends or addresses, health={…})`: a listener, a route and a pool.

    `retry_s` is 10 ms, so that only the checks keep a failed backend out of use.
    """

    def make(backends, health=QUICK, **pool):
        addresses = [getattr(each, "address", each) for each in backends]
        return listener_table(route_table(pki)) + pool_table(
            pki, addresses, health=health, **{"retry_s": 0.01, **pool}
        )

    return make


def test_no_client_notices_a_backend_that_goes_and_comes_back(
    pki, start, make_backend, body, scrape
):
    first, second = make_backend(), make_backend()
    gateway = start(body([first, second]), relay={"workers": 1})
    wait_for_states(gateway, w1="up", w2="up")
    second.close()
    while states(gateway)["w2"] == "up":
        assert talk(pki, gateway.port()) == b"hello"
    assert "pool main: backend w2 is down: backend_refused at" in gateway.log()
    samples = scrape(gateway)
    assert samples["relay_backend_up{backend=w1,pool=main}"] == 1
    assert samples["relay_backend_up{backend=w2,pool=main}"] == 0
    assert samples["relay_health_checks_total{backend=w1,pool=main,result=ok}"] > 0
    assert samples["relay_health_checks_total{backend=w2,pool=main,result=connect_failed}"] >= 2
    not_after = pki.backend.issued.certificate.not_valid_after_utc.timestamp()
    assert samples[
        "relay_backend_certificate_not_after_timestamp_seconds{backend=w1,pool=main}"
    ] == int(not_after)
    before = len(gateway.access())
    assert [talk(pki, gateway.port()) for _ in range(10)] == [b"hello"] * 10
    after = gateway.wait_for_access(before + 10)[before:]
    assert {(line["backend"], line["why"]) for line in after} == {("w1", "balanced")}

    make_backend(port=second.port)
    wait_for_states(gateway, w1="up", w2="up")
    gateway.wait_for_log("pool main: backend w2 is up: ", count=2)
    assert scrape(gateway)["relay_backend_up{backend=w2,pool=main}"] == 1
    before = len(gateway.access())
    assert [talk(pki, gateway.port()) for _ in range(10)] == [b"hello"] * 10
    assert {line["backend"] for line in gateway.wait_for_access(before + 10)[before:]} == {
        "w1",
        "w2",
    }


def test_a_change_is_one_line_that_says_why_and_what_to_do(pki, start, make_backend, body):
    health = {**QUICK, "http_get": "/health"}
    gateway = start(
        body(
            [make_backend(answer(status(503))), make_backend(files=pki.backend_wrong_name)], health
        ),
        relay={"workers": 1},
    )
    wait_for_states(gateway, w1="down", w2="down")
    wait_until(
        "more checks have failed",
        lambda: min(entry["in_a_row"] for entry in health_of(gateway).values()) >= 4,
    )
    messages = [json.loads(line) for line in gateway.log().splitlines()]
    told = sorted(each["message"] for each in messages if " is down: " in each["message"])
    assert len(told) == 2
    assert told[0].startswith("pool main: backend w1 is down: http_status at 127.0.0.1:")
    assert told[0].endswith(
        ": GET /health answered 503; see the backend's log; "
        "health.http_status lists the accepted statuses"
    )
    assert told[1].startswith("pool main: backend w2 is down: backend_wrong_name at 127.0.0.1:")
    assert "names other.example.net" in told[1]
    assert {each["process"] for each in messages if " is down: " in each["message"]} == {"checker"}
    entry = health_of(gateway)["w1"]
    assert entry["reason"].endswith("GET /health answered 503")
    assert entry["remedy"].startswith("see the backend's log")
    assert entry["not_after"] == int(pki.backend.issued.certificate.not_valid_after_utc.timestamp())


def test_sessions_try_the_backends_when_all_are_down(pki, start, make_backend, body):
    backend = make_backend()
    gateway = start(
        body([backend], {**QUICK, "http_get": "/", "timeout_s": 0.5}), relay={"workers": 1}
    )  # an echo is not HTTP
    wait_for_states(gateway, w1="down")
    assert talk(pki, gateway.port()) == b"hello"


def test_a_killed_checker_is_replaced_and_its_results_stay(start, make_backend, body):
    gone = make_backend()
    gone.close()
    # At 60 s no check of the second checker changes a state during this test.
    gateway = start(
        body([make_backend(), gone], {"interval_s": 60, "timeout_s": 2}), relay={"workers": 1}
    )
    wait_for_states(gateway, w1="up", w2="down")
    before, pid = health_of(gateway), checker_pid(gateway)
    workers = gateway.workers()
    os.kill(pid, signal.SIGKILL)
    gateway.wait_for_log("the checker was ended by SIGKILL after ")
    wait_until("another checker runs", lambda: checker_pid(gateway) != pid, detail=gateway.log)
    wait_for_states(gateway, w1="up", w2="down")
    after = health_of(gateway)
    for route in before:
        assert after[route]["since"] == pytest.approx(before[route]["since"], abs=0.1)
    assert gateway.workers() == workers
    log = gateway.log()
    assert (log.count("w1 is up"), log.count("w2 is down")) == (1, 1)
    assert log.count("the checker started") == 2


def test_a_checker_that_hangs_is_replaced(start, make_backend, body):
    gateway = start(
        body([make_backend()]),
        module=STUB,
        env=stub(hang_s=1.5, abort_grace_s=0.2),
        relay={"workers": 1},
    )
    wait_for_states(gateway, w1="up")
    pid = checker_pid(gateway)
    os.kill(pid, signal.SIGSTOP)
    gateway.wait_for_log(f"the checker (pid {pid}) hangs: no heartbeat for ")
    wait_until("another checker runs", lambda: checker_pid(gateway) != pid, detail=gateway.log)
    wait_until("the one that hung is gone", lambda: not psutil.pid_exists(pid))
    assert f"checker: pid {checker_pid(gateway)}\n" in gateway.command("status").stdout
    assert gateway.log().count("w1 is up") == 1


def test_counters_of_checks_outlive_the_checker(start, make_backend, body, scrape):
    gateway = start(body([make_backend()]), relay={"workers": 1})
    name = "relay_health_checks_total{backend=w1,pool=main,result=ok}"
    wait_until("some checks are done", lambda: scrape(gateway)[name] > 2)
    before = scrape(gateway)[name]
    pid = checker_pid(gateway)
    os.kill(pid, signal.SIGKILL)
    wait_until("another checker runs", lambda: checker_pid(gateway) != pid, detail=gateway.log)
    samples = scrape(gateway)
    assert samples[name] >= before
    assert samples["relay_worker_restarts_total"] == 0
    assert not any("slot=-1" in key for key in samples)


def test_a_reload_checks_new_backends_and_forgets_removed_ones(start, make_backend, body, scrape):
    good = make_backend()
    gone = make_backend()
    gone.close()
    gateway = start(body([good, gone]), relay={"workers": 1})
    wait_for_states(gateway, w1="up", w2="down")
    pid = checker_pid(gateway)
    gateway.write(body([good, good, gone]))
    assert gateway.command("reload").returncode == 0
    wait_for_states(gateway, w1="up", w2="up", w3="down")
    assert checker_pid(gateway) != pid
    wait_until("the old checker is gone", lambda: not psutil.pid_exists(pid))
    assert gateway.log().count("backend w1 is up") == 1  # it was, and nothing has changed about it
    assert scrape(gateway)["relay_backend_up{backend=w2,pool=main}"] == 1

    pid = checker_pid(gateway)
    gateway.write(listener_and_pool_without_checks(body, [good, good, gone]))
    assert gateway.command("reload").returncode == 0
    wait_until("no checker is left", lambda: not psutil.pid_exists(pid), detail=gateway.log)
    wait_until(
        "w3 is given another chance",
        lambda: scrape(gateway)["relay_backend_up{backend=w3,pool=main}"] == 1,
        detail=gateway.log,
    )
    wait_until("its findings are gone", lambda: not (gateway.state_dir / HEALTH_FILE).exists())


def listener_and_pool_without_checks(body, backends):
    return "".join(
        line
        for line in body(backends).splitlines(keepends=True)
        if not line.startswith("health = ")
    )


def test_the_checker_ends_when_the_supervisor_is_killed(start, make_backend, body):
    gateway = start(body([make_backend()]), relay={"workers": 1})
    wait_for_states(gateway, w1="up")
    pid = checker_pid(gateway)
    gateway.running.kill()
    gateway.wait()
    wait_until("the checker has ended", lambda: not psutil.pid_exists(pid))


def test_the_checker_ends_when_the_relay_is_stopped(start, make_backend, body):
    gateway = start(body([make_backend()]), relay={"workers": 1})
    wait_for_states(gateway, w1="up")
    pid = checker_pid(gateway)
    assert gateway.stop() == 0
    assert not psutil.pid_exists(pid)
    assert "Traceback" not in gateway.log()


def test_without_health_checks_there_is_no_checker(start, simple):
    gateway = start(simple)
    assert "the checker started" not in gateway.log()
    assert not (gateway.state_dir / HEALTH_FILE).exists()


def test_a_backend_with_a_host_name_is_looked_up_and_used(pki, start, make_backend):
    backend = make_backend()
    table = pool_table(pki, [f"localhost:{backend.port}"], resolve_s=0.2)
    gateway = start(listener_table(route_table(pki)) + table, relay={"workers": 1})
    gateway.wait_for_log("host localhost is at ")
    for _ in range(3):
        assert talk(pki, gateway.port()) == b"hello"
    names = wait_until(
        "it is in the health file",
        lambda: (
            (gateway.state_dir / HEALTH_FILE).exists()
            and json.loads((gateway.state_dir / HEALTH_FILE).read_text())["names"]
        ),
    )
    assert (names[0]["host"], names[0]["error"]) == ("localhost", "")
    assert set(names[0]["addresses"]) <= {"127.0.0.1", "::1"}


def test_the_checks_obey_the_pools_rules_for_chains(pki, start, make_backend, body, tmp_path):
    """Without partial_chain no check could succeed; with strict_x509 one fails."""
    alone = pki.intermediate.write(tmp_path / "alone.pem")
    spec = {"dns": (BACKEND_NAME,), "purposes": ("server",)}
    sound, malformed = (
        pki.write(
            pki.intermediate.issue(LeafSpec("backend", key_identifiers=given, **spec)),
            with_intermediates=False,
        )
        for given in (True, False)
    )
    backends = [make_backend(files=sound), make_backend(files=malformed)]
    rules = {"backend_ca": alone, "partial_chain": True, "strict_x509": True}
    gateway = start(body(backends, **rules), relay={"workers": 1})
    wait_for_states(gateway, w1="up", w2="down")
    assert "which strict_x509 refuses" in gateway.log()
    assert talk(pki, gateway.port()) == b"hello"
