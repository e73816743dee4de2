"""A TLS peer whose test decides how a connection ends.

Unlike in ssl.SSLSocket, close_notify, a bare FIN and a reset are three different things
here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import socket
import ssl
import struct
import sys
import termios
from collections.abc import Callable
from typing import Any

from tests.support import ready
from tests.support.pki import Files, Pki

PATIENCE_S = 15
_CHUNK = 65536


class Peer:
    """TLS over memory BIOs on a blocking socket with a timeout.

    It uses the standard library's OpenSSL, not relay's. With `hello_only`, call
    `handshake` for the rest. `before` is sent before the first flight, in one segment.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        name: str | None = None,
        session: ssl.SSLSession | None = None,
        hello_only: bool = False,
        before: bytes = b"",
    ) -> None:
        self.sock = sock
        sock.settimeout(PATIENCE_S)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._before = before
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self._in, self._out, server_side=server_side, server_hostname=name, session=session
        )
        if hello_only:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
            self._flush()
        else:
            self.handshake()

    def handshake(self) -> None:
        """Do the handshake, or the rest of it."""
        try:
            self._do(self.tls.do_handshake)
        except BaseException:
            self.sock.close()
            raise

    def _do(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        while True:
            try:
                result = operation(*arguments)
            except ssl.SSLWantReadError:
                self._flush()
                data = self.sock.recv(_CHUNK)
                if not data:
                    # OpenSSL is not told: it would stop the other direction too.
                    raise EOFError("the connection was closed without a close_notify") from None
                self._in.write(data)
            except ssl.SSLError:
                self._flush()  # the alert that says why
                raise
            else:
                self._flush()
                return result

    def _flush(self) -> None:
        data = self._before + self._out.read()
        self._before = b""
        if data:
            self.sock.sendall(data)

    def send(self, data: bytes) -> None:
        """Send all of it."""
        view = memoryview(data)
        for at in range(0, len(view), _CHUNK):
            self._do(self.tls.write, view[at : at + _CHUNK])

    def send_until_full(self) -> None:
        """Send until the other side takes no more for half a second.

        The last record may be cut off, so nothing can be sent afterwards.
        """
        self.sock.setblocking(False)
        while ready.select([], [self.sock], 0.5)[1]:
            self.tls.write(bytes(_CHUNK))
            with contextlib.suppress(BlockingIOError):
                self.sock.send(self._out.read())
        self.sock.settimeout(PATIENCE_S)

    def unacknowledged(self) -> int:
        """Bytes that the other kernel has not acknowledged."""
        return int.from_bytes(fcntl.ioctl(self.sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)

    def receive_some(self) -> bytes:
        """The next data; b"" at a close_notify.

        Raises EOFError at a bare FIN, OSError at a reset.
        """
        try:
            return self._do(self.tls.read, _CHUNK)
        except ssl.SSLZeroReturnError:
            return b""

    def receive(self, size: int) -> bytes:
        """Receive exactly `size` bytes."""
        data = bytearray()
        while len(data) < size:
            chunk = self.receive_some()
            if not chunk:
                raise AssertionError(f"the connection ended after {len(data)} of {size} bytes")
            data += chunk
        assert len(data) == size, f"{len(data)} bytes came, {size} were expected"
        return bytes(data)

    def close_notify(self) -> None:
        """Send a close_notify; reading goes on."""
        # `unwrap` also wants the other side's close_notify, which comes later.
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        self._flush()

    def fin(self) -> None:
        """Close the TCP direction, with or without a close_notify before."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with an RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Close as a well-behaved peer does: close_notify, then the socket.

        Unread data, such as a ticket, is read first. With unread data the kernel would
        reset the connection and discard what it still has to send.
        """
        with contextlib.suppress(OSError):
            self.close_notify()
        with contextlib.suppress(OSError):
            self.sock.setblocking(False)
            while self.sock.recv(_CHUNK):
                pass
        self.sock.close()

    def end(self) -> tuple[bytes, str]:
        """Everything until the end, and a word for the end.

        The word is "close_notify", "fin", "reset" or the error's name.
        """
        data = bytearray()
        while True:
            try:
                chunk = self.receive_some()
            except EOFError:
                return bytes(data), "fin"
            except ConnectionResetError:
                return bytes(data), "reset"
            except ssl.SSLError as error:
                return bytes(data), error.reason or str(error)
            if not chunk:
                return bytes(data), "close_notify"
            data += chunk


def dial(
    port: int,
    context: ssl.SSLContext,
    name: str = "app.example.com",
    session: ssl.SSLSession | None = None,
    *,
    hello_only: bool = False,
) -> Peer:
    """A client that has done its handshake, or has only sent its hello."""
    sock = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    return Peer(sock, context, server_side=False, name=name, session=session, hello_only=hello_only)


class Door:
    """A backend without threads.

    The test decides when it accepts, and holds both ends of relay's connections.
    """

    def __init__(
        self,
        pki: Pki,
        files: Files | None = None,
        *,
        version: ssl.TLSVersion | None = None,
        client_ca: Any = None,
        alpn: tuple[str, ...] = (),
    ) -> None:
        chosen = files or pki.backend
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(chosen.certificate, chosen.key)
        self.context.load_verify_locations(client_ca or pki.ca)
        self.context.verify_mode = ssl.CERT_REQUIRED
        if version is not None:
            self.context.minimum_version = self.context.maximum_version = version
        if alpn:
            self.context.set_alpn_protocols(list(alpn))
        self._accepted: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.listener.settimeout(PATIENCE_S)
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"

    def accept_tcp(self) -> socket.socket:
        """The relay's next connection, before TLS."""
        sock, _ = self.listener.accept()
        sock.settimeout(PATIENCE_S)
        self._accepted.append(sock)
        return sock

    def accept(self) -> Peer:
        """The relay's next connection, after its handshake."""
        return Peer(self.accept_tcp(), self.context, server_side=True)

    def close(self) -> None:
        """Refuse new connections, and close the open ones."""
        self.listener.close()
        for sock in self._accepted:
            sock.close()


def exchange(ends: list[Peer], blob: bytes, times: int) -> list[bytes]:
    """Every end sends the blob `times` times while it receives as much.

    Returns the SHA-256 of what each end received. One thread does it all, as two
    threads cannot use one SSL object.
    """
    total = len(blob) * times
    states = {end: hashlib.sha256() for end in ends}
    unsent, unread, pending = (
        dict.fromkeys(ends, total),
        dict.fromkeys(ends, total),
        dict.fromkeys(ends, b""),
    )
    for end in ends:
        end.sock.setblocking(False)
    while any(unsent.values()) or any(unread.values()) or any(pending.values()):
        writers = [end for end in ends if pending[end] or unsent[end]]
        readable, writable = ready.select(
            [end.sock for end in ends], [end.sock for end in writers], PATIENCE_S
        )
        if not readable and not writable:
            raise AssertionError(
                f"nothing moves any more: unsent {list(unsent.values())}, "
                f"unread {list(unread.values())}"
            )
        for end in ends:
            if end.sock in writable:
                if not pending[end]:
                    at = (total - unsent[end]) % len(blob)
                    unsent[end] -= end.tls.write(memoryview(blob)[at : at + _CHUNK])
                    pending[end] = end._out.read()
                pending[end] = pending[end][end.sock.send(pending[end]) :]
            if end.sock in readable:
                data = end.sock.recv(4 * _CHUNK)
                if not data:
                    raise AssertionError(f"the connection ended {unread[end]} bytes early")
                end._in.write(data)
                with contextlib.suppress(ssl.SSLWantReadError):
                    while chunk := end.tls.read(_CHUNK):
                        states[end].update(chunk)
                        unread[end] -= len(chunk)
    for end in ends:
        end.sock.settimeout(PATIENCE_S)
    return [states[end].digest() for end in ends]
