"""The connection of a health check: its socket, its TLS, and its entry in the selector.

Never: decides what the connection is for, or blocks.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial

from relay.errors import Side
from relay.shared.addresses import Endpoint
from relay.sockets import Address, start_connect
from relay.tls import stream, verification
from relay.tls.explain import Failure, after_handshake, explain_errno
from relay.tls.explain_backend import explain_backend, explain_rejection
from relay.tls.generation import BackendTarget, PlainTarget
from relay.tls.identity import Identity
from relay.tls.plain_targets import why_wrong_user
from relay.tls.raw import RECORD_BYTES, WANT_READ, WANT_WRITE, ZERO_RETURN, Pointer, ffi, lib
from relay.tls.revocation.reports import ListReports
from relay.tls.starttls import read_answer

_buffer = ffi.new("char[]", RECORD_BYTES)
_view = ffi.buffer(_buffer)


class CheckConnection:
    """One connection to a backend; the selector calls `on_ready`. Raises OSError."""

    def __init__(
        self,
        endpoint: Endpoint,
        selector: selectors.BaseSelector,
        on_ready: Callable[[], None],
        sources: Mapping[int, Address] | None = None,
    ) -> None:
        self._selector = selector
        self._on_ready = on_ready
        self._sock = start_connect(*endpoint, sources=sources)
        self._ssl: Pointer = None
        self._mask = selectors.EVENT_WRITE
        self._closed = False
        self.established = False
        try:
            selector.register(self._sock.fileno(), self._mask, on_ready)
        except OSError:
            self._sock.close()
            raise

    def connect_error(self) -> int:
        """The errno of a connect that failed, or 0."""
        return self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def send_first(self, data: bytes) -> None:
        """Send what comes before TLS; a new connection has room. Raises OSError."""
        self._sock.send(data)

    def read_answer(self) -> bool | Failure:
        """Whether the answer to the request for TLS has come: TLS may begin."""
        answer = read_answer(self._sock)
        return answer if isinstance(answer, Failure) else answer is stream.DONE

    def begin_tls(self, target: BackendTarget, alpn: bytes) -> None:
        """Prepare a handshake that resumes no session. Raises MemoryError."""
        self._ssl = stream.connect(
            target.context, self._sock.fileno(), target.server_name, alpn, None
        )

    def handshake(
        self, target: BackendTarget, reports: ListReports | None = None
    ) -> Failure | bool:
        """Go on with the handshake. True when it is done."""
        progress = stream.handshake(self._ssl, Side.OUTBOUND, partial(_why_revoked, target))
        who = verification.accepted_identity() or verification.refused_identity()
        if reports is not None and who is not None:
            chain = verification.accepted_chain()
            reports.report(self._ssl, who, chain, target.trust.crl)
        if isinstance(progress, Failure):
            return explain_backend(progress, self._ssl, self._sock, target.name)
        if progress is stream.DONE:
            self.established = True
            return True
        self.watch(
            selectors.EVENT_READ if progress is stream.STEP_WANT_READ else selectors.EVENT_WRITE
        )
        return False

    @property
    def ssl(self) -> Pointer:
        """The TLS connection, after `begin_tls`."""
        return self._ssl

    def read(self) -> bytes | Failure | None:
        """One record; None if there is none yet, b"" at the end.

        The end is the peer's close_notify, without TLS its FIN.
        """
        if self._ssl is None:
            return self._read_plain()
        size = lib.SSL_read(self._ssl, _buffer, RECORD_BYTES)
        if size > 0:
            return bytes(_view[:size])
        error = lib.SSL_get_error(self._ssl, size)
        if error == ZERO_RETURN:
            lib.ERR_clear_error()
            return b""
        return None if error in (WANT_READ, WANT_WRITE) else stream.failure(Side.OUTBOUND)

    def write(self, data: bytes) -> bool | Failure:
        """Send all of `data`.

        False when the socket has no room yet: repeat it later.
        """
        if self._ssl is None:
            return self._write_plain(data)
        size = lib.SSL_write(self._ssl, data, len(data))
        if size > 0:
            return True
        if lib.SSL_get_error(self._ssl, size) in (WANT_READ, WANT_WRITE):
            self.watch(selectors.EVENT_WRITE)
            return False
        return stream.failure(Side.OUTBOUND)

    def _read_plain(self) -> bytes | Failure | None:
        try:
            return self._sock.recv(RECORD_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            return explain_errno(Side.OUTBOUND, error.errno or 0)

    def _write_plain(self, data: bytes) -> bool | Failure:
        """Send a request, for which a new connection has room."""
        try:
            self._sock.send(data)
        except OSError as error:
            return explain_errno(Side.OUTBOUND, error.errno or 0)
        return True

    def why_wrong_user(self, target: PlainTarget) -> Failure | None:
        """Why the backend's unix socket is not its own; None for a TCP address."""
        if self._sock.family != socket.AF_UNIX:
            return None
        return why_wrong_user(self._sock, target)

    def explain(self, failure: Failure) -> Failure:
        """The failure as seen after the handshake, if that is done."""
        if not self.established:
            return failure
        return explain_rejection(after_handshake(failure), self._ssl)

    def watch(self, mask: int) -> None:
        """Wait for these events of the selector."""
        if mask != self._mask and not self._closed:
            self._selector.modify(self._sock.fileno(), mask, self._on_ready)
            self._mask = mask

    def close(self) -> None:
        """Close the connection, with close_notify if TLS is established."""
        if self._closed:
            return
        self._closed = True
        self._selector.unregister(self._sock.fileno())
        if self._ssl is not None:
            if self.established:
                stream.close_notify(self._ssl)
            stream.free(self._ssl, established=self.established)
            self._ssl = None
        self._sock.close()


def _why_revoked(target: BackendTarget, who: Identity) -> Failure | None:
    return target.why_revoked(who, verification.accepted_chain(), time.time())
