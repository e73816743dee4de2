"""Streams: many records with one call, and what may be in the middle of them."""

import contextlib
import fcntl
import os
import random
import select
import socket
import ssl
import struct
import termios
from dataclasses import dataclass

import pytest

from relay.errors import Reason, Side
from relay.tls import stream, streaming
from relay.tls.pump import BUFFER_BYTES, Status, watch_alerts
from relay.tls.raw import RECORD_BYTES, lib
from relay.worker.transfer import Transfer
from tests.support.handshakes import (
    MOST_STEPS,
    VERSIONS,
    Meeting,
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
from tests.support.streams import End
from tests.support.worker import wait_until

SHORT = 4096
DATA = random.Random(13).randbytes(400_000)


@dataclass
class Stream:
    """A client that sends to a backend, and relay's two connections between them."""

    client: Meeting
    backend: Meeting
    pump: Transfer
    end: End
    sink: End

    def send(self, data: bytes, record: int = SHORT) -> None:
        """Send all of it, in records of this size. The socket has room for it."""
        for at in range(0, len(data), record):
            piece = data[at : at + record]
            assert self.client.peer.send(piece) == len(piece)

    def arrived(self) -> int:
        """How many bytes are in relay's socket."""
        return unread(self.client.sock)

    def wait_for(self, size: int) -> None:
        """Wait until so many bytes are in relay's socket."""
        wait_until(lambda: self.arrived() >= size, f"{size} bytes in relay's socket")

    def move(self) -> int:
        """Move once."""
        return self.pump.move(self.end, self.sink)

    def received(self, size: int) -> bytes:
        """What the backend reads, when so many bytes are on their way."""
        data = bytearray(self.backend.pending())
        while len(data) < size:
            wait_readable(self.backend.peer)  # it has a deadline
            data += self.backend.pending()
        return bytes(data)

    def fill_sink(self) -> None:
        """Fill the backend's socket with bytes that are not TLS."""
        sock = self.backend.sock
        # What is on its way makes room once more when it has arrived.
        while select.select([], [sock], [], 0.1)[1]:
            with contextlib.suppress(BlockingIOError):
                sock.send(bytes(65_536))


def unread(sock: socket.socket) -> int:
    size: int = struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, b"\0" * 4))[0]
    return size


@pytest.fixture(params=VERSIONS.values(), ids=VERSIONS)
def flow(request, pki):
    with (
        meet_client(
            route_of(pki), client_context(pki, pki.client, request.param), pair=tcp_pair
        ) as client,
        meet_backend(
            target_of(pki), server_context(pki, pki.backend, request.param), pair=tcp_pair
        ) as backend,
    ):
        client.peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        backend.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        backend.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        for meeting in (client, backend):
            watch_alerts(meeting.ssl)
        assert backend.pending() == b""
        yield Stream(
            client,
            backend,
            Transfer(),
            End(client.sock, client.ssl),
            End(backend.sock, backend.ssl),
        )
    assert lib.ERR_peek_error() == 0


def test_short_records_leave_as_full_ones(flow):
    flow.end.pause = 0
    flow.send(DATA[: 10 * SHORT])
    flow.wait_for(10 * SHORT)
    assert flow.move() == 10 * SHORT
    wait_readable(flow.backend.peer)
    assert flow.backend.peer.recv(65_536) == DATA[:RECORD_BYTES]
    assert flow.end.pause == 0
    assert flow.arrived() == 0


