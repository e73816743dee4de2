"""What moves a session: bytes and deadlines that come at a bad moment."""

import itertools
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from relay.core.lifecycle import State
from relay.errors import Reason
from relay.tls import stream
from relay.worker import outbound
from relay.worker.connection import Connection
from relay.worker.driver import DrivenSession
from relay.worker.loop import HANDSHAKES_PER_TURN, IN, Loop
from relay.worker.session import STEP_QUEUES, Listener
from tests.support.peer import PATIENCE_S, Peer
from tests.support.worker import client_context, wait_until

RECORD = 16_384
SMALLEST_SEGMENT = 88


@pytest.fixture
def small_pair(start, door, pki, stack):
    """A worker, a client that can be sent little at once, and its backend."""
    behind = door()
    relay = start([behind.address])
    sock = socket.socket()
    stack.callback(sock.close)
    # The kernel's room for what is sent depends on the size of the segments.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SMALLEST_SEGMENT)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    sock.settimeout(PATIENCE_S)
    sock.connect(("127.0.0.1", relay.port))
    context = client_context(pki, pki.client)
    client = Peer(sock, context, server_side=False, name="app.example.com")
    server = behind.accept()
    server.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    wait_until(lambda: relay.value("relay_handshakes_total", "outbound", "ok"), "the handshakes")
    return relay, client, server


def records(count):
    return [bytes([number]) * RECORD for number in range(count)]


def received(client, count):
    """What arrives, as the numbers of the records it is from."""
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    data = client.receive(count * RECORD)
    return [set(data[at : at + RECORD]) for at in range(0, len(data), RECORD)]


def test_held_first_bytes_are_written_first(small_pair):
    """The backend speaks first, and its first record does not fit into the socket."""
    _, client, server = small_pair
    sent = records(16)
    threading.Thread(target=server.send, args=(b"".join(sent),), daemon=True).start()
    assert received(client, len(sent)) == [set(record) for record in sent]


def test_both_sides_speak_in_one_turn(small_pair):
    """The first event is the client's; the backend is read before its own event."""
    relay, client, server = small_pair
    relay.suspend()
    try:
        client.send(b"?")
        wait_until(lambda: not client.unacknowledged(), "the request in the worker's kernel")
        sent = records(16)
        server.send(b"".join(sent))
    finally:
        relay.signal(signal.SIGCONT)
    assert server.receive(1) == b"?"
    assert received(client, len(sent)) == [set(record) for record in sent]


@pytest.fixture
def connecting(monkeypatch, stack):
    """A session whose first attempt to connect is still queued."""
    loop, calls = Loop(len(STEP_QUEUES)), []
    stack.callback(loop.close)
    patience_s = dict.fromkeys(State, 5.0)
    worker = SimpleNamespace(loop=loop, numbers=itertools.count(1), patience_s=patience_s)
    here, there = socket.socketpair()
    stack.callback(here.close)
    stack.callback(there.close)
    session = DrivenSession(worker, Listener("https", None), here, ("127.0.0.1", 1))
    session.state, session.since_at = State.CONNECT, loop.now - 5
    session.on_wake(IN)

    def begin(session, _attempt):  # the backend's host does not answer
        calls.append(session.state)
        session.backend, session.outbound = "b1", Connection(here)
        session.since_at = loop.now

    monkeypatch.setattr(outbound, "_choose", lambda _session: "b1")
    monkeypatch.setattr(outbound, "_begin", begin)
    return session, calls


def test_a_late_first_attempt_has_its_own_deadline(connecting):
    """The deadline came before the queued step. Without another one it would hang."""
    session, calls = connecting
    session.on_deadline()
    assert calls == [State.CONNECT]
    assert session.timer_at == session.worker.loop.now + 5


def test_a_step_that_the_deadline_took_is_not_taken_again(connecting):
    """It would mistake a connection that is not there yet for an established one."""
    session, calls = connecting
    session.on_deadline()
    session.step()
    assert calls == [State.CONNECT]
    assert session.state is State.CONNECT


@pytest.mark.parametrize("state", [State.CONNECT, State.OUTBOUND_TLS])
def test_a_late_worker_does_not_blame_the_backend(connecting, monkeypatch, state):
    """The backend has answered, and the step that would see it is queued."""
    session, calls = connecting
    loop, progress = session.worker.loop, stream.STEP_WANT_READ
    session.worker.handshaker = SimpleNamespace(step=lambda *_: progress)
    monkeypatch.setattr(outbound, "give_up", lambda _session, failure: calls.append(failure))
    target = SimpleNamespace(pool="main", route="b1", address="")
    session.backend = SimpleNamespace(admit=lambda *_: None, target=target, tls=object())
    session.outbound = Connection(session.inbound.sock)
    session.outbound.ssl = object()
    session.inbound.ssl = object()
    session.state = state
    session.on_deadline()
    assert session.state is State.OUTBOUND_TLS
    if state is State.CONNECT:  # the handshake has time of its own
        assert session.timer_at == loop.now + 5
        assert calls == []
    else:  # it had been late already, and goes on no further
        assert session.timer_at <= loop.now
        session.on_deadline()
        assert [failure.reason for failure in calls] == [Reason.BACKEND_HANDSHAKE_TIMEOUT]


def test_a_stopped_worker_blames_no_backend(start, door, call):
    """The backend answers in time, to more sessions than get a step in one turn."""
    behind = door()
    relay = start([behind.address], top="[timeouts]\nhandshake_s = 1")
    clients = [call(relay) for _ in range(3 * HANDSHAKES_PER_TURN)]
    with ThreadPoolExecutor(len(clients)) as pool:
        sockets = [behind.accept_tcp() for _ in clients]
        assert all(sock.recv(1, socket.MSG_PEEK) for sock in sockets)
        relay.suspend()
        answered = [pool.submit(Peer, sock, behind.context, server_side=True) for sock in sockets]
        time.sleep(1.2)  # longer than handshake_s
        relay.signal(signal.SIGCONT)
        servers = [each.result() for each in answered]
    assert relay.value("relay_handshakes_total", "outbound", "backend_handshake_timeout") == 0
    for server in servers:
        server.send(b"hello")
    assert [client.receive(5) for client in clients] == [b"hello"] * len(clients)
