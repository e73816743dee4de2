"""Logins, host names and malformed requests of the admin page, against a real relay."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time

import pytest

from relay.shared.password import hash_password
from tests.support.backend import TlsBackend
from tests.support.gateway import Gateway, wait_until
from tests.support.operator import Operator, login
from tests.support.tables import listener_table, pool_table, route_table

PASSWORD = "correct horse"
RATE = 30
FLOOD_S = 4


@pytest.fixture(scope="module")
def body(pki):
    backend = TlsBackend(pki.backend.certificate, pki.backend.key, pki.ca)
    yield listener_table(route_table(pki)) + pool_table(pki, [backend.address])
    backend.close()


@pytest.fixture
def start(body):
    with contextlib.ExitStack() as stack:
        yield lambda **sections: stack.enter_context(
            Gateway(body, **{"relay": {"workers": 1}, "admin": {}, **sections})
        )


@pytest.fixture
def guarded(start, tmp_path):
    """A relay whose page needs a login; its address as this machine reaches it."""
    file = tmp_path / "password"
    file.write_text(hash_password(PASSWORD) + "\n")
    gateway = start(admin={"listen": "0.0.0.0:0", "user": "alice", "password_file": file})
    return gateway.endpoints["admin"].replace("0.0.0.0", "127.0.0.1"), gateway


class Flood:
    """Wrong passwords, RATE a second, each on a connection of its own."""

    def __init__(self, address, sources=("127.0.0.1",)):
        self.address, self.sources = address, sources
        self.answers = []
        self.checked = set()  # the sources whose password was found wrong
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(6)]

    def _run(self, number):
        turn = number
        while not self._done.wait(len(self._threads) / RATE):
            turn += 1
            source = self.sources[turn % len(self.sources)]
            operator = Operator(self.address, source, authorization=login("alice", f"guess {turn}"))
            with contextlib.suppress(OSError, http.client.HTTPException):
                self.answers.append(operator.ask("/balancer-manager"))
                if self.answers[-1][0] == 401:
                    self.checked.add(source)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        for thread in self._threads:
            thread.join(30)


def timed(ask):
    began = time.monotonic()
    status = ask()[0]
    return status, time.monotonic() - began


@pytest.mark.parametrize(
    "sources",
    [("127.0.0.1",), tuple(f"127.0.1.{n}" for n in range(1, 41))],
    ids=["one address", "forty addresses"],
)
def test_wrong_passwords_hold_up_neither_probes_nor_the_right_one(guarded, sources):
    address, gateway = guarded
    with Flood(address, sources) as flood:
        wait_until("guesses are answered", lambda: len(flood.answers) > 5)
        # From then on the right password takes precedence over the whole flood.
        wait_until(
            "every address was wrong once",
            lambda: flood.checked == set(sources),
            patience_s=120,  # forty passwords are hashed, one after another
        )
        ends_at = time.monotonic() + FLOOD_S
        took = []
        while time.monotonic() < ends_at:
            for path in ("/healthz", "/readyz", "/metrics"):
                status, seconds = timed(lambda path=path: Operator(address).ask(path))
                assert status == 200
                took.append(seconds)
        friend = Operator(address, "127.0.0.9", authorization=login("alice", PASSWORD))
        status, seconds = timed(lambda: friend.ask("/api/pools"))
        assert (status, seconds < 5) == (200, True)
    took.sort()
    assert took[len(took) // 2] < 0.2, took
    assert took[-1] < 2, took
    statuses = {status for status, _, _ in flood.answers}
    assert statuses <= {401, 429}
    refused = [headers for status, _, headers in flood.answers if status == 429]
    assert refused
    assert all(int(headers["retry-after"]) >= 1 for headers in refused)
    if len(sources) == 1:
        assert len(refused) > len(flood.answers) / 2
        assert "wrong passwords on the admin page" in gateway.wait_for_log(
            "wrong passwords on the admin page"
        )


def test_each_wrong_password_of_an_address_is_waited_for_longer(guarded):
    address, _ = guarded
    operator = Operator(address, "127.0.0.7", authorization=login("alice", "wrong"))
    took = []
    while len(took) < 5:
        status, seconds = timed(lambda: operator.ask("/balancer-manager"))
        assert status == 401
        took.append(seconds)
    assert took[4] > 1.5
    assert sum(took) < 15


def test_a_mistyped_password_and_then_the_right_one_gets_in(guarded):
    address, _ = guarded
    for typed in ("corect horse", "correct hose"):
        assert (
            Operator(address, authorization=login("alice", typed)).ask("/balancer-manager")[0]
            == 401
        )
    assert (
        Operator(address, authorization=login("alice", PASSWORD)).ask("/balancer-manager")[0] == 200
    )


def test_a_logged_in_client_is_not_delayed_by_guesses_beside_it(guarded):
    address, _ = guarded
    friend = Operator(address, authorization=login("alice", PASSWORD))
    assert friend.ask("/balancer-manager")[0] == 200
    with Flood(address) as flood:
        wait_until(
            "guesses are refused", lambda: any(status == 429 for status, _, _ in flood.answers)
        )
        for _ in range(20):
            assert friend.ask("/api/pools")[0] == 200


@pytest.mark.parametrize("path", ["/", "/metrics"])
def test_a_stranger_that_points_its_name_here_reads_no_metrics(start, path):
    operator = Operator(
        start(admin={"listen": "0.0.0.0:0"}).endpoints["admin"].replace("0.0.0.0", "127.0.0.1")
    )
    for host in (
        "evil.example",
        "evil.example:9180",
        "10.0.0.7.evil.example",
        "",
        "localhost.evil.example",
    ):
        status, text, _ = operator.ask(path, host=host)
        assert (status, "relay_build_info" in text) == (403, False), host
    # A pod, a published port, a port forward: addresses cannot be pointed anywhere.
    for host in (
        "10.0.0.7:9180",
        "10.0.0.7",
        "[fd00::7]:9180",
        "127.0.0.1",
        "localhost:1",
        "LOCALHOST",
    ):
        assert operator.ask(path, host=host)[0] == 200, host
    for probe in ("/healthz", "/readyz"):
        assert operator.ask(probe, host="evil.example")[0] == 200


def test_listed_names_hold_for_metrics_too(start):
    operator = Operator(start(admin={"hosts": ["relay.example.com"]}).endpoints["admin"])
    assert operator.ask("/metrics", host="relay.example.com:9180")[0] == 200
    assert operator.ask("/metrics", host="other.example.com")[0] == 403


def test_on_loopback_without_listed_names_a_proxy_may_use_its_own(start):
    assert (
        Operator(start().endpoints["admin"]).ask("/metrics", host="metrics.corp.example")[0] == 200
    )


def test_a_unix_socket_is_scraped_under_any_name(start, short_path):
    operator = Operator(
        start(
            admin={"listen": f"unix:{short_path / 'a.sock'}", "hosts": ["relay.example.com"]}
        ).endpoints["admin"]
    )
    assert operator.ask("/metrics", host="whatever")[0] == 200


def test_a_scraper_without_a_host_header_is_served(start):
    """HTTP/1.0 has no Host header, and every browser sends one."""
    host, _, port = start(admin={"listen": "0.0.0.0:0"}).endpoints["admin"].rpartition(":")
    with socket.create_connection(("127.0.0.1", int(port)), timeout=10) as scraper:
        scraper.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert scraper.makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n"
    assert host == "0.0.0.0"


HUGE = "9" * 4000


@pytest.mark.parametrize(
    "wanted",
    [
        {"mode": "drain", "duration_s": int(HUGE)},
        {"weight": int(HUGE)},
        json.dumps({"mode": "é" * 1500}, ensure_ascii=False).encode(),
        json.dumps({"mode": "\U0001f600" * 900}, ensure_ascii=False).encode(),
        {"mode": ["drain"]},
        {"mode": {"a": "b"}},
        b'{"mode": "drain", "duration_s": 1e999}',
        b'{"mode": "drain", "duration_s": NaN}',
        b'{"mode": "\\ud800"}',
        b"[" * 4000,
        b'{"a":' * 600,
    ],
    ids=range(11),
)
def test_nonsense_is_refused_and_the_next_change_is_taken(shared, wanted):
    operator = Operator(shared.endpoints["admin"])
    assert operator.change("main/w1", wanted)[0] == 400
    assert operator.change("main/w1", {"mode": "none"})[0] == 200


@pytest.mark.parametrize(
    "member",
    [
        "x" * 5000 + "/w1",
        "main/" + "y" * 5000,
        "%ff/%00",
        "%c3%28/w1",
        "main/%ed%a0%80",
        "main/%0d%0aw1",
    ],
    ids=lambda text: text[:20],
)
def test_names_of_nonsense_are_refused_and_the_next_change_is_taken(shared, member):
    operator = Operator(shared.endpoints["admin"])
    assert operator.change(member, {"mode": "drain"})[0] in {400, 404}
    assert operator.change("main/w1", {"mode": "none"})[0] == 200


@pytest.fixture(scope="module")
def shared(body):
    with Gateway(body, relay={"workers": 1}, admin={}) as gateway:
        yield gateway


def test_changes_that_pile_up_are_refused_and_probes_answer_meanwhile(start):
    gateway = start()
    operator = Operator(gateway.endpoints["admin"])
    token = operator.pools()["csrf"]
    statuses = []
    gateway.signal(19)  # SIGSTOP: the admin process gets no answer
    try:
        clients = [
            threading.Thread(
                target=lambda: statuses.append(
                    operator.change("main/w1", {"mode": "drain"}, token)[0]
                )
            )
            for _ in range(40)
        ]
        for client in clients:
            client.start()
        wait_until("those beyond the bound are refused", lambda: statuses.count(429) >= 30)
        for path in ("/healthz", "/metrics", "/balancer-manager"):
            status, seconds = timed(lambda path=path: operator.ask(path))
            assert (status, seconds < 2) == (200, True)
    finally:
        gateway.signal(18)
        for client in clients:
            client.join(30)
    assert set(statuses) <= {200, 429, 503}


def test_bodies_that_do_not_end_are_cut_off_and_not_in_the_log(shared):
    host, _, port = shared.endpoints["admin"].rpartition(":")
    head = b"POST /api/pools/main/w1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000\r\n\r\n{"
    with contextlib.ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
            for _ in range(80)
        ]
        for one in slow:
            with contextlib.suppress(ConnectionError):
                one.sendall(head)
        assert Operator(shared.endpoints["admin"]).ask("/healthz")[0] == 200
        for one in slow:
            with contextlib.suppress(ConnectionError):
                assert one.recv(1) == b""
    assert Operator(shared.endpoints["admin"]).ask("/healthz")[0] == 200
    assert "Exception in ASGI" not in shared.log()
    assert "traceback" not in shared.log()


def test_a_finding_of_nonsense_numbers_shows_no_page_of_errors(shared):
    file = shared.state_dir / "checker" / "health.json"
    for nonsense in (
        '{"main/w1": {"since": Infinity}}',
        '{"main/w1": {"not_after": NaN}}',
        '{"main/w1": {"since": -1e300, "duration_s": 1e308}}',
        json.dumps({"main/w1": {"reason": "x" * 100_000}}),
    ):
        file.write_text(nonsense)
        operator = Operator(shared.endpoints["admin"])
        assert operator.ask("/balancer-manager")[0] == 200
        assert len(operator.backend()["health"]["reason"] or "") <= 1024
