"""The first request's cookie decides the backend; all else is relayed as usual."""

import signal
import socket
import time

import pytest

from relay.shared.entities import (
    HEALTH,
    HEALTH_VERSION,
    MODE_OVERRIDE,
    OVERRIDE_VERSION,
)
from relay.shared.scoreboard import SHARED_ROW
from tests.support.backend import name_itself
from tests.support.records import DATA, HANDSHAKE, KEY_UPDATE, KEY_UPDATE_PLEASE, RecordWriter
from tests.support.web import Site, plain, request, response
from tests.support.worker import RunningWorker, client_context, pool_toml, route_toml, wait_until

COOKIE = 'sticky = "cookie"'
UP, DOWN, DRAIN, DISABLED = 1, 2, 2, 3


@pytest.fixture
def sites(backend):
    """Start HTTP backends that answer with their names: b1, b2, …"""

    def make(count=3, answer=None):
        made = [Site(f"b{i}", answer) for i in range(1, count + 1)]
        return made, [backend(site).address for site in made]

    return make


@pytest.fixture
def run(tmp_path, pki, stack):
    def run(addresses, pool=COOKIE, top="", route="", worker=None):
        toml = (
            f'{top}\n[[listener]]\nname = "https"\nlisten = ["127.0.0.1:0"]\n'
            f"{route_toml(pki, extra=route)}\n{pool_toml(pki, addresses, extra=pool)}"
        )
        running = RunningWorker(tmp_path, toml, beside=worker)
        stack.callback(running.close)
        return running

    return run


def change(relay, name, backend, value):
    """Change a state cell, then the version, as the checker and the supervisor do."""
    shared = relay.scoreboard.row(SHARED_ROW)
    shared[relay.layout.cell(name, "main", backend)] = value
    shared[
        relay.layout.cell(OVERRIDE_VERSION if name.endswith("override") else HEALTH_VERSION)
    ] += 1


def visit(call, relay, *args, **kwargs):
    """Send one request on a new connection; the name of the backend that answered."""
    client = call(relay)
    client.send(request(*args, **kwargs))
    name = response(client)[1].decode()
    client.close()
    return name


SPELLINGS = {
    "alone": {"cookie": "JSESSIONID=abc.b2"},
    "with dots in the session": {"cookie": "JSESSIONID=a.b.c.b2"},
    "among others": {"cookie": "a=1; JSESSIONID=abc.b2; JSESSIONIDX=abc.b3"},
    "without spaces": {"cookie": "a=1;JSESSIONID=abc.b2;z=2"},
    "in quotes": {"cookie": 'JSESSIONID="abc.b2"'},
    "in a lower-case field": {"cookie": "JSESSIONID=abc.b2", "field": "cookie"},
    "in an upper-case field": {"cookie": "JSESSIONID=abc.b2", "field": "COOKIE"},
    "in a folded line": {"cookie": "a=1;\r\n JSESSIONID=abc.b2"},
    "in the second field": {"cookie": "a=1\r\nCookie: JSESSIONID=abc.b2"},
    "behind one of no backend": {"cookie": "JSESSIONID=old.gone; JSESSIONID=abc.b2"},
    "in the path": {"target": "/app;jsessionid=abc.b2"},
    "in the path, with a query": {"target": "/app;jsessionid=abc.b2?x=1"},
}


@pytest.mark.parametrize("how", SPELLINGS.values(), ids=SPELLINGS)
def test_the_route_in_the_cookie_is_the_backend_it_gets(sites, run, call, how):
    made, addresses = sites()
    relay = run(addresses)
    assert {visit(call, relay, **how) for _ in range(3)} == {"b2"}
    record = relay.record()
    assert (record["backend"], record["why"], record["reason"]) == ("b2", "cookie", "finished")
    assert made[1].heard[0] == request(**how), "not a byte is changed"


def test_a_head_may_come_byte_by_byte(sites, run, call):
    made, addresses = sites()
    relay = run(addresses)
    client = call(relay)
    head = request("JSESSIONID=abc.b3")
    for at in range(len(head)):
        client.send(head[at : at + 1])
    assert response(client)[1] == b"b3"
    client.send(request())
    assert response(client)[1] == b"b3"
    assert made[2].heard == [head + request()]


def test_a_large_head_reaches_the_backend_whole(sites, run, call):
    made, addresses = sites()
    relay = run(addresses)
    client = call(relay)
    head = request(f"a={'x' * 50_000}; JSESSIONID=abc.b3")
    client.send(head)
    assert response(client)[1] == b"b3"
    assert made[2].heard == [head]


def test_a_head_that_is_too_large_goes_on_without_a_cookie(sites, run, call):
    made, addresses = sites(1)
    relay = run(addresses)
    client = call(relay)
    head = request(f"a={'x' * 200_000}; JSESSIONID=abc.b1")
    client.send(head)
    assert response(client)[1] == b"b1"
    assert made[0].heard == [head]
    client.close()
    assert relay.record()["why"] == "sticky"


