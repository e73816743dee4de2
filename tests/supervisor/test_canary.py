"""A canary: one worker tries new settings, and is withdrawn if it is worse."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from relay.admin.metrics import parse_metrics
from relay.core.canary import Part
from relay.errors import Reason
from relay.shared.entities import entities_of
from relay.supervisor.canary_counts import WorkerCounts
from relay.supervisor.control_client import ask
from tests.support.client import PATIENCE_S, context_of, echoes, talk
from tests.support.configs import write_body
from tests.support.gateway import wait_until
from tests.support.ports import held_port
from tests.support.scoreboard import CONFIG, scoreboard_of

ENOUGH = "60s"  # a canary that is decided before


class Crowd:
    """Clients that connect without a pause. It counts the served and the refused."""

    def __init__(self, port, *contexts, threads=3):
        self.port = port
        self.contexts = contexts
        self.served = self.refused = 0
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self._visit) for _ in range(threads)]

    def _visit(self):
        while not self.over.is_set():
            for context in self.contexts:
                good = self._is_served(context)
                with self.lock:
                    self.served += good
                    self.refused += not good

    def _is_served(self, context):
        with contextlib.suppress(OSError, ssl.SSLError):
            raw = socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)
            with context.wrap_socket(raw, server_hostname="app.example.com") as client:
                client.settimeout(PATIENCE_S)
                return echoes(client)
        return False

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join(PATIENCE_S)


def served(pki, gateway, clients=20):
    """How many of these clients are served now."""
    return sum(talk(pki, gateway.port()) == b"hello" for _ in range(clients))


def canary_of(gateway):
    return ask(gateway.state_dir, "status", PATIENCE_S)["canary"]


def wait_for_canary(gateway):
    """Wait until it takes the clients of its slot."""
    gateway.wait_for_log("a canary takes the clients of this slot")


def test_a_canary_that_refuses_clients_is_withdrawn(relay, pki, body):
    """Another CA in the configuration: half of the clients come to the canary."""
    gateway = relay(admin={})
    before = gateway.workers()
    gateway.write(body.replace(str(pki.ca), str(pki.foreign_ca), 1), admin={})
    with Crowd(gateway.port(), context_of(pki)) as crowd:
        done = gateway.command("reload", "--canary", ENOUGH, patience_s=90)
        assert done.returncode == 71, done
        with urllib.request.urlopen(f"{gateway.admin_url}/metrics", timeout=20) as page:
            counted = parse_metrics(page.read().decode())
        assert counted['relay_canaries_total{result="withdrawn"}'] == 1
        reason = done.stderr
        assert "the canary was withdrawn: clients refused, unknown_ca: " in reason
        assert "(the other workers: 0 of " in reason
        assert "for example CN=" in reason
        assert reason.rstrip().endswith("generation 1 goes on")
        assert done.stdout.startswith("generation 2 is tried as a canary in worker 0 for 60 s")
        assert crowd.refused
    assert gateway.workers() == before
    assert served(pki, gateway) == 20
    assert gateway.endpoints["generation"] == 1
    assert canary_of(gateway) is None


def test_a_good_canary_is_followed_by_the_rest(relay, pki):
    gateway = relay()
    before = gateway.workers()
    gateway.change_a_setting()
    with Crowd(gateway.port(), context_of(pki)) as crowd:
        done = gateway.command("reload", "--canary", "2s", patience_s=90)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "generation 2 serves, after " in done.stdout
    assert gateway.endpoints["generation"] == 2
    assert not set(gateway.workers().values()) & set(before.values())
    assert crowd.served
    assert not crowd.refused


def test_without_clients_there_is_a_warning(relay, pki):
    gateway = relay()
    gateway.change_a_setting()
    done = gateway.command("reload", "--canary", "1s", patience_s=90)
    assert done.returncode == 0, done
    assert "warning: no client came to it, so nothing was compared" in done.stderr
    assert gateway.endpoints["generation"] == 2


def test_a_canary_that_reaches_no_backend_is_withdrawn(relay, pki, echo, body):
    gateway = relay()
    with held_port() as port:
        gateway.write(body.replace(echo.address, f"127.0.0.1:{port}"))
        with Crowd(gateway.port(), context_of(pki)):
            done = gateway.command("reload", "--canary", ENOUGH, patience_s=90)
    assert done.returncode == 71, done
    assert "connections to backends failed, backend_refused: " in done.stderr
    assert "for example backend echo/w1 (name backend.example.com) at " in done.stderr
    assert served(pki, gateway) == 20


def test_a_canary_that_dies_is_withdrawn(relay, pki):
    gateway = relay()
    gateway.change_a_setting()
    with Crowd(gateway.port(), context_of(pki)), ThreadPoolExecutor(1) as pool:
        reload = pool.submit(gateway.command, "reload", "--canary", ENOUGH, patience_s=90)
        wait_for_canary(gateway)
        status = ask(gateway.state_dir, "status", PATIENCE_S)
        [pid] = [each["pid"] for each in status["workers"] if each["generation"] == 2]
        os.kill(pid, signal.SIGKILL)
        done = reload.result()
    assert done.returncode == 71, done
    assert "a worker of the new configuration died as the canary" in done.stderr
    assert served(pki, gateway) == 20
    assert gateway.endpoints["generation"] == 1


def test_sessions_outlive_a_withdrawn_canary(relay, pki, dial):
    """Also those of the slot that the canary had, and those of the canary itself."""
    gateway = relay()
    early = [dial(gateway, context_of(pki)) for _ in range(6)]
    gateway.change_a_setting()
    with ThreadPoolExecutor(1) as pool:
        reload = pool.submit(gateway.command, "reload", "--canary", ENOUGH, patience_s=90)
        wait_for_canary(gateway)
        late = []

        def canary_has_clients():
            late.append(dial(gateway, context_of(pki)))
            return canary_of(gateway)["clients"] >= 3

        wait_until("the canary has clients", canary_has_clients)
        assert gateway.command("reload", "--withdraw").stdout == "the canary is withdrawn\n"
        done = reload.result()
    assert done.returncode == 71
    assert "the canary was withdrawn by an operator; generation 1 goes on" in done.stderr
    assert all(map(echoes, early + late))
    assert served(pki, gateway) == 20


def test_an_operator_can_let_the_rest_follow(relay, pki):
    gateway = relay()
    gateway.change_a_setting()
    with ThreadPoolExecutor(1) as pool:
        reload = pool.submit(gateway.command, "reload", "--canary", ENOUGH, patience_s=90)
        wait_for_canary(gateway)
        shown = gateway.command("status").stdout
        assert "canary: generation 2 in worker 0, " in shown
        assert gateway.command("reload", "--promote").stdout == "the other workers follow\n"
        assert reload.result().returncode == 0
    assert gateway.endpoints["generation"] == 2
    done = gateway.command("reload", "--withdraw")
    assert (done.returncode, "no canary is tried now" in done.stderr) == (71, True)


def test_a_plain_reload_follows_the_canary(relay, pki):
    gateway = relay()
    gateway.change_a_setting()
    with ThreadPoolExecutor(2) as pool:
        canary = pool.submit(gateway.command, "reload", "--canary", "3s", patience_s=90)
        wait_for_canary(gateway)
        gateway.change_a_setting()
        plain = gateway.command("reload")
        assert canary.result().returncode == 0
    assert plain.returncode == 0
    assert gateway.endpoints["generation"] == 3


def test_a_canary_outlives_the_command_that_began_it(relay, pki):
    gateway = relay()
    gateway.change_a_setting()
    command = [sys.executable, "-m", "relay", "reload", "--canary", "2s"]
    with subprocess.Popen(
        [*command, "--config", str(gateway.config)],
        env=gateway.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as begun:
        wait_for_canary(gateway)
        begun.send_signal(signal.SIGINT)
        assert begun.wait(PATIENCE_S) == -signal.SIGINT
    wait_until("generation 2 serves", lambda: gateway.endpoints["generation"] == 2)


def test_one_worker_cannot_be_compared(relay):
    gateway = relay(relay={"workers": 1})
    gateway.change_a_setting()
    done = gateway.command("reload", "--canary", "1s", patience_s=90)
    assert done.returncode == 71
    assert "a canary needs a second worker to be compared with" in done.stderr
    assert gateway.endpoints["generation"] == 1


@pytest.mark.parametrize("wrong", ["0s", "soon", "2h", "-1"])
def test_durations_that_are_refused(relay, wrong):
    gateway = relay()
    assert gateway.command("reload", "--canary", wrong).returncode == 64
    both = gateway.command("reload", "--canary", "1s", "--withdraw")
    assert both.returncode == 64


@pytest.mark.parametrize(
    ("reason", "counted"),
    [
        (Reason.MAX_SESSION, 0),
        (Reason.DRAINED, 0),
        (Reason.DRAIN_TIMEOUT, 0),
        (Reason.FINISHED, 0),
        (Reason.TRUNCATED, 7),
    ],
)
def test_an_end_that_the_relay_wants_is_not_a_failure(reason, counted):
    """Such as that of a `max_session_s` that the canary has and the others do not."""
    board = scoreboard_of(entities_of(CONFIG))
    process = SimpleNamespace(pid=1, row=0, generation=1, scoreboard=board)
    counts = WorkerCounts([process])
    route = ("https", "app.example.com")
    board.row(0)[board.layout.cell("relay_sessions_closed_total", *route, reason.value)] += 7
    assert counts.read([process]).failed(Part.SESSION) == counted


def test_equal_settings_have_no_canary(relay):
    gateway = relay()
    done = gateway.command("reload", "--canary", ENOUGH, patience_s=90)
    assert done.returncode == 0, done
    assert "generation 1 goes on: nothing has changed" in done.stdout


def test_another_ca_file_is_tried_first(relay, pki, body, tmp_path):
    """The relay leaves the file out of use as long as the canary has not served."""
    file = tmp_path / "ca.pem"
    shutil.copy(pki.ca, file)
    gateway = relay(
        body.replace(f'client_ca = "{pki.ca}"', f'client_ca = "{file}"'),
        relay={"watch_s": 0.1},
    )
    new = tmp_path / "new.pem"
    shutil.copy(pki.foreign_ca, new)
    os.kill(gateway.child("relay watcher").pid, signal.SIGSTOP)
    new.rename(file)
    with Crowd(gateway.port(), context_of(pki)):
        done = gateway.command("reload", "--canary", ENOUGH, patience_s=90)
    assert done.returncode == 71, done
    assert "unknown_ca" in done.stderr
    os.kill(gateway.child("relay watcher").pid, signal.SIGCONT)
    gateway.wait_for_log("a canary tries, or has refused, this file")
    assert served(pki, gateway) == 20
    assert gateway.command("reload").returncode == 0
    with pytest.raises((OSError, ssl.SSLError)):
        talk(pki, gateway.port())


def test_files_are_renewed_while_a_canary_runs(relay, pki, body, tmp_path):
    from relay.demo.ca import LeafSpec

    pair = pki.gateway
    certificate, key = tmp_path / "gateway.pem", tmp_path / "gateway.key"
    shutil.copy(pair.certificate, certificate)
    shutil.copy(pair.key, key)
    text = body.replace(str(pair.certificate), str(certificate)).replace(str(pair.key), str(key))
    gateway = relay(text, relay={"watch_s": 0.1})
    gateway.write(text, timeouts={"idle_s": 301})
    with ThreadPoolExecutor(1) as pool:
        reload = pool.submit(gateway.command, "reload", "--canary", ENOUGH, patience_s=90)
        wait_for_canary(gateway)
        leaf = pki.authority.issue(
            LeafSpec("renewed", dns=("app.example.com",), purposes=("server",))
        )
        leaf.write(tmp_path / "new.pem", tmp_path / "new.key")
        (tmp_path / "new.key").rename(key)
        (tmp_path / "new.pem").rename(certificate)
        gateway.wait_for_log("renewed in place: ")
        assert gateway.command("reload", "--promote").returncode == 0
        assert reload.result().returncode == 0
    serial = leaf.certificate.serial_number

    def shows_the_new_one():
        raw = socket.create_connection(("127.0.0.1", gateway.port()), PATIENCE_S)
        with context_of(pki).wrap_socket(raw, server_hostname="app.example.com") as client:
            return int(client.getpeercert()["serialNumber"], 16) == serial

    wait_until("generation 2 has the renewed certificate", shows_the_new_one, detail=gateway.log)
    assert gateway.endpoints["generation"] == 2


def test_a_new_listener_serves_all_its_clients(relay, pki, echo, body):
    """Only the canary's socket listens there until the others follow."""
    gateway = relay()
    more = write_body(pki, echo).replace('"https"', '"more"')
    listener, pool = more.partition("[pool.echo]")[0], body
    gateway.write(listener + pool)
    with ThreadPoolExecutor(1) as executor:
        reload = executor.submit(gateway.command, "reload", "--canary", ENOUGH, patience_s=90)
        wait_for_canary(gateway)
        [port] = _ports_of(gateway, 2)
        for _ in range(20):
            assert talk(pki, port) == b"hello"
        assert gateway.command("reload", "--promote").returncode == 0
        assert reload.result().returncode == 0
    assert gateway.port("more") == port
    for _ in range(20):
        assert talk(pki, port) == b"hello"


