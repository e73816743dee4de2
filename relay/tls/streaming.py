"""Moves a fast stream: many records with one system call.

OpenSSL makes two system calls for every record that it reads from a socket. `stream`
looks at up to 16 full records in the socket with one call, and lets OpenSSL decrypt
them from memory. Short records leave together, as records of the full size, and all
records of a call in segments as large as the kernel can make them (TCP_CORK). Then it
takes from the socket what OpenSSL has used.

OpenSSL has its socket before and after every call of `stream`, and the rest of the
bytes is still in the socket. So a stream is not a mode: what is true of a connection
between two calls of `relay.tls.pump` is true here too. A sink that blocks, a key update
in the middle, or too many records without data only end the call early.

Meanwhile OpenSSL writes to memory, too: the answer to a key update, or an alert. It is
sent to the source at once. If the socket is full, the rest waits (`Sealed`), and goes
before anything else. The source is not read until it is sent, so at most the answers of
one call are held.

OpenSSL fails if it must answer a key update while it has begun to write a record. So
what a sink does not take is encrypted to its end, and held as it is, too (`seal`): at
most BUFFER_BYTES and a record. Until it is sent, the sink is read from memory only: its
`pause` is 0. So is a connection that has our close_notify: OpenSSL would still answer,
after the FIN.

`pause` is all that a connection knows of it: 0 if its next bytes are taken by `stream`,
otherwise the number of longer messages until it is tried. Two full records in one turn
need no trial. A stream that brings little in a call is not one any more.

Never: leaves a decrypted byte inside OpenSSL, or moves more than about BUDGET_BYTES.
Next: `relay.tls.records.RecordTransfer`
"""

from __future__ import annotations

from socket import IPPROTO_TCP, MSG_PEEK, MSG_TRUNC, TCP_CORK
from typing import Any

from relay.sockets import StreamSocket
from relay.tls.memory_bio import End, Sealed, give_memory, give_socket, left, seal, start
from relay.tls.raw import RECORD_BYTES, WANT_READ, ZERO_RETURN, Pointer, ffi, lib
from relay.tls.records import BUFFER, BUFFER_BYTES, VIEW, RecordTransfer, Status, read, write

BUDGET_BYTES = 16 * RECORD_BYTES
RECORD_EXTRA_BYTES = 22  # header, type and tag of a TLS 1.3 record
# A shorter message is never part of a trial.
LONG_BYTES = 2048
# So many long messages make a trial. It costs one system call if nothing streams.
TRIED_EVERY = 8
# Less is as cheap when OpenSSL reads it from the socket.
LEAST_BYTES = 8192
# A record with an alert. A key update has 27, so what is shorter asks for no answer.
ALERT_BYTES = 24
HEADER_BYTES = 5
# Reads in one call: a chunk of records of 2 KiB. Shorter ones cost more CPU time.
MOST_READS = 128
# Records without data (tickets, key updates) in one call, as each costs CPU time.
MOST_SILENT = 32

CHUNK_BYTES = BUDGET_BYTES + 16 * RECORD_EXTRA_BYTES
_CHUNK: Any = ffi.new("char[]", CHUNK_BYTES)
_chunk_view = memoryview(ffi.buffer(_CHUNK))
_get_error: Any = lib.SSL_get_error
_EXPECTED = frozenset((0, WANT_READ, ZERO_RETURN))
_NOTHING, _FAILED = -1, -2


def stream(transfer: RecordTransfer, source: End, sink: End, moved: int = 0) -> int | None:
    """Move what the source has, as `Pump.move` does, after `moved` bytes.

    None if OpenSSL must read from the socket itself: there is little, or an end.
    """
    held = source.held
    if held and source.wants_write:
        transfer.status = Status.SOURCE_WANTS_WRITE  # its answer must go first
        return ~moved
    if source.closing or source.wants_write or (held and not isinstance(held, Sealed)):
        source.pause = TRIED_EVERY  # OpenSSL has begun to write, and must go on there
        return None
    size = _peek(transfer, source, CHUNK_BYTES - moved)
    if size == _FAILED:
        return ~moved
    in_memory = held or source.shut or source.errno
    if in_memory and size == _NOTHING:
        return moved
    if size <= 0 or (size < LEAST_BYTES and not in_memory) or (not held and _is_alert(size)):
        source.pause = 0 if in_memory else TRIED_EVERY
        return None
    chunk, answer = give_memory(source.ssl, _CHUNK, size)
    corked = size > RECORD_BYTES and _cork(sink.sock, on=True)
    try:
        result = _decrypt(transfer, source.ssl, sink, chunk, answer, moved)
    finally:
        if corked:
            _cork(sink.sock, on=False)
    errno = ffi.errno if result < 0 else 0
    failed = result < 0 and transfer.status is Status.SOURCE_FAILED
    waits = _take_back(source, size, chunk, answer, failed=failed)
    if result >= 0 and waits:
        transfer.status, result = Status.SOURCE_WANTS_WRITE, ~result
    blocked = result < 0 and transfer.status is Status.BLOCKED
    much = result - moved >= LEAST_BYTES
    on = much or blocked or source.held or source.shut or source.errno
    source.pause = 0 if on else TRIED_EVERY
    if result < 0:
        ffi.errno = errno  # of a write that failed
    return result


