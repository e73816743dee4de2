"""Gives OpenSSL large handshakes in small portions, so that no single step takes long.

OpenSSL continues a handshake as long as the socket has bytes, and does not stop between
the records of one message. A peer that splits a certificate of 30 KB into records of
one byte keeps it busy for 110 ms in one call. So a handshake with more than STEP_BYTES
to read becomes a `StepwiseHandshake`, which OpenSSL reads from memory. Each step peeks
at the socket, gives OpenSSL at most STEP_BYTES, and removes from the socket what
OpenSSL used. Bytes after the handshake's end stay there. When the handshake is done,
OpenSSL gets the socket back, for `relay.tls.pump`.

This costs 20 µs of CPU per handshake (3 % of a connection); asking the kernel for the
number of unread bytes costs 0.5 µs. A peer can add bytes after that question, before
OpenSSL reads. So slow steps (SLOW_S) and the last step of a full handshake are checked
afterwards. If a peer has added bytes, all handshakes of the worker are stepwise for the
next CAREFUL_S.

This module also limits the size of a peer's certificates, as the bindings cannot change
OpenSSL's own limit (100 kB). It counts what the peer sends after its first flight,
without record overhead if that is known. The handshake fails before OpenSSL parses
anything.

Never: waits; keeps bytes that do not belong to the handshake.
Next: `relay.tls.stream.handshake`
"""

from __future__ import annotations

import socket
import time
from typing import Any, Final, Protocol

from relay.errors import Reason, Side
from relay.tls import stream
from relay.tls.explain import Failure, explain_errno
from relay.tls.raw import NULL, Pointer, ffi, lib
from relay.tls.stream import DONE, STEP_MORE, STEP_WANT_READ, STEP_WANT_WRITE, Progress
from relay.tls.tcp_info import FEW_BYTES, bytes_read, bytes_read_exactly, unread_bytes
from relay.tls.verification import Check

# More than a usual flight, and at most 370 TLS 1.3 records (the shortest has 22 bytes).
STEP_BYTES: Final = FEW_BYTES
# Two hellos and a certificate chain are far smaller, unless they come in tiny records.
MAX_BYTES: Final = 262_144
# Room for a signature (2 KB with RSA 16384) and a second hello besides certificates.
ALLOWED_BYTES: Final = 4_096
# A backend lists the CAs that it accepts in the same flight (RFC 8446, 4.2.4).
CA_NAMES_BYTES: Final = 32_768
SLOW_S: Final = 0.005
CAREFUL_S: Final = 60.0
# RFC 8446, 5: a record's header, and what encryption adds (content type and tag).
_HEADER, _SEALED, _APPLICATION_DATA = 5, 17, 23
_SHORT_BYTES = 64
# TCP_CLOSE and TCP_CLOSE_WAIT of linux/tcp.h, in the first byte of TCP_INFO.
_GONE = frozenset((7, 8))
_ROOM: Any = ffi.new("char[]", STEP_BYTES)
_room = memoryview(ffi.buffer(_ROOM))
_trash = bytearray(STEP_BYTES)
_data: Any = ffi.new("char **")
_random: Any = ffi.new("unsigned char[]", 32)
_random_view = ffi.buffer(_random)
_pending = lib.BIO_get_mem_data
_monotonic = time.monotonic
_NOTHING = 0


class Handshaking(Protocol):
    """The part of a `Connection` that a handshake needs."""

    ssl: Pointer
    sock: socket.SocketType
    fd: int
    stepwise: StepwiseHandshake | None
    hello: int
    received: int
    partial_record: bool  # OpenSSL may hold a part of a record


