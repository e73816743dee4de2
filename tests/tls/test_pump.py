"""The pump between two real TLS connections: bytes, ends, failures."""

import contextlib
import os
import socket
import ssl
import subprocess
from dataclasses import dataclass

import pytest

from relay.errors import Reason, Side
from relay.tls import pump as pump_module
from relay.tls import stream, streaming
from relay.tls.explain import Failure
from relay.tls.pump import BUDGET_BYTES, BUFFER_BYTES, Pump, Status, watch_alerts
from relay.tls.raw import BOTH_SHUT, NULL, RECORD_BYTES, ffi, lib
from relay.worker.transfer import Transfer
from tests.support import programs
from tests.support.handshakes import (
    MOST_STEPS,
    NAME,
    PATIENCE_S,
    VERSIONS,
    Meeting,
    accept_on,
    client_context,
    meet_backend,
    meet_client,
    reset,
    route_of,
    server_context,
    target_of,
    tcp_pair,
    wait_readable,
)
from tests.support.streams import End, stream_always

both_versions = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
PATTERN = bytes(range(256)) * 64
assert len(PATTERN) == RECORD_BYTES


@pytest.fixture(autouse=True, params=["ordinary", "streaming"])
def streams(request, monkeypatch):
    """Whether every byte goes through `streaming.stream`."""
    if request.param == "streaming":
        stream_always(monkeypatch)
    return request.param == "streaming"


@dataclass
class Relaying:
    """A stdlib client and backend, and the relay's two connections between them."""

    client: Meeting
    backend: Meeting
    pump: Transfer

    def inwards(self) -> int:
        """Move once from the client to the backend."""
        return self._move(self.client, self.backend)

    def outwards(self) -> int:
        """Move once from the backend to the client."""
        return self._move(self.backend, self.client)

    def _move(self, source: Meeting, sink: Meeting) -> int:
        return self.pump.move(End(source.sock, source.ssl), End(sink.sock, sink.ssl))

    def when_readable(self, meeting: Meeting) -> int:
        """Wait for the meeting's peer, then move what it sent."""
        wait_readable(meeting.sock)
        return self.inwards() if meeting is self.client else self.outwards()

    def until(self, meeting: Meeting, status: Status) -> int:
        """Move until something unusual happens, which must be this; returns the bytes
        moved.
        """
        total = 0
        for _ in range(MOST_STEPS):
            size = self.when_readable(meeting)
            if size < 0:
                assert self.pump.status is status
                return total + ~size
            total += size
        raise AssertionError("nothing unusual happens")


@contextlib.contextmanager
def relayed(pki, version):
    with (
        meet_client(
            route_of(pki), client_context(pki, pki.client, version), pair=tcp_pair
        ) as client,
        meet_backend(
            target_of(pki), server_context(pki, pki.backend, version), pair=tcp_pair
        ) as backend,
    ):
        made = Relaying(client, backend, Transfer())
        watch_alerts(client.ssl)
        watch_alerts(backend.ssl)
        for _ in range(2):
            assert (
                made.outwards() == 0
            )  # a TLS 1.3 backend's tickets: each needs a read that returns no bytes
        yield made
    assert lib.ERR_peek_error() == 0


@pytest.fixture(params=VERSIONS.values(), ids=VERSIONS)
def relaying(request, pki):
    with relayed(pki, request.param) as made:
        yield made