def _ports_of(gateway, generation):
    """The ports that only the workers of this generation listen on."""
    import psutil

    def ports(number):
        return {
            each.laddr.port
            for worker in ask(gateway.state_dir, "status", PATIENCE_S)["workers"]
            if worker["generation"] == number
            for each in psutil.Process(worker["pid"]).net_connections("tcp")
            if each.status == psutil.CONN_LISTEN
        }

    return ports(generation) - ports(generation - 1)


def test_every_client_is_counted_on_one_side(relay, pki):
    gateway = relay()
    gateway.change_a_setting()
    with ThreadPoolExecutor(1) as pool:
        reload = pool.submit(gateway.command, "reload", "--canary", ENOUGH, patience_s=90)
        wait_for_canary(gateway)
        assert served(pki, gateway) == 20
        wait_until(
            "the canary's share is counted",
            lambda: sum(canary_of(gateway)[name] for name in ("clients", "others_clients")) == 20,
            detail=lambda: json.dumps(canary_of(gateway)),
        )
        gateway.command("reload", "--withdraw")
        assert reload.result().returncode == 71


class Stranger:
    """Somebody with a foreign certificate and one address, who returns to one port."""

    def __init__(self, pki, port):
        self.target = ("127.0.0.1", port)
        self.context = context_of(pki, pki.client_foreign)

    def visit(self, port):
        """One bad handshake from this port; it can be used again at once."""
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.settimeout(PATIENCE_S)
        with raw:
            raw.bind(("127.0.0.2", port))
            raw.connect(self.target)
            with (
                contextlib.suppress(OSError, ssl.SSLError),
                self.context.wrap_socket(raw, server_hostname="app.example.com") as client,
            ):
                client.recv(1)

    def find(self, port, refused):
        """A port that leads to the canary: it has refused one more after a visit."""
        while True:
            before = refused()
            self.visit(port)
            until = time.monotonic() + 1.5  # the canary is read once a second
            while time.monotonic() < until:
                if refused() > before:
                    return port
            port += 1


def test_a_stranger_cannot_have_a_canary_withdrawn(relay, pki):
    """Who has found a port that leads to the canary uses it again and again."""
    gateway = relay()
    gateway.change_a_setting()
    stranger = Stranger(pki, gateway.port())
    with Crowd(gateway.port(), context_of(pki)) as crowd, ThreadPoolExecutor(1) as pool:
        reload = pool.submit(gateway.command, "reload", "--canary", ENOUGH, patience_s=90)
        wait_for_canary(gateway)
        own = stranger.find(20_000, lambda: canary_of(gateway)["refused"])
        for _ in range(60):
            stranger.visit(own)
        wait_until("all are counted", lambda: canary_of(gateway)["refused"] >= 61)
        wait_until("others came", lambda: canary_of(gateway)["others_clients"] > 30)
        assert canary_of(gateway)["others_refused"] < 20
        gateway.command("reload", "--promote")
        done = reload.result(90)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert not crowd.refused
    assert gateway.endpoints["generation"] == 2