class Handshaker:
    """Drives all handshakes of a worker; large ones become stepwise."""

    def __init__(self, chain_bytes: int = 32_768) -> None:
        self.careful_until_at = 0.0
        self._chain_bytes = chain_bytes
        most = chain_bytes + ALLOWED_BYTES
        self._most = {Side.INBOUND: most, Side.OUTBOUND: most + CA_NAMES_BYTES}

    def step(
        self, end: Handshaking, side: Side, check: Check | None = None, unread: int | None = None
    ) -> Progress | Failure:
        """Continue a handshake; `unread` is the number of unread bytes of a hello."""
        stepwise = end.stepwise
        began_at = _monotonic()
        if stepwise is None:
            before = end.received
            if unread is not None:
                end.hello = unread
            else:
                unread = unread_bytes(end.fd)
                end.received = before + unread
            if end.received <= STEP_BYTES >= unread and began_at >= self.careful_until_at:
                if end.received != before:
                    # A client may send its change_cipher_spec alone, before the rest.
                    end.partial_record = (
                        end.partial_record or unread > _SHORT_BYTES or not _are_whole(end.sock)
                    )
                progress = stream.handshake(end.ssl, side, check)
                if progress is STEP_WANT_READ and _monotonic() - began_at <= SLOW_S:
                    return progress
                return self.check_after_step(end, side, progress, began_at)
            taken = bytes_read_exactly(end)
            more = 0 if taken is None else max(taken - end.hello - before, 0)
            # More arrived while OpenSSL was reading: it may be inside a record.
            cut = end.partial_record or taken is None or more > 0
            stepwise = end.stepwise = StepwiseHandshake(end.ssl, end.sock, before + more, cut=cut)
        progress = stepwise.step(side, check)
        if isinstance(progress, Progress) and stepwise.received > self._most[side]:
            return _too_long(side, self._chain_bytes)
        return progress

    def check_after_step(
        self, end: Handshaking, side: Side, progress: Progress | Failure, began_at: float
    ) -> Progress | Failure:
        """After a step on the socket: did bytes arrive while OpenSSL was reading?"""
        slow = _monotonic() - began_at > SLOW_S
        ended = progress is DONE or isinstance(progress, Failure)
        if not slow and (not ended or stream.resumed(end.ssl)):
            return progress
        read = bytes_read(end) - end.hello
        if read <= STEP_BYTES:
            return progress
        too_long = read > self._most[side]
        if slow or too_long:
            self.careful_until_at = _monotonic() + CAREFUL_S
        return _too_long(side, self._chain_bytes) if too_long else progress


def _too_long(side: Side, chain_bytes: int) -> Failure:
    inbound = side is Side.INBOUND
    reason = Reason.CHAIN_TOO_LONG if inbound else Reason.BACKEND_CHAIN_TOO_LONG
    peer = "the client" if inbound else "the backend"
    limit = f"{chain_bytes} bytes of certificates (limits.certificate_chain_bytes)"
    return Failure(reason, f"{peer} sends more than {limit}")


def _are_whole(sock: socket.SocketType) -> bool:
    """Whether the few unread bytes are whole records."""
    try:
        data = sock.recv(_SHORT_BYTES, socket.MSG_PEEK)
    except OSError:
        return False
    at = 0
    while at + _HEADER <= len(data):
        at += _HEADER + (data[at + 3] << 8 | data[at + 4])
    return at == len(data)


