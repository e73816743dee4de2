"""What moves a session: bytes and deadlines that come at a bad moment."""

import itertools
import signal
import socket
import threading
from types import SimpleNamespace

import pytest

from relay.core.lifecycle import State
from relay.worker import outbound
from relay.worker.connection import Connection
from relay.worker.driver import DrivenSession
from relay.worker.loop import IN, Loop
from relay.worker.session import STEP_QUEUES
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
    session = DrivenSession(worker, None, here, ("127.0.0.1", 1))
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
