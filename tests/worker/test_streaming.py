"""Fast streams in a worker: what comes in the middle of them, what is beside them."""

import hashlib
import random
import select
import signal
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from relay.core.kicks import Kick, parse_target
from relay.shared.scoreboard import PHASE, PHASE_DRAINING
from relay.worker.kicked import KickUpdate
from tests.support.peer import PATIENCE_S, dial, exchange
from tests.support.plain import UnixDoor, unix_toml
from tests.support.records import (
    DATA,
    HANDSHAKE,
    KEY_UPDATE,
    KEY_UPDATE_PLEASE,
)
from tests.support.worker import RunningWorker, client_context, pool_toml, route_toml, wait_until

pytestmark = pytest.mark.usefixtures("streams")
MB = 1024 * 1024
BLOB = random.Random(13).randbytes(MB)
LISTENER = '[[listener]]\nname = "https"\nlisten = ["127.0.0.1:0"]\n'
# A full record, records of other programs, and very short ones.
SIZES = (16_384, 4096, 8192, 1, 16_383, 2500, 100)


@pytest.fixture
def narrow(tmp_path, pki, stack):
    """A worker whose sockets take little."""

    def start(address, top=""):
        toml = f"{top}\n{LISTENER}{route_toml(pki)}\n{pool_toml(pki, [address])}"
        relay = RunningWorker(tmp_path, toml, send_buffer=4096)
        stack.callback(relay.close)
        return relay

    return start


def records_of(client, size, update, every):
    """The records of a stream of BLOB, of mixed sizes, with key updates in it."""
    made, at, number = [], 0, 0
    while at < size:
        piece = BLOB[at : min(size, at + SIZES[number % len(SIZES)])]
        made.append(client.record(DATA, piece))
        at += len(piece)
        number += 1
        if number % every == 0:
            made.append(client.record(HANDSHAKE, update))
    return made


@pytest.mark.parametrize("update", [KEY_UPDATE, KEY_UPDATE_PLEASE], ids=["told", "asked"])
@pytest.mark.parametrize("every", [1, 7])
def test_key_updates_in_mid_stream_lose_nothing(start, door, writer, update, every):
    back = door()
    relay = start([back.address])
    client = writer(relay)
    server = back.accept()
    client.send(*records_of(client, MB, update, every))
    assert server.receive(MB) == BLOB
    server.send(b"the answer")
    assert client.peer.receive(10) == b"the answer"


def test_many_records_without_data_do_not_end_a_stream(start, door, writer):
    back = door()
    relay = start([back.address])
    client = writer(relay)
    server = back.accept()
    silent = [client.record(HANDSHAKE, KEY_UPDATE) for _ in range(300)]
    client.send(*silent, *records_of(client, MB, KEY_UPDATE, 1000))
    assert server.receive(MB) == BLOB


def test_an_unread_answer_goes_before_the_backends_bytes(narrow, door, writer):
    """The client asks for key updates and reads nothing, while both sides stream."""
    size = 300_000
    back = door()
    relay = narrow(back.address)
    client = writer(relay)
    server = back.accept()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    server.sock.setblocking(False)
    records = b"".join(records_of(client, size, KEY_UPDATE_PLEASE, 1))
    client.sock.setblocking(False)
    sent, got, unsent, answer = 0, 0, size, b""
    state, received = hashlib.sha256(), bytearray()
    quiet_since = time.monotonic()
    reads = False
    while got < size or len(received) < size:
        writers = [client.sock] if sent < len(records) else []
        writers += [server.sock] if unsent or answer else []
        readers = [server.sock, *([client.sock] if reads else [])]
        readable, writable, _ = select.select(readers, writers, [], 0.3)
        if not (readable or writable):
            assert not reads or time.monotonic() - quiet_since < PATIENCE_S, "nothing moves"
            reads = True  # everything is full
            continue
        quiet_since = time.monotonic()
        if client.sock in writable:
            sent += client.sock.send(memoryview(records)[sent:])
        if server.sock in writable:
            if not answer:
                server.tls.write(BLOB[size - unsent : size - unsent + min(unsent, 10_000)])
                unsent -= min(unsent, 10_000)
                answer = server._out.read()
            answer = answer[server.sock.send(answer) :]
        for peer in (server, client.peer):
            if peer.sock in readable:
                data = read_now(peer)
                if peer is server:
                    state.update(data)
                    got += len(data)
                else:
                    received += data
    assert bytes(received) == BLOB[:size]
    assert state.digest() == hashlib.sha256(BLOB[:size]).digest()