class StepwiseHandshake:
    """One handshake from now to its end; both directions go through memory."""

    __slots__ = (
        "_ahead", "_from_openssl", "_header", "_is_done", "_sock", "_ssl",
        "_to_openssl", "_unsent", "_used", "received",
    )  # fmt: skip

    def __init__(self, ssl: Pointer, sock: socket.SocketType, received: int, *, cut: bool) -> None:
        self._ssl = ssl
        self._sock = sock
        self._to_openssl = lib.BIO_new(lib.BIO_s_mem())
        self._from_openssl = lib.BIO_new(lib.BIO_s_mem())
        if NULL in (self._to_openssl, self._from_openssl):
            lib.BIO_free(self._to_openssl)
            lib.BIO_free(self._from_openssl)
            raise MemoryError("OpenSSL could not create a connection")
        lib.SSL_set_bio(ssl, self._to_openssl, self._from_openssl)  # the connection owns them now
        self._used = 0  # bytes from the peer
        # Received bytes of handshake messages, and how many bytes ahead the next record
        # starts: None if that is not known.
        self.received = received
        self._ahead: int | None = None if cut else 0
        self._header = b""
        self._unsent = b""  # what the socket did not accept yet
        self._is_done = False

    def step(self, side: Side, check: Check | None = None) -> Progress | Failure:
        """Continue with what the peer has sent.

        MORE: call again, no event will come.
        """
        if self._unsent:
            failure = self._send(side, b"")
            if failure is not None:
                return failure
            if self._unsent:
                return STEP_WANT_WRITE
            if self._is_done:
                return self._finish()
        try:
            size = self._sock.recv_into(_room, STEP_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            return self._step(side, check, _NOTHING)
        except OSError as error:
            return explain_errno(side, error.errno or 0)
        if size == 0:
            return explain_errno(side, 0)  # end of file
        lib.BIO_write(self._to_openssl, _ROOM, size)
        return self._step(side, check, size)

    def _step(self, side: Side, check: Check | None, size: int) -> Progress | Failure:
        # The hello is not counted: it has a limit of its own (see `core.hello`).
        count = side is Side.OUTBOUND or self._has_answered()
        progress = stream.handshake(self._ssl, side, check)
        used = size - _pending(self._to_openssl, _data) if size else 0
        if used:
            self._used += used
            contents = self._record_contents(used)
            self.received += contents if count else 0
            # Removes them from the socket without copying them (tcp(7)).
            self._sock.recv_into(_trash, used, socket.MSG_TRUNC)
        written = _pending(self._from_openssl, _data)
        if written:
            failed = self._send(side, self._take(written))
            if failed is not None and not isinstance(progress, Failure):
                return failed
        if isinstance(progress, Failure):
            return progress
        if progress is DONE:
            self._is_done = True
            return STEP_WANT_WRITE if self._unsent else self._finish()
        if self._used > MAX_BYTES:
            return _endless(side)
        if self._unsent:
            return STEP_WANT_WRITE
        return STEP_MORE if used == STEP_BYTES or (used and self._has_ended()) else STEP_WANT_READ

    def _has_answered(self) -> bool:
        """Whether the hello has been read: then there is a server random."""
        lib.SSL_get_server_random(self._ssl, _random, len(_random))
        return any(bytes(_random_view))

    def _record_contents(self, used: int) -> int:
        """The size of the contents of the records that start in the used portion."""
        if self._ahead is None:
            return used
        data = self._header + _room[:used].tobytes()  # with the first part of a header
        at, size = self._ahead, len(data)
        contents = 0
        while at + _HEADER <= size:
            length = data[at + 3] << 8 | data[at + 4]
            contents += max(length - _SEALED, 0) if data[at] == _APPLICATION_DATA else length
            at += _HEADER + length
        self._header = data[at:]
        self._ahead = max(at - size, 0)
        return contents

    def _take(self, size: int) -> bytes:
        """Remove and return what OpenSSL wrote."""
        data = ffi.buffer(_data[0], size)[:]
        while size > 0:
            size -= lib.BIO_read(self._from_openssl, _ROOM, min(size, STEP_BYTES))
        return bytes(data)

    def _send(self, side: Side, data: bytes) -> Failure | None:
        data = self._unsent + data
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._unsent = b""
            return explain_errno(side, error.errno or 0)
        self._unsent = data[sent:]
        return None

    def _has_ended(self) -> bool:
        """Whether the peer may have closed: no further event would announce it."""
        try:
            state = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        except OSError:
            return True  # not TCP: the next read tells
        return state in _GONE

    def _finish(self) -> Progress:
        lib.SSL_set_fd(self._ssl, self._sock.fileno())  # frees the two BIOs
        return DONE


def _endless(side: Side) -> Failure:
    reason = Reason.TLS_ERROR if side is Side.INBOUND else Reason.BACKEND_TLS_ERROR
    return Failure(reason, f"the handshake has more than {MAX_BYTES} bytes, in tiny records")