def test_without_a_cookie_the_clients_address_decides(sites, run, call):
    relay = run(sites()[1])
    assert len({visit(call, relay) for _ in range(6)}) == 1
    assert relay.record()["why"] == "sticky"


def test_without_a_cookie_the_balance_decides_where_that_is_said(sites, run, call):
    relay = run(sites()[1], COOKIE + '\nsticky_fallback = "balance"')
    assert sorted(visit(call, relay) for _ in range(6)) == ["b1", "b1", "b2", "b2", "b3", "b3"]
    assert relay.record()["why"] == "balanced"


def test_all_workers_hash_an_unknown_cookie_alike(sites, run, call):
    _, addresses = sites()
    first = run(addresses)
    second = run(addresses, worker=first)
    chosen = {}
    for number in range(12):
        cookie = f"JSESSIONID=session{number}.elsewhere"
        names = {visit(call, relay, cookie) for relay in (first, second)}
        assert len(names) == 1
        chosen[cookie] = names.pop()
    assert len(set(chosen.values())) > 1
    assert first.record()["why"] == "hashed"


def test_a_backend_gets_its_clients_back_when_it_is_up(sites, run, call):
    _, addresses = sites()
    relay = run(addresses)
    change(relay, HEALTH, "b2", DOWN)
    names = {visit(call, relay, "JSESSIONID=abc.b2") for _ in range(4)}
    assert len(names) == 1, "all connections of one session go to the same other backend"
    assert "b2" not in names
    assert visit(call, relay, "JSESSIONID=abc.b3") == "b3", "who has another backend stays there"
    change(relay, HEALTH, "b2", UP)
    assert visit(call, relay, "JSESSIONID=abc.b2") == "b2"
    assert relay.record()["why"] == "failover"


def test_a_request_goes_on_when_its_own_backend_refuses(sites, run, call, backend):
    made, addresses = sites(2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        refusing = f"127.0.0.1:{listener.getsockname()[1]}"
    relay = run([refusing, *addresses])
    assert visit(call, relay, "JSESSIONID=abc.b1") in {"b1", "b2"}
    assert sum(len(site.heard) for site in made) == 1
    assert (made[0].heard or made[1].heard)[0] == request("JSESSIONID=abc.b1")
    record = relay.record()
    assert (record["why"], record["reason"]) == ("failover", "finished")


def test_when_all_are_down_a_cookie_still_decides(sites, run, call):
    relay = run(sites()[1])
    for name in ("b1", "b2", "b3"):
        change(relay, HEALTH, name, DOWN)
    assert {visit(call, relay, "JSESSIONID=abc.b2") for _ in range(3)} == {"b2"}


def test_a_draining_backend_gets_clients_with_its_cookie(sites, run, call):
    """A disabled one gets no client."""
    relay = run(sites(2)[1], COOKIE + '\nsticky_fallback = "balance"')
    change(relay, MODE_OVERRIDE, "b1", DRAIN)
    assert {visit(call, relay) for _ in range(4)} == {"b2"}
    assert visit(call, relay, "JSESSIONID=abc.b1") == "b1"
    change(relay, MODE_OVERRIDE, "b1", DISABLED)
    assert visit(call, relay, "JSESSIONID=abc.b1") == "b2"


NOT_HTTP = {
    "a line of another protocol": b"EHLO relay.example.com\r\n",
    "binary": bytes(range(256)),
    "HTTP/2 with prior knowledge": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "a TLS record": bytes((22, 3, 1, 0, 5, 1, 0, 0, 1, 0)),
}


@pytest.mark.parametrize("data", NOT_HTTP.values(), ids=NOT_HTTP)
def test_what_is_not_http_1_is_relayed_at_once(run, backend, call, data):
    relay = run([backend().address], top="[timeouts]\nsniff_s = 3600")
    client = call(relay)
    client.send(data)
    assert client.receive(len(data)) == data


def test_a_head_without_end_is_forwarded_at_the_deadline(sites, run, call):
    made, addresses = sites(1)
    relay = run(addresses, top="[timeouts]\nsniff_s = 0.2")
    client = call(relay)
    head = request("JSESSIONID=abc.b1")
    client.send(head[:-2])
    wait_until(lambda: made[0].heard == [head[:-2]], "the backend to have the half head")
    client.send(head[-2:])
    assert response(client)[1] == b"b1"
    assert made[0].heard == [head]
    client.close()
    assert relay.record()["why"] == "sticky"


def test_a_server_that_speaks_first_is_heard(run, backend, call):
    def greet(connection):
        connection.sendall(b"220 ready\r\n")
        connection.recv(1)

    relay = run([backend(greet).address], top="[timeouts]\nsniff_s = 0.2")
    client = call(relay)
    assert client.receive(11) == b"220 ready\r\n"


def test_pipelined_requests_and_a_body_arrive_in_order(sites, run, call):
    made, addresses = sites()
    relay = run(addresses)
    client = call(relay)
    body = bytes(5000)
    sent = (
        b"POST /x HTTP/1.1\r\nHost: a\r\nCookie: JSESSIONID=q.b2\r\nContent-Length: 5000\r\n\r\n"
        + body
        + request()
        + request("JSESSIONID=q.b3")
    )
    client.send(sent)
    answers = 3 * plain("b2", b"")
    assert client.receive(len(answers)) == answers
    assert made[1].heard == [sent]


def test_a_long_upload_behind_the_head_arrives_whole(run, backend, call):
    relay = run([backend().address])
    client = call(relay)
    head = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n"
    client.send(head)
    client.send(bytes(100_000))
    assert client.receive(len(head) + 100_000) == head + bytes(100_000)


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HT", request("JSESSIONID=abc.b1")],
    ids=["nothing", "half a head", "a head"],
)
@pytest.mark.parametrize("end", ["close_notify", "fin"])
def test_a_client_that_ends_its_side_is_still_answered(run, door, call, sent, end):
    back = door()
    relay = run([back.address], top="[timeouts]\nsniff_s = 3600")
    client = call(relay)
    if sent:
        client.send(sent)
    if end == "close_notify":
        client.close_notify()
    client.fin()
    server = back.accept()
    assert server.end() == (sent, "close_notify")
    server.send(b"answer")
    server.close()
    assert client.receive(6) == b"answer"
    client.sock.close()
    assert relay.record()["reason"] in {"finished", "truncated"}