def read_now(peer):
    """What a peer on a non-blocking socket can read; its own answers are not sent."""
    peer._in.write(peer.sock.recv(65_536))
    data = bytearray()
    while True:
        try:
            data += peer.tls.read(65_536)
        except ssl.SSLWantReadError:
            return bytes(data)


def test_a_slow_reader_of_a_stream_is_not_idle(narrow, backend, call):
    size = 160_000

    def send_all(connection):
        for at in range(0, size, 4000):
            connection.sendall(BLOB[at : at + 4000])
        connection.unwrap()

    relay = narrow(backend(send_all).address, top="[timeouts]\nidle_s = 2")
    client = call(relay)
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    began_at, got = time.monotonic(), bytearray()
    while len(got) < size:
        data = client.sock.recv(2000)
        assert data, "the session has ended early"
        client._in.write(data)
        try:
            got += client.tls.read(16_384)
        except ssl.SSLWantReadError:
            time.sleep(0.01)  # what makes it slow
    assert time.monotonic() - began_at > 2, "it was slower than idle_s"
    assert bytes(got) == BLOB[:size]
    assert client.end() == (b"", "close_notify")


def test_a_stream_ends_a_direction_and_the_other_goes_on(start, door, pair):
    back = door()
    relay = start([back.address])
    client, server = pair(relay, back)
    client.send(BLOB[: 3 * 4096])
    client.close_notify()
    client.fin()
    assert server.end() == (BLOB[: 3 * 4096], "close_notify")
    for _ in range(4):
        server.send(BLOB)
        assert client.receive(MB) == BLOB
    server.close()
    assert client.end() == (b"", "close_notify")
    record = relay.record()
    assert (record["reason"], record["bytes_in"], record["bytes_out"]) == (
        "finished",
        3 * 4096,
        4 * MB,
    )


def test_a_key_update_after_our_close_notify_is_not_answered(start, door, writer):
    """The backend has ended, and the client goes on: its requests get no answer."""
    back = door()
    relay = start([back.address])
    client = writer(relay)
    server = back.accept()
    server.close_notify()
    server.fin()
    assert client.peer.end() == (b"", "close_notify")
    for number in range(20):
        piece = BLOB[number * 1000 : number * 1000 + 1000]
        client.send(client.record(HANDSHAKE, KEY_UPDATE_PLEASE), client.record(DATA, piece))
        assert server.receive(1000) == piece
    client.sock.close()
    assert relay.record()["bytes_in"] == 20_000


def test_a_drain_lets_streams_finish(start, door, pair):
    back = door()
    relay = start([back.address], top="[relay]\ndrain_timeout_s = 60")
    client, server = pair(relay, back)
    assert exchange([client, server], BLOB, 3) == [hashlib.sha256(BLOB * 3).digest()] * 2
    relay.signal(signal.SIGTERM)
    wait_until(lambda: relay.cells[PHASE] == PHASE_DRAINING, "the drain")
    assert exchange([client, server], BLOB, 10) == [hashlib.sha256(BLOB * 10).digest()] * 2
    for peer in (client, server):
        peer.sock.settimeout(PATIENCE_S)
    client.close()
    server.close()
    assert relay.wait() == 0
    assert relay.record()["reason"] == "finished"


def test_a_kick_ends_a_stream_at_once(start, backend, call):
    def send_for_ever(connection):
        while True:
            connection.sendall(BLOB)

    relay = start([backend(send_for_ever).address])
    client = call(relay)
    assert client.receive_some()
    asked = Kick(parse_target("CN=alice"), "root (uid 0)", "", time.monotonic(), 1e9)
    relay.update(KickUpdate((asked,), asked))
    client.end()
    assert relay.record()["reason"] == "kicked"
    assert relay.value("relay_connections_active") == 0


def test_a_reset_of_a_streaming_backend_is_logged_as_such(start, door, pair):
    back = door()
    relay = start([back.address])
    client, server = pair(relay, back)
    server.send(BLOB)
    server.reset()
    data, _ = client.end()
    assert BLOB.startswith(data)
    record = relay.record()
    assert (record["reason"], record["side"]) == ("outbound_reset", "outbound")
    assert record["bytes_out"] == len(data)


