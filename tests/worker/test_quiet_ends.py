"""HTTP/1 connections end between two messages, before their time is over."""

import signal
import socket
import time

import pytest

from relay.shared.scoreboard import PHASE, PHASE_DRAINING
from relay.worker.http_session import RECORDS_PER_TICK
from tests.support.worker import wait_until

STAY = "[relay]\ndrain_timeout_s = 60"
REQUEST = b"GET /a HTTP/1.1\r\nHost: app.example.com\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def exchange(client, server, request=REQUEST, answer=ANSWER):
    client.send(request)
    assert server.receive(len(request)) == request
    server.send(answer)
    assert client.receive(len(answer)) == answer


def drain(relay):
    relay.signal(signal.SIGTERM)
    wait_until(lambda: relay.cells[PHASE] == PHASE_DRAINING, "the drain")
    relay.let_it_turn(3)


def wait_for_seconds(seconds):
    until_at = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > until_at, "the time")


def ended(client, server, relay, reason="drained"):
    assert client.end() == (b"", "close_notify")
    assert server.end() == (b"", "close_notify")
    assert relay.record()["reason"] == reason


def test_a_connection_ends_with_the_next_answer(start, door, pair):
    back = door()
    relay = start([back.address], top=STAY)
    client, server = pair(relay, back)
    exchange(client, server)
    drain(relay)
    exchange(client, server)
    ended(client, server, relay)
    assert relay.wait() == 0


def test_a_request_that_was_under_way_is_answered_first(start, door, pair):
    back = door()
    relay = start([back.address], top=STAY)
    client, server = pair(relay, back)
    exchange(client, server)
    client.send(REQUEST)
    assert server.receive(len(REQUEST)) == REQUEST
    drain(relay)
    for part in (ANSWER[:10], ANSWER[10:40], ANSWER[40:]):
        relay.let_it_turn(2)
        server.send(part)
        assert client.receive(len(part)) == part
    ended(client, server, relay)