def read_all(peer: ssl.SSLSocket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        try:
            chunk = peer.recv(65536)
        except ssl.SSLWantReadError:
            wait_readable(peer)
            continue
        assert chunk, f"the end after {len(data)} of {size} bytes"
        data += chunk
    return bytes(data)


@contextlib.contextmanager
def below(peer: ssl.SSLSocket):
    """The peer's socket without its TLS."""
    raw = socket.socket(fileno=os.dup(peer.fileno()))
    with raw:
        yield raw


def bare_fin(peer: ssl.SSLSocket) -> None:
    with below(peer) as raw:
        raw.shutdown(socket.SHUT_WR)


def say_close_notify(peer: ssl.SSLSocket) -> None:
    with pytest.raises(ssl.SSLWantReadError):
        peer.unwrap()


def leave_error() -> None:
    """Leave an error in OpenSSL's queue, like an uncleared failure of another
    connection.
    """
    lib.ERR_put_error(lib.ERR_LIB_EVP, 0, 101, NULL, 0)
    assert lib.ERR_peek_error() != 0


def test_bytes_go_both_ways_and_are_counted(relaying):
    relaying.client.peer.send(b"request")
    assert relaying.when_readable(relaying.client) == 7
    assert read_all(relaying.backend.peer, 7) == b"request"
    relaying.backend.peer.send(b"the answer")
    assert relaying.when_readable(relaying.backend) == 10
    assert read_all(relaying.client.peer, 10) == b"the answer"


def test_nothing_to_read_is_no_bytes_and_no_status(relaying):
    for _ in range(3):
        assert relaying.inwards() == 0
        assert relaying.outwards() == 0
    assert relaying.pump.status is Status.OPEN
    assert lib.ERR_peek_error() == 0


def test_half_a_record_gives_no_bytes_until_it_is_complete(relaying, pki):
    peer = relaying.client.peer
    # The stdlib writes whole records, so a second socket pair forwards it in pieces.
    ours, theirs = tcp_pair()
    with ours, theirs:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = peer.context.wrap_bio(incoming, outgoing, server_hostname=NAME)
        route = route_of(pki)
        connection = accept_on(route, ours)
        done = False
        for _ in range(MOST_STEPS):
            if not done:
                with contextlib.suppress(ssl.SSLWantReadError):
                    client.do_handshake()
                    done = True
            theirs.send(outgoing.read())
            if stream.handshake(connection, Side.INBOUND) is stream.DONE and done:
                break
            with contextlib.suppress(BlockingIOError):
                incoming.write(theirs.recv(65536))
        assert done
        client.write(b"x" * 1000)
        record = outgoing.read()
        theirs.send(record[:500])
        wait_readable(ours)
        end = End(ours, connection)
        sink = End(relaying.backend.sock, relaying.backend.ssl)
        assert relaying.pump.move(end, sink) == 0
        assert relaying.pump.move(end, sink) == 0
        theirs.send(record[500:])
        wait_readable(ours)
        assert relaying.pump.move(end, sink) == 1000
        assert read_all(relaying.backend.peer, 1000) == b"x" * 1000
        stream.free(connection, established=True)


def test_a_call_moves_no_more_than_its_budget_and_leaves_the_rest(relaying, monkeypatch):
    assert BUDGET_BYTES == 16 * RECORD_BYTES
    monkeypatch.setattr(pump_module, "BUDGET_BYTES", 2 * RECORD_BYTES)
    monkeypatch.setattr(streaming, "CHUNK_BYTES", 2 * (RECORD_BYTES + 22))
    for _ in range(5):
        assert relaying.client.peer.send(PATTERN) == RECORD_BYTES
    total = 0
    for expected in (2, 2, 1):
        for _ in range(MOST_STEPS):  # the last record of a call may still be incomplete
            size = relaying.when_readable(relaying.client)
            assert 0 <= size <= 2 * RECORD_BYTES
            total += size
            if total >= RECORD_BYTES * min(5, total // RECORD_BYTES + expected):
                break
        if total == 5 * RECORD_BYTES:
            break
    assert total == 5 * RECORD_BYTES
    assert read_all(relaying.backend.peer, total) == PATTERN * 5


@pytest.mark.parametrize("direction", ["inwards", "outwards"])
def test_a_sink_that_does_not_read_holds_one_record_and_loses_none(relaying, streams, direction):
    source, sink = (
        (relaying.client, relaying.backend)
        if direction == "inwards"
        else (relaying.backend, relaying.client)
    )
    pump, sent, moved = relaying.pump, 0, 0

    def fill():
        nonlocal sent, moved
        for _ in range(20_000):
            with contextlib.suppress(ssl.SSLWantWriteError):
                source.peer.send(PATTERN)
                sent += 1
            size = relaying.inwards() if source is relaying.client else relaying.outwards()
            moved += max(size, ~size)
            if size < 0:
                break
        else:
            raise AssertionError("the sink takes all that comes")
        assert pump.status is Status.BLOCKED
        held = pump.held
        if streams:  # it also holds the rest of the record that OpenSSL has decrypted
            assert 0 < held.size < BUFFER_BYTES + RECORD_BYTES
            most = held.size + 5 * 29
            assert len(held.data) <= most, "a header, a nonce and a tag for each record"
            return held
        assert held == PATTERN[moved % RECORD_BYTES :][: len(held)]
        assert 0 < len(held) <= RECORD_BYTES
        return bytes(bytearray(held))  # other memory than at the first attempt

    held, end, blocked = fill(), End(sink.sock, sink.ssl), 0
    assert lib.ERR_peek_error() == 0
    for _ in range(MOST_STEPS):
        size = pump.put(end, held)
        moved += max(size, ~size)
        # The kernel may send more a little later, and then it has room again.
        blocked = blocked + 1 if size == ~0 else 0
        if size < 0:
            assert pump.status is Status.BLOCKED
            held = pump.held
        else:
            held = fill()
        assert lib.ERR_peek_error() == 0
        if blocked == 3:
            break
    assert blocked == 3
    got = bytearray(read_all(sink.peer, moved))
    size = ~0
    while size < 0:
        size = pump.put(end, held)
        held = pump.held
    got += read_all(sink.peer, size)
    assert bytes(got) == (PATTERN * (len(got) // RECORD_BYTES + 1))[: len(got)]
    # The connection continues.
    while len(got) < sent * RECORD_BYTES:
        size = relaying.when_readable(source)
        assert size >= 0
        got += read_all(sink.peer, size)
    assert bytes(got) == PATTERN * sent


@pytest.mark.parametrize("side", Side)
def test_close_notify_is_an_end_and_a_bare_fin_a_truncation(relaying, side):
    source, sink = (
        (relaying.client, relaying.backend)
        if side is Side.INBOUND
        else (relaying.backend, relaying.client)
    )
    source.peer.send(b"last")
    say_close_notify(source.peer)
    assert relaying.until(source, Status.ENDED) == 4
    assert read_all(sink.peer, 4) == b"last"
    sink.peer.send(b"more")
    bare_fin(sink.peer)
    assert relaying.until(sink, Status.TRUNCATED) == 4
    assert read_all(source.peer, 4) == b"more"
    assert lib.ERR_peek_error() == 0


def test_an_end_after_a_whole_record_comes_with_its_bytes(relaying):
    relaying.client.peer.send(PATTERN)
    say_close_notify(relaying.client.peer)
    assert relaying.until(relaying.client, Status.ENDED) == RECORD_BYTES
    assert read_all(relaying.backend.peer, RECORD_BYTES) == PATTERN


def test_after_a_bare_fin_the_other_direction_goes_on(relaying):
    bare_fin(relaying.client.peer)
    assert relaying.until(relaying.client, Status.TRUNCATED) == 0
    for _ in range(3):
        relaying.backend.peer.send(PATTERN)
        total = 0
        while total < RECORD_BYTES:
            total += relaying.when_readable(relaying.backend)
        assert read_all(relaying.client.peer, RECORD_BYTES) == PATTERN


@both_versions
def test_one_connections_close_notify_is_not_anothers(pki, version):
    with relayed(pki, version) as one, relayed(pki, version) as other:
        say_close_notify(one.client.peer)
        wait_readable(one.client.sock)
        assert (
            lib.SSL_read(one.client.ssl, ffi.new("char[10]"), 10) == 0
        )  # the test read it, and not the pump
        bare_fin(other.client.peer)
        assert other.until(other.client, Status.TRUNCATED) == 0
        assert one.inwards() == ~0
        assert one.pump.status is Status.ENDED


@pytest.mark.parametrize("side", Side)
def test_a_reset_source_has_failed_with_its_sides_reason(relaying, side):
    source = relaying.client if side is Side.INBOUND else relaying.backend
    reset(source.peer)
    relaying.until(source, Status.SOURCE_FAILED)
    assert stream.failure(side) == Failure(
        Reason.PEER_GONE if side is Side.INBOUND else Reason.BACKEND_GONE,
        "Connection reset by peer",
    )
    assert lib.ERR_peek_error() == 0


@pytest.mark.parametrize("side", Side)
def test_a_source_that_sends_no_ciphertext_fails_alone(relaying, pki, side):
    source = relaying.client if side is Side.INBOUND else relaying.backend
    with below(source.peer) as raw:
        raw.send(b"\x17\3\3\0\x40" + bytes(64))
    relaying.until(source, Status.SOURCE_FAILED)
    failure = stream.failure(side)
    assert failure.reason is (
        Reason.TLS_ERROR if side is Side.INBOUND else Reason.BACKEND_TLS_ERROR
    )
    assert "decryption failed or bad record mac" in failure.detail
    assert lib.ERR_peek_error() == 0
    with relayed(pki, VERSIONS["TLSv1.3"]) as another:
        another.client.peer.send(b"unharmed")
        assert another.when_readable(another.client) == 8


@pytest.mark.parametrize("side", Side)
def test_a_fatal_alert_is_the_reason_of_the_failure(relaying, side):
    source = relaying.client if side is Side.INBOUND else relaying.backend
    # The peer's OpenSSL gets garbage from the relay and sends an alert.
    source.sock.send(b"\x17\3\3\0\x40" + bytes(64))
    wait_readable(source.peer)
    with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac"):
        source.peer.recv(10)
    relaying.until(source, Status.SOURCE_FAILED)
    who, reason = (
        ("client", Reason.ALERT_OTHER)
        if side is Side.INBOUND
        else ("backend", Reason.BACKEND_ALERT_OTHER)
    )
    assert stream.failure(side) == Failure(reason, f"the {who} sent the alert bad_record_mac")
    assert lib.ERR_peek_error() == 0


def test_a_sink_that_has_reset_has_failed(relaying):
    reset(relaying.backend.peer)
    for _ in range(MOST_STEPS):
        relaying.client.peer.send(b"anybody there?")
        size = relaying.when_readable(relaying.client)
        if size < 0:
            break
    assert relaying.pump.status is Status.SINK_FAILED
    failure = stream.failure(Side.OUTBOUND)
    assert failure.reason is Reason.BACKEND_GONE
    assert failure.detail in {"Connection reset by peer", "Broken pipe"}
    assert lib.ERR_peek_error() == 0
    assert relaying.pump.push(relaying.backend.ssl, b"held") == ~0
    assert relaying.pump.status is Status.SINK_FAILED
    assert stream.failure(Side.OUTBOUND).reason in {Reason.BACKEND_GONE, Reason.BACKEND_TLS_ERROR}
    assert lib.ERR_peek_error() == 0


def test_a_sink_that_was_shut_down_has_failed(relaying):
    lib.SSL_set_shutdown(relaying.backend.ssl, BOTH_SHUT)
    relaying.client.peer.send(b"too late")
    relaying.until(relaying.client, Status.SINK_FAILED)
    assert stream.failure(Side.OUTBOUND).reason is Reason.BACKEND_TLS_ERROR
    assert lib.ERR_peek_error() == 0


def test_every_explained_failure_leaves_the_error_queue_empty(relaying):
    """The pump does not clear the queue before a read: every failure must clear it."""
    leave_error()
    assert stream.failure(Side.INBOUND).reason is Reason.TLS_ERROR
    assert lib.ERR_peek_error() == 0
    assert relaying.inwards() == 0


@both_versions
def test_key_updates_work_and_renegotiations_have_a_reason(pki, version):
    with (
        meet_backend(target_of(pki), server_context(pki, pki.backend), pair=tcp_pair) as backend,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        listener.settimeout(PATIENCE_S)
        command = [
            programs.program("openssl"),
            "s_client",
            "-connect",
            f"127.0.0.1:{listener.getsockname()[1]}",
            "-servername",
            NAME,
            "-cert",
            pki.client.certificate,
            "-key",
            pki.client.key,
        ]
        command.append("-tls1_2" if version is VERSIONS["TLSv1.2"] else "-tls1_3")
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as program:
            ours, _ = listener.accept()
            with ours:
                ours.setblocking(False)
                route = route_of(pki)
                connection = accept_on(route, ours)
                while stream.handshake(connection, Side.INBOUND) is not stream.DONE:
                    wait_readable(ours)
                watch_alerts(connection)
                pump = Pump()
                before = b"before\n"
                program.stdin.write(before)
                program.stdin.flush()
                assert moved(pump, connection, backend, ours, len(before)) == before
                if version is VERSIONS["TLSv1.3"]:
                    program.stdin.write(b"K\n")  # the program's command: update both keys
                    program.stdin.flush()
                    wait_readable(ours)
                    assert pump.move(End(ours, connection), End(backend.sock, backend.ssl)) == 0
                    program.stdin.write(b"after\n")
                    program.stdin.flush()
                    assert moved(pump, connection, backend, ours, 6) == b"after\n"
                    assert lib.SSL_write(connection, b"answer", 6) == 6
                else:
                    program.stdin.write(b"R\n")  # the program's command: renegotiate
                    program.stdin.flush()
                    status = Status.OPEN
                    for _ in range(MOST_STEPS):
                        wait_readable(ours)
                        if pump.move(End(ours, connection), End(backend.sock, backend.ssl)) < 0:
                            status = pump.status
                            break
                    assert status in {Status.SOURCE_FAILED, Status.ENDED, Status.TRUNCATED}
                    stream.failure(Side.INBOUND)
                assert lib.ERR_peek_error() == 0
                stream.free(connection, established=True)
            program.kill()


def moved(pump, connection, backend, ours, size):
    total = 0
    while total < size:
        wait_readable(ours)
        step = pump.move(End(ours, connection), End(backend.sock, backend.ssl))
        assert step >= 0, pump.status
        total += step
    return read_all(backend.peer, size)