@pytest.mark.parametrize("update", [KEY_UPDATE, KEY_UPDATE_PLEASE], ids=["told", "asked"])
def test_a_reset_with_an_answer_pending_is_no_end(start, door, writer, update):
    """The answer to a key update takes the socket's error. A cut upload is cut."""
    back = door()
    relay = start([back.address])
    client = writer(relay)
    server = back.accept()
    client.send(client.record(DATA, b"x"))
    assert server.receive(1) == b"x"
    full = BLOB[:16_384]
    # OpenSSL answers when a second one comes.
    records = [client.record(DATA, full) for _ in range(4)]
    records += [client.record(HANDSHAKE, update) for _ in range(2)]
    records += [client.record(DATA, full) for _ in range(2)]
    relay.suspend()
    client.send(*records)
    wait_until(lambda: client.peer.unacknowledged() == 0, "all bytes are in relay's socket")
    client.peer.reset()
    relay.signal(signal.SIGCONT)
    assert server.end() == (full * 6, "fin")
    server.sock.close()
    record = relay.record()
    assert (record["reason"], record["side"]) == ("inbound_reset", "inbound")
    assert record["detail"] == "Connection reset by peer"


def test_a_unix_backends_client_gets_held_answers_only_once(tmp_path, pki, stack, writer):
    """The client asks for key updates for ever, and reads nothing."""
    door = UnixDoor(tmp_path / "app.sock")
    stack.callback(door.close)
    relay = RunningWorker(tmp_path, unix_toml(pki, [door.path]), send_buffer=4096)
    stack.callback(relay.close)
    client = writer(relay)
    server = door.accept()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.send(client.record(DATA, b"hi"))
    assert server.recv(2) == b"hi"
    server.setblocking(False)
    sent = bytearray()
    while select.select([], [server], [], 0.3)[1]:
        size = server.send(BLOB[len(sent) : len(sent) + 65_536])
        sent += BLOB[len(sent) : len(sent) + size]
    flood = b"".join(client.record(HANDSHAKE, KEY_UPDATE_PLEASE) for _ in range(40_000))
    before = relay.cpu_s()
    client.send_until_stuck(flood)
    relay.let_it_turn()
    # With an answer to each it would hold half a megabyte, and copy it each time.
    assert relay.cpu_s() - before < 1
    client.sock.settimeout(PATIENCE_S)
    assert client.peer.receive(len(sent)) == bytes(sent)


def test_a_passthrough_stream_goes_on_beside_others(tmp_path, pki, stack, door):
    """Bytes of another route, which are not decrypted, through the same worker."""
    back = door()
    through = '[[listener.route]]\nsni = ["raw.example.com"]\nmode = "passthrough"\npool = "main"\n'
    toml = f"{LISTENER}{through}{route_toml(pki)}{pool_toml(pki, [back.address])}"
    relay = RunningWorker(tmp_path, toml)
    stack.callback(relay.close)
    context = client_context(pki, pki.client)
    context.check_hostname = False  # on one of them it is the backend's certificate
    ends = []
    with ThreadPoolExecutor(1) as pool:
        for name in ("app.example.com", "raw.example.com"):
            accepted = pool.submit(back.accept)
            client = dial(relay.port, context, name)
            stack.callback(client.sock.close)
            ends += [client, accepted.result(PATIENCE_S)]
    assert exchange(ends, BLOB, 8) == [hashlib.sha256(BLOB * 8).digest()] * 4


def test_small_messages_go_on_beside_streams(start, door, pair):
    back = door()
    relay = start([back.address])
    small, server = pair(relay, back)
    streams = [pair(relay, back) for _ in range(4)]
    for client, end in streams:
        for peer in (client, end):
            peer.sock.setblocking(False)
    answered = moved = 0
    while answered < 200:
        for client, end in streams:
            moved += push(end)
            pull(client)
        small.send(b"ping")
        assert server.receive(4) == b"ping"
        server.send(b"pong")
        assert small.receive(4) == b"pong"
        answered += 1
    assert moved > MB


def push(peer):
    """Write what the socket takes."""
    left = getattr(peer, "left", b"")
    if not left:
        peer.tls.write(BLOB[:16_384])
        left = peer._out.read()
    try:
        sent = peer.sock.send(left)
    except BlockingIOError:
        sent = 0
    peer.left = left[sent:]
    return sent


def pull(peer):
    """Take what has come, without looking at it."""
    with_data = select.select([peer.sock], [], [], 0)[0]
    return len(peer.sock.recv(1 << 20)) if with_data else 0