def test_a_reset_before_the_request_reaches_no_backend(run, backend, call):
    served = backend()
    relay = run([served.address], top="[timeouts]\nsniff_s = 3600")
    client = call(relay)
    client.send(b"GET / HT")
    time.sleep(0.05)
    client.reset()
    record = relay.record()
    assert (record["reason"], record["side"], record["backend"]) == ("inbound_reset", "inbound", "")
    assert served.accepted == 0
    assert relay.value("relay_connections_active") == 0


def test_clients_that_are_waited_for_take_no_handshakes_place(sites, run, call):
    relay = run(sites(1)[1], top="[timeouts]\nsniff_s = 3600\n[limits]\nhandshakes = 2")
    silent = [call(relay) for _ in range(5)]
    assert visit(call, relay) == "b1"
    for client in silent:
        client.send(request())
        assert response(client)[1] == b"b1"


def test_a_drain_does_not_wait_for_a_request(sites, run, call):
    relay = run(sites(1)[1], top="[timeouts]\nsniff_s = 3600\n[relay]\ndrain_timeout_s = 0.2")
    client = call(relay)
    client.send(b"GET")
    relay.signal(signal.SIGTERM)
    assert relay.wait() == 0
    assert relay.record()["reason"] == "draining"


def test_a_browser_that_offers_http_2_too_gets_http_1(run, sites, call, pki):
    relay = run(sites(1)[1])
    client = call(relay, context=client_context(pki, pki.client, alpn=("h2", "http/1.1")))
    assert client.tls.selected_alpn_protocol() == "http/1.1"


def test_pools_without_cookies_are_not_looked_into(run, backend, call):
    relay = run([backend(name_itself("b1")).address], "", top="[timeouts]\nsniff_s = 3600")
    client = call(relay)
    client.send(b"GET ")
    assert client.receive(3) == b"b1\n"


def test_key_updates_between_the_pieces_of_a_head_hide_nothing(sites, run, pki, tmp_path, stack):
    made, addresses = sites()
    relay = run(addresses, top="[timeouts]\nsniff_s = 3600")
    writer = RecordWriter(relay.port, client_context(pki, pki.client), tmp_path / "keys")
    stack.callback(writer.sock.close)
    head = request("JSESSIONID=abc.b3")
    writer.send(
        writer.record(DATA, head[:10]),
        writer.record(HANDSHAKE, KEY_UPDATE),
        writer.record(DATA, head[10:20]),
    )
    writer.send(
        *(
            record
            for at in range(20, len(head))
            for record in (
                writer.record(HANDSHAKE, KEY_UPDATE_PLEASE),
                writer.record(DATA, head[at : at + 1]),
            )
        )
    )
    wait_until(lambda: made[2].heard == [head], "the backend to have the whole head")


def test_a_key_update_in_the_last_flight_hides_no_request(sites, run, pki, tmp_path, stack):
    """OpenSSL stops reading behind it, and no edge announces the bytes there."""
    made, addresses = sites()
    relay = run(addresses, top="[timeouts]\nsniff_s = 3600")
    context = client_context(pki, pki.client)
    writer = RecordWriter(relay.port, context, tmp_path / "keys", before_finished=relay.suspend)
    stack.callback(writer.sock.close)
    head = request("JSESSIONID=abc.b3")
    writer.send(writer.record(HANDSHAKE, KEY_UPDATE), writer.record(DATA, head))
    relay.signal(signal.SIGCONT)
    wait_until(lambda: made[2].heard == [head], "the backend to have the whole head")