def segments_of(sock: socket.socket) -> int:
    """How many segments with data the kernel has sent: tcpi_data_segs_out."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    count: int = struct.unpack_from("I", info, 156)[0]
    return count


def test_the_records_of_a_call_share_segments(flow):
    flow.end.pause = 0
    flow.send(DATA[: 8 * RECORD_BYTES], RECORD_BYTES)
    flow.wait_for(8 * RECORD_BYTES)
    before = segments_of(flow.backend.sock)
    moved = 0
    while moved < 8 * RECORD_BYTES:
        moved += flow.move()
    assert flow.received(moved) == DATA[:moved]
    # The segments of the loopback device have 64 KiB: without a cork it would be 8.
    assert segments_of(flow.backend.sock) - before <= 5
    assert not flow.backend.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK)


def test_a_sink_that_blocks_is_not_left_corked(flow):
    flow.end.pause = 0
    flow.fill_sink()
    flow.send(DATA[:200_000], 5000)
    flow.wait_for(200_000)
    assert flow.move() < 0
    assert not flow.backend.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK)


def test_two_full_records_begin_a_stream(flow):
    assert flow.end.pause == streaming.TRIED_EVERY
    flow.send(DATA[: 4 * RECORD_BYTES], RECORD_BYTES)
    flow.wait_for(4 * RECORD_BYTES)
    assert flow.move() == 4 * RECORD_BYTES
    assert flow.end.pause == 0
    assert flow.received(4 * RECORD_BYTES) == DATA[: 4 * RECORD_BYTES]


def test_a_stream_of_short_records_is_found_by_a_trial(flow):
    for number in range(streaming.TRIED_EVERY):
        assert flow.end.pause == streaming.TRIED_EVERY - number
        flow.send(DATA[:SHORT])
        flow.wait_for(SHORT)
        assert flow.move() == SHORT
    assert flow.end.pause == 0


def test_a_trial_that_finds_little_is_over(flow):
    flow.end.pause = 0
    flow.send(b"a short message")
    wait_readable(flow.client.sock)
    assert flow.move() == 15
    assert flow.end.pause == streaming.TRIED_EVERY
    assert flow.received(15) == b"a short message"


def test_a_call_moves_no_more_than_its_budget(flow):
    flow.end.pause = 0
    flow.send(DATA)
    flow.wait_for(300_000)
    assert flow.move() <= streaming.BUDGET_BYTES
    assert flow.arrived() > 0


@pytest.mark.parametrize("full", [0, 1, 3])
def test_a_call_reads_no_more_than_so_many_records(flow, full):
    """A chunk of records of one byte would take 11,000 reads."""
    flow.end.pause = 0
    flow.send(DATA[: full * RECORD_BYTES], RECORD_BYTES)
    at = full * RECORD_BYTES
    size = 600
    flow.send(DATA[at : at + size], 1)
    flow.wait_for(at + size * 22)
    moved = flow.move()
    assert at <= moved <= at + streaming.MOST_READS
    assert flow.arrived()
    assert lib.SSL_pending(flow.client.ssl) == 0
    while moved < at + size:
        step = flow.move()
        assert 0 <= step <= streaming.MOST_READS
        moved += step
    assert flow.received(moved) == DATA[:moved]


def test_a_last_read_within_a_record_leaves_nothing_in_openssl(flow, monkeypatch):
    """The buffer is full within a record, and that was the last read of the call."""
    flow.end.pause = 0
    size = 16 * 5000
    flow.send(DATA[:size], 5000)
    flow.wait_for(size)
    monkeypatch.setattr(
        streaming._decrypt, "__defaults__", (*streaming._decrypt.__defaults__[:-1], range(14))
    )
    assert flow.move() == 14 * 5000
    assert lib.SSL_pending(flow.client.ssl) == 0
    assert flow.move() == 2 * 5000
    assert flow.received(size) == DATA[:size]


def test_half_a_record_stays_in_openssl_and_is_completed(flow, monkeypatch):
    monkeypatch.setattr(streaming, "CHUNK_BYTES", 10_000)
    flow.end.pause = 0
    flow.send(DATA[: 10 * SHORT])
    flow.wait_for(10 * SHORT)
    moved = 0
    while moved < 10 * SHORT:
        size = flow.move()
        assert size >= 0
        moved += size
    assert flow.received(moved) == DATA[:moved]


def test_what_a_blocked_sink_does_not_take_stays_in_the_kernel(flow):
    flow.end.pause = 0
    flow.fill_sink()
    flow.send(DATA[:200_000], 5000)
    flow.wait_for(200_000)
    moved = ~flow.move()
    assert moved >= 0
    assert flow.pump.status is Status.BLOCKED
    assert 0 < flow.pump.held.size < BUFFER_BYTES + RECORD_BYTES
    assert moved + flow.pump.held.size + flow.arrived() >= 200_000
    assert lib.SSL_pending(flow.client.ssl) == 0
    assert flow.end.pause == 0


def test_a_blocked_sink_gets_every_byte_in_the_end(flow):
    flow.end.pause = 0
    sent = moved = 0
    held, got, blocked = b"", bytearray(), 0
    while len(got) < len(DATA):
        if sent < len(DATA):
            with contextlib.suppress(ssl.SSLWantWriteError):
                sent += flow.client.peer.send(DATA[sent : sent + 5000])
        else:
            got += flow.backend.pending()
        size = flow.pump.put(flow.sink, held) if held else flow.move()
        blocked += size < 0
        held = flow.pump.held if size < 0 else b""
        assert size >= 0 or flow.pump.status is Status.BLOCKED
        moved += size if size >= 0 else ~size
    assert moved == len(DATA)
    assert bytes(got) == DATA
    assert blocked


def close_notify(flow):
    with contextlib.suppress(OSError):
        flow.client.peer.unwrap()


def test_a_close_notify_in_mid_chunk_comes_with_its_bytes(flow):
    flow.end.pause = 0
    flow.send(DATA[: 5 * SHORT])
    close_notify(flow)
    flow.client.peer.shutdown(socket.SHUT_WR)
    flow.wait_for(5 * SHORT + 20)
    assert flow.move() == ~(5 * SHORT)
    assert flow.pump.status is Status.ENDED
    assert flow.received(5 * SHORT) == DATA[: 5 * SHORT]


def test_an_end_behind_bytes_that_a_sink_does_not_take(flow):
    flow.fill_sink()
    flow.end.pause = 0
    flow.send(DATA[: 3 * SHORT])
    close_notify(flow)
    flow.wait_for(3 * SHORT + 20)
    assert flow.move() == ~0
    assert flow.pump.status is Status.ENDED
    assert flow.pump.undelivered.size == 3 * SHORT
    assert flow.arrived() == 0


def test_a_bare_fin_behind_a_chunk_is_a_truncation(flow):
    flow.end.pause = 0
    flow.send(DATA[: 5 * SHORT])
    with socket.socket(fileno=os.dup(flow.client.peer.fileno())) as raw:
        raw.shutdown(socket.SHUT_WR)
    flow.wait_for(5 * SHORT)
    assert flow.move() == 5 * SHORT
    wait_readable(flow.client.sock)
    assert flow.move() == ~0
    assert flow.pump.status is Status.TRUNCATED


def test_garbage_behind_a_chunk_fails_with_its_reason(flow):
    flow.end.pause = 0
    flow.send(DATA[: 3 * SHORT])
    with socket.socket(fileno=os.dup(flow.client.peer.fileno())) as raw:
        raw.send(b"\x17\3\3\0\x40" + bytes(64))
    flow.wait_for(3 * SHORT + 69)
    assert flow.move() == ~0
    assert flow.pump.status is Status.SOURCE_FAILED
    failure = stream.failure(Side.INBOUND)
    assert failure.reason is Reason.TLS_ERROR
    assert "bad record mac" in failure.detail
    assert flow.pump.undelivered == DATA[: 3 * SHORT]
    assert flow.client.peer.recv(0) == b""
    wait_readable(flow.client.peer)
    with pytest.raises(OSError, match=r"(?i)bad.record.mac"):
        flow.client.peer.recv(10)


def test_a_reset_keeps_its_errno(flow):
    flow.end.pause = 0
    reset(flow.client.peer)
    wait_readable(flow.client.sock)
    assert flow.move() == ~0
    assert flow.pump.status is Status.SOURCE_FAILED
    assert stream.failure(Side.INBOUND).detail == "Connection reset by peer"


def test_bytes_before_a_reset_are_moved_first(flow):
    flow.end.pause = 0
    flow.send(DATA[: 5 * SHORT])
    flow.wait_for(5 * SHORT)
    reset(flow.client.peer)
    moved = 0
    for _ in range(MOST_STEPS):
        size = flow.move()
        moved += size if size >= 0 else ~size
        if size < 0:
            break
    assert flow.pump.status is Status.SOURCE_FAILED
    assert stream.failure(Side.INBOUND).reason is Reason.PEER_GONE
    assert moved == 5 * SHORT
    assert flow.received(moved) == DATA[:moved]


def test_a_sink_that_has_reset_keeps_its_errno(flow):
    flow.end.pause = 0
    flow.send(DATA[: 10 * SHORT])
    flow.wait_for(10 * SHORT)
    reset(flow.backend.peer)
    wait_readable(flow.backend.sock)
    assert flow.move() == ~0
    assert flow.pump.status is Status.SINK_FAILED
    assert stream.failure(Side.OUTBOUND).detail in {"Connection reset by peer", "Broken pipe"}


@pytest.mark.parametrize("state", ["held", "closing", "wants_write"])
def test_no_stream_while_openssl_has_begun_to_write(flow, state):
    setattr(flow.end, state, True)
    flow.end.pause = 0
    flow.send(DATA[: 5 * SHORT])
    flow.wait_for(5 * SHORT)
    assert flow.move() == SHORT, "OpenSSL reads one record from its socket"
    assert flow.end.pause == streaming.TRIED_EVERY


def test_openssl_has_its_socket_after_every_chunk(flow):
    flow.end.pause = 0
    flow.send(DATA[: 5 * SHORT])
    flow.wait_for(5 * SHORT)
    assert flow.move() == 5 * SHORT
    flow.send(b"without a stream")
    wait_readable(flow.client.sock)
    flow.end.pause = streaming.TRIED_EVERY
    assert flow.move() == 16
    flow.client.send(b"an answer")
    wait_readable(flow.client.peer)
    assert flow.client.pending() == b"an answer"