def read_one(transfer: RecordTransfer, source: End, at: int = 0) -> int:
    """Read a record to this place of BUFFER while something is held for the source.

    Returns its size; 0 if there is none now, ~0 if `status` says why.
    """
    ssl = source.ssl
    if source.held and source.wants_write:
        transfer.status = Status.SOURCE_WANTS_WRITE  # its answer must go first
        return ~0
    size = _peek(transfer, source, RECORD_BYTES)
    if size < 0:
        return 0 if size == _NOTHING else ~0
    if not size:
        result: int = read(ssl, BUFFER + at, RECORD_BYTES)
        return result if result > 0 else transfer.not_read(ssl, result, 0)
    chunk, answer = give_memory(ssl, _CHUNK, size)
    result = read(ssl, BUFFER + at, RECORD_BYTES)
    if result <= 0:
        result = transfer.not_read(ssl, result, 0)
    failed = result < 0 and transfer.status is Status.SOURCE_FAILED
    if _take_back(source, size, chunk, answer, failed=failed) and not result:
        transfer.status, result = Status.SOURCE_WANTS_WRITE, ~0
    return result


# The socket and the memory.


def _peek(transfer: RecordTransfer, source: End, most: int) -> int:
    """How many bytes of the socket are in the chunk now; 0 at its end.

    _NOTHING if nothing has come, _FAILED with a `status`.
    """
    try:
        size = source.sock.recv_into(_chunk_view, most, MSG_PEEK)
    except BlockingIOError:
        return _NOTHING
    except OSError as error:
        size, source.errno = 0, error.errno or 0
    if size or not source.errno:
        return size
    # The kernel reports it only once, and after that an end like any other.
    ffi.errno, transfer.status = source.errno, Status.SOURCE_FAILED
    return _FAILED


def _take_back(source: End, size: int, chunk: Pointer, answer: Pointer, *, failed: bool) -> bool:
    """Send the answer, and take what OpenSSL has used of the chunk from the socket.

    Whether a part of the answer must wait.
    """
    sock = source.sock
    used: int = size - left(chunk, start)
    answered = left(answer, start)
    unsent = b""
    if answered:
        data: bytes = ffi.buffer(start[0], answered)[:]
        unsent = data if source.held else _send(source, data)
    give_socket(source)
    if used and sock.recv_into(_chunk_view, used, MSG_TRUNC) != used:
        raise RuntimeError("the kernel has not kept the bytes that it showed")
    if failed or source.shut or not unsent:
        return False  # an alert to a failed peer is worth no waiting
    if source.held:
        source.held.data += unsent
    else:
        source.held = Sealed(unsent, 0)
    source.wants_write = True
    return True


def _send(source: End, data: bytes) -> bytes:
    """Send it. Returns what must wait. A failure is reported after what has come."""
    try:
        return data[source.sock.send(data) :]
    except BlockingIOError:
        return data
    except OSError as error:
        if not source.shut:  # else it is our own FIN that is in the way
            source.errno = error.errno or 0
        return b""


def _is_alert(size: int) -> bool:
    """Whether the chunk is one record, and too short for a key update."""
    if not HEADER_BYTES < size <= ALERT_BYTES:
        return False
    return size == HEADER_BYTES + int.from_bytes(_chunk_view[3:HEADER_BYTES], "big")


def _cork(sock: StreamSocket, *, on: bool) -> bool:
    """Let the kernel send full segments only, or all that it has. Whether it does.

    Otherwise each record leaves in a segment of its own, and wakes its reader.
    """
    try:
        sock.setsockopt(IPPROTO_TCP, TCP_CORK, on)
    except OSError:
        return False
    return True


# The records.


def _decrypt(
    transfer: RecordTransfer,
    ssl: Pointer,
    sink: End,
    chunk: Pointer,
    answer: Pointer,
    moved: int,
    # Bound once: global look-ups would double the cost of the loop's Python.
    _read: Any = read,
    _write: Any = write,
    _buffer: Any = BUFFER,
    _most: int = BUFFER_BYTES,
    _reads: range = range(MOST_READS),
) -> int:
    """Write the chunk to the sink, until something is in the way."""
    begin = at = moved % _most
    silent, sink_ssl = 0, sink.ssl
    for _ in _reads:
        size = _read(ssl, _buffer + at, _most - at)
        if size > 0:
            at += size
            if at < _most:
                continue
        error = _get_error(ssl, size) if size <= 0 else 0
        more = error == WANT_READ and left(chunk, start)
        if more and silent < MOST_SILENT and not left(answer, start):
            silent += 1
            continue
        if error not in _EXPECTED:
            # The reason is in OpenSSL's queue, where a write would find it.
            transfer.undelivered, transfer.status = VIEW[begin:at], Status.SOURCE_FAILED
            return ~moved
        filled = at - begin
        if filled:
            if _write(sink_ssl, _buffer + begin, filled) != filled:
                return _not_taken(transfer, ssl, sink, filled, moved, error)
            moved += filled
        if error:
            return moved if error == WANT_READ else transfer.not_read(ssl, size, moved)
        begin = at = 0
    if not at and lib.SSL_pending(ssl):  # the buffer ended within a record
        at = _read(ssl, _buffer, _most)
    if at > begin:
        if _write(sink_ssl, _buffer + begin, at - begin) != at - begin:
            return _not_taken(transfer, ssl, sink, at - begin, moved, WANT_READ)
        moved += at - begin
    return moved


def _not_taken(
    transfer: RecordTransfer, ssl: Pointer, sink: End, size: int, moved: int, error: int
) -> int:
    """Do what `not_taken` does with all that is decrypted, and seal it."""
    result = transfer.not_taken(sink.ssl, size, moved)
    errno = ffi.errno
    while lib.SSL_pending(ssl):
        rest = read(ssl, BUFFER, RECORD_BYTES)
        if rest <= 0:
            break
        transfer.held += VIEW[:rest]
    if transfer.status is Status.BLOCKED:
        transfer.held = seal(sink, transfer.held)
        if error == ZERO_RETURN:
            transfer.undelivered, transfer.held = transfer.held, b""
            transfer.not_read(ssl, 0, moved)
    ffi.errno = errno
    return result