def test_an_idle_connection_ends_soon(start, door, pair):
    back = door()
    relay = start([back.address], top="[relay]\ndrain_timeout_s = 8")
    client, server = pair(relay, back)
    exchange(client, server)
    drain(relay)
    ended(client, server, relay)
    assert relay.record()["duration_s"] < 6
    assert relay.wait() == 0


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
KINDS = {
    "chunked": (REQUEST, [CHUNKED, b"3\r\nabc\r\n", b"0\r\n\r\n"]),
    "interim": (
        b"POST /a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
        [b"HTTP/1.1 100 Continue\r\n\r\n", ANSWER],
    ),
    "head": (REQUEST.replace(b"GET", b"HEAD"), [ANSWER.removesuffix(b"hello")]),
    "not modified": (REQUEST, [b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"]),
    "large": (REQUEST, [b"HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n", bytes(500_000)]),
}


@pytest.mark.parametrize(("request_", "answers"), KINDS.values(), ids=KINDS)
def test_it_ends_with_the_last_byte_of_any_answer(start, door, pair, request_, answers):
    back = door()
    relay = start([back.address], top=STAY)
    client, server = pair(relay, back)
    exchange(client, server)
    drain(relay)
    client.send(request_)
    assert server.receive(len(request_)) == request_
    for at, answer in enumerate(answers):
        server.send(answer)
        assert client.receive(len(answer)) == answer
        if request_.startswith(b"POST") and at == 0:
            client.send(b"xy")
            assert server.receive(2) == b"xy"
    ended(client, server, relay)


def test_a_pipelined_request_is_not_lost(start, door, pair):
    back = door()
    relay = start([back.address], top=STAY)
    client, server = pair(relay, back)
    exchange(client, server)
    drain(relay)
    client.send(REQUEST + REQUEST)
    assert server.receive(2 * len(REQUEST)) == REQUEST + REQUEST
    for _ in range(2):
        server.send(ANSWER)
        assert client.receive(len(ANSWER)) == ANSWER


OTHERS = {
    "not HTTP": (b"hello", b"world"),
    "websocket": (
        REQUEST[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ),
}


@pytest.mark.parametrize(("request_", "answer"), OTHERS.values(), ids=OTHERS)
def test_other_protocols_go_on_until_the_deadline(start, door, pair, request_, answer):
    back = door()
    relay = start([back.address], top="[relay]\ndrain_timeout_s = 4")
    client, server = pair(relay, back)
    exchange(client, server, request_, answer)
    drain(relay)
    exchange(client, server, b"\x81\x03abc", b"\x81\x03def")
    assert relay.wait() == 0
    assert relay.record()["reason"] == "drain_timeout"


def test_an_answer_with_a_pause_in_it_is_not_cut(start, door, pair):
    """It began before the drain, so nothing is known of it but that it goes on."""
    back = door()
    relay = start([back.address], top="[relay]\ndrain_timeout_s = 40")
    client, server = pair(relay, back)
    exchange(client, server, REQUEST, CHUNKED)
    drain(relay)
    for _ in range(4):
        server.send(b"3\r\nabc\r\n")
        assert client.receive(8) == b"3\r\nabc\r\n"
        relay.let_it_turn(1)
    server.send(b"0\r\n\r\n")
    assert client.receive(5) == b"0\r\n\r\n"
    ended(client, server, relay)


def test_a_stream_of_events_is_not_cut_between_two(start, door, pair):
    """Its first event comes at once, and the next one after a long pause."""
    back = door()
    relay = start([back.address], top="[relay]\ndrain_timeout_s = 8")
    client, server = pair(relay, back)
    event = b"3\r\nabc\r\n"
    exchange(client, server, REQUEST, CHUNKED)
    server.send(event)
    assert client.receive(len(event)) == event
    drain(relay)
    wait_for_seconds(3)  # longer than the quiet time, a quarter of 8 s
    server.send(event)
    assert client.receive(len(event)) == event
    assert relay.wait() == 0
    assert relay.record()["reason"] == "drain_timeout"


LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 40000\r\n\r\n"
HEAD = REQUEST.replace(b"GET", b"HEAD")
# What the client sends, what the backend sends before the drain, and after a pause.
UNFINISHED = {
    "length": (REQUEST, [ANSWER[:-2]], ANSWER[-2:]),
    "length in many records": (REQUEST, [LONG, bytes(39_000)], bytes(1_000)),
    "chunked": (REQUEST, [CHUNKED, b"3\r\nabc\r\n"], b"0\r\n\r\n"),
    "head in two parts": (REQUEST, [ANSWER[:20]], ANSWER[20:]),
    "interim": (REQUEST, [b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"], ANSWER),
    "until the end": (REQUEST, [b"HTTP/1.1 200 OK\r\n\r\nhello"], b"world"),
    "no answer": (REQUEST, [], ANSWER),
    "pipelined": (REQUEST + REQUEST, [ANSWER], ANSWER),
    "pipelined behind a body": (
        b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nxy" + REQUEST,
        [ANSWER],
        ANSWER,
    ),
    "not modified, then pipelined": (
        REQUEST + REQUEST,
        [b"HTTP/1.1 304 Not Modified\r\n\r\n"],
        ANSWER,
    ),
}


@pytest.mark.parametrize("before", [0, 3], ids=["first exchange", "later exchange"])
@pytest.mark.parametrize(("request_", "parts", "rest"), UNFINISHED.values(), ids=UNFINISHED)
def test_no_pause_lets_an_answer_be_cut(start, door, pair, request_, parts, rest, before):
    back = door()
    relay = start([back.address], top="[relay]\ndrain_timeout_s = 8")
    client, server = pair(relay, back)
    for _ in range(before):
        exchange(client, server)
    client.send(request_)
    assert server.receive(len(request_)) == request_
    for part in parts:
        server.send(part)
        assert client.receive(len(part)) == part
    drain(relay)
    wait_for_seconds(3.5)  # longer than the quiet time, a quarter of 8 s
    server.send(rest)
    assert client.receive(len(rest)) == rest


FINISHED = {
    "length": (REQUEST, [ANSWER]),
    "length in many records": (REQUEST, [LONG, bytes(40_000)]),
    "chunked": (REQUEST, [CHUNKED, b"3\r\nabc\r\n", b"0\r\n\r\n"]),
    "chunked in one record": (REQUEST, [CHUNKED + b"3\r\nabc\r\n0\r\n\r\n"]),
    "head": (HEAD, [LONG]),
    "no content": (REQUEST, [b"HTTP/1.1 204 No Content\r\n\r\n"]),
    "not modified": (REQUEST, [b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"]),
    "post": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nxy", [ANSWER]),
}


@pytest.mark.parametrize("before", [0, 3], ids=["first exchange", "later exchange"])
@pytest.mark.parametrize(("request_", "answers"), FINISHED.values(), ids=FINISHED)
def test_an_idle_connection_ends_after(start, door, pair, request_, answers, before):
    """Its last exchange was complete when the drain began."""
    back = door()
    relay = start([back.address], top="[relay]\ndrain_timeout_s = 8")
    client, server = pair(relay, back)
    for _ in range(before):
        exchange(client, server)
    client.send(request_)
    assert server.receive(len(request_)) == request_
    for answer in answers:
        server.send(answer)
        assert client.receive(len(answer)) == answer
    drain(relay)
    ended(client, server, relay)
    assert relay.record()["duration_s"] < 6


def test_a_busy_connection_ends_when_it_is_idle(start, door, pair):
    """Its exchanges are kept again after the second in which there were too many."""
    back = door()
    relay = start([back.address], top="[relay]\ndrain_timeout_s = 8")
    client, server = pair(relay, back)
    for _ in range(RECORDS_PER_TICK):
        exchange(client, server)
    wait_for_seconds(1.5)
    exchange(client, server)
    drain(relay)
    ended(client, server, relay)
    assert relay.record()["duration_s"] < 7


def test_a_first_request_under_way_is_followed(start, door, pair):
    """The connection ends with the answer, though nothing had come from the backend."""
    back = door()
    relay = start([back.address], top=STAY)
    client, server = pair(relay, back)
    client.send(HEAD)
    assert server.receive(len(HEAD)) == HEAD
    drain(relay)
    server.send(LONG)
    assert client.receive(len(LONG)) == LONG
    ended(client, server, relay)


def test_max_session_s_ends_http_between_messages(start, door, pair):
    back = door()
    relay = start([back.address], listener="max_session_s = 20")
    client, server = pair(relay, back)
    for _ in range(30):
        client.send(REQUEST)
        request = server.receive_some()
        if not request:  # it came too late, which nobody can prevent (RFC 9112, 9.3.1)
            break
        assert request == REQUEST
        server.send(ANSWER)
        assert client.receive(len(ANSWER)) == ANSWER
        relay.let_it_turn(1)
        if relay.value("relay_connections_active") == 0:
            break
    assert client.end() == (b"", "close_notify")
    record = relay.record()
    assert record["reason"] == "max_session"
    assert 20 * 0.9 * 0.9 <= record["duration_s"] <= 20


def test_max_session_s_ends_every_other_session(start, door, pair):
    back = door()
    relay = start([back.address], listener="max_session_s = 2")
    pairs = [pair(relay, back) for _ in range(8)]
    for client, server in pairs:
        exchange(client, server, b"ping", b"pong")
    for client, server in pairs:
        assert client.end() == (b"", "close_notify")
        assert server.end() == (b"", "close_notify")
    records = [relay.record(number) for number in range(8)]
    assert {record["reason"] for record in records} == {"max_session"}
    lasted = sorted(record["duration_s"] for record in records)
    assert lasted[0] >= 1.8
    assert lasted[-1] <= 2.5
    assert lasted[-1] - lasted[0] > 0.1, "they do not end together"


def test_max_session_s_ends_a_client_that_is_not_admitted_yet(start, door, stack):
    relay = start([door().address], top="[timeouts]\nhello_s = 60", listener="max_session_s = 1")
    client = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), 10))
    assert client.recv(1) == b""
    assert relay.record()["reason"] == "max_session"
