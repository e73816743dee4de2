"""One check of one backend: connect, shake hands as a session would, listen for a late refusal, and GET something when asked to.

Theory of operation. A probe is stepped when its socket is ready or its deadline has passed, and ends with a `CheckResult`. Stages:

    CONNECT    TCP, then the PROXY header if the pool sends one ("nobody": UNKNOWN or LOCAL)
    HANDSHAKE  in full, never resumed: every check verifies the chain, its dates and the name
    LISTEN     TLS 1.3 only: a backend that refuses our certificate says so after our side of the handshake is over (RFC 8446, 4.4.2.4),
               so LISTEN_S are spent on listening for an alert or a hang-up. In TLS 1.2 the handshake's end has said it.
               Before a GET it ends with the backend's first record (tickets are sent after our certificate was judged): a request sent into
               a refusal would be answered with a reset, and the alert before it would be lost.
    REQUEST, RESPONSE   the GET, up to the end of the response's head

A backend with several addresses is good when any of them is; each is given `timeout_s`, and the one that was good last is tried first.

Never: decides whether a backend is up, waits, or resumes a session.
Next: `relay.core.health.next_state`
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable
from enum import Enum

from relay.checker.check import CheckResult, CheckSettings
from relay.checker.http import Head, render_get
from relay.config.http_statuses import has_status
from relay.core.untrusted import clip
from relay.errors import Reason, Side, describe_error
from relay.remedies import REMEDIES
from relay.shared.addresses import Endpoint
from relay.shared.catalogue import CHECK_OK
from relay.sockets import StreamSocket, format_address, start_connect
from relay.tls import stream
from relay.tls.contexts import BackendTarget
from relay.tls.explain import Failure, after_handshake, explain_connect
from relay.tls.explain_backend import explain_backend, explain_rejection
from relay.tls.identity import peer_identity
from relay.tls.raw import RECORD_BYTES, WANT_READ, WANT_WRITE, ZERO_RETURN, Pointer, ffi, lib

# Longer than a packet takes around the world; the check of a good backend lasts that much longer, and nobody waits for it.
LISTEN_S = 0.25
_DETAIL_CHARACTERS = 1024

_buffer = ffi.new("char[]", RECORD_BYTES)
_view = ffi.buffer(_buffer)


class Stage(Enum):
    """How far a probe is; the value is the metric's label for a failure there."""

    CONNECT = "connect_failed"
    HANDSHAKE = "handshake_failed"
    LISTEN = "handshake_failed "
    REQUEST = "http_failed"
    RESPONSE = "http_failed "


class Probe:
    """One running check of a backend at `places`, beginning with number `first`; `begin` starts it, `on_end` gets the result once. `at` calls back at an instant."""

    def __init__(
        self,
        target: BackendTarget,
        plan: CheckSettings,
        places: tuple[Endpoint, ...],
        first: int,
        *,
        selector: selectors.BaseSelector,
        at: Callable[[float, Callable[[], None]], None],
        on_end: Callable[[CheckResult], None],
    ) -> None:
        self._target = target
        self._plan = plan
        self._selector = selector
        self._at = at
        self._on_end = on_end
        self._order = [(first + i) % len(places) for i in range(len(places))]
        self._places = places
        self._stage = Stage.CONNECT
        self._sock: StreamSocket | None = None
        self._ssl: Pointer = None
        self._established = False
        self._version, self._not_after_at = "", 0.0
        self._mask = 0
        self._head: Head | None = None
        self._request = b""
        self._began_at = self._shook_at = time.monotonic()
        self._deadline_at = self._give_up_at = float("inf")

    def begin(self) -> None:
        """Start; the result may be there when this returns."""
        self._began_at = time.monotonic()
        self._open()

    # Events.

    def on_ready(self) -> None:
        """The socket is ready."""
        if self._stage is Stage.CONNECT:
            self._connected()
        elif self._stage is Stage.HANDSHAKE:
            self._shake()
        elif self._stage is Stage.REQUEST:
            self._ask()
        else:
            self._read()

    def _until(self, deadline_at: float) -> None:
        self._deadline_at = deadline_at
        self._at(deadline_at, self._on_deadline)

    def _on_deadline(self) -> None:
        if time.monotonic() < self._deadline_at:
            return  # that of an earlier stage, or of a probe that has ended
        within = f"within health.timeout_s ({self._plan.timeout_s:g} s)"
        slow = "find out whether it is overloaded or a firewall drops packets; if it is just slow, raise the pool's health.timeout_s"
        if self._stage is Stage.LISTEN:
            self._heard_nothing()
        elif self._stage is Stage.CONNECT:
            self._fail(Reason.BACKEND_TIMEOUT, f"it did not accept the connection {within}", slow)
        elif self._stage is Stage.HANDSHAKE:
            self._fail(
                Reason.BACKEND_HANDSHAKE_TIMEOUT,
                f"it did not finish the TLS handshake {within}",
                slow,
            )
        else:
            self._fail("http_timeout", f"GET {self._plan.path} was not answered {within}", slow)

    # Stages.

    def _open(self) -> None:
        self._stage = Stage.CONNECT
        self._version, self._not_after_at = "", 0.0
        self._until(time.monotonic() + self._plan.timeout_s)
        try:
            self._sock = start_connect(*self._places[self._order[0]])
        except OSError as error:
            self._blame(explain_connect(error.errno or 0))
            return
        self._watch(selectors.EVENT_WRITE)

    def _connected(self) -> None:
        sock = self._sock
        assert sock is not None  # noqa: S101  for mypy
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._blame(explain_connect(code))
            return
        try:
            if self._plan.hello:
                sock.send(self._plan.hello)  # the first bytes of a connection always fit
        except OSError as error:
            self._blame(explain_connect(error.errno or 0))
            return
        if self._target.context is None:  # a pool that TLS only passes through
            self._passed(f"connected in {self._took()}")
            return
        self._stage = Stage.HANDSHAKE
        try:
            self._ssl = stream.connect(
                self._target.context, sock.fileno(), self._target.server_name, self._plan.alpn, None
            )
        except MemoryError as error:
            self._blame(Failure(Reason.NO_RESOURCES, describe_error(error)))
            return
        self._shake()

    def _shake(self) -> None:
        progress = stream.handshake(self._ssl, Side.OUTBOUND)
        if isinstance(progress, Failure) and self._sock is not None:
            self._blame(explain_backend(progress, self._ssl, self._sock, self._target.name))
        elif progress is stream.DONE:
            self._established = True
            self._shook_at = time.monotonic()
            self._version = stream.version(self._ssl)
            who = peer_identity(self._ssl)
            self._not_after_at = who.not_after_at if who is not None else 0.0
            if self._version == "TLSv1.3":
                self._stage = Stage.LISTEN
                self._give_up_at = self._deadline_at
                self._until(min(self._deadline_at, self._shook_at + LISTEN_S))
                self._watch(selectors.EVENT_READ)
            elif self._plan.path:
                self._begin_asking()
            else:
                self._passed(f"{self._version} handshake in {self._took()}")
        else:
            self._watch(
                selectors.EVENT_READ if progress is stream.STEP_WANT_READ else selectors.EVENT_WRITE
            )

    def _heard_nothing(self) -> None:
        if self._plan.path:
            self._until(self._give_up_at)
            self._begin_asking()
        else:
            self._passed(f"{self._version} handshake in {self._took()}")

    def _begin_asking(self) -> None:
        self._stage = Stage.REQUEST
        self._request = render_get(self._plan.path, self._target.name)
        self._head = Head()
        self._ask()

    def _ask(self) -> None:
        size = lib.SSL_write(self._ssl, self._request, len(self._request))
        if size > 0:
            self._stage = Stage.RESPONSE
            self._watch(selectors.EVENT_READ)
        elif lib.SSL_get_error(self._ssl, size) in (WANT_READ, WANT_WRITE):
            self._watch(selectors.EVENT_WRITE)
        else:
            self._blame(stream.failure(Side.OUTBOUND))

    def _read(self) -> None:
        while self._sock is not None:
            size = lib.SSL_read(self._ssl, _buffer, RECORD_BYTES)
            if size <= 0:
                error = lib.SSL_get_error(self._ssl, size)
                if error == ZERO_RETURN:
                    lib.ERR_clear_error()
                    self._hung_up()
                elif error not in (WANT_READ, WANT_WRITE):
                    self._blame(stream.failure(Side.OUTBOUND))
                elif self._stage is Stage.LISTEN and self._plan.path:
                    self._heard_nothing()
                return
            if self._head is None and self._plan.path:
                self._fail(
                    "not_http",
                    f"it spoke before GET {self._plan.path} was sent",
                    "correct the backend's port, or remove health.http_get",
                )
            elif self._head is None:  # a backend that speaks first has nothing against us
                self._passed(f"{self._version} handshake in {self._took()}")
            else:
                self._answered(self._head.feed(_view[:size]))

    def _hung_up(self) -> None:
        if self._stage is Stage.RESPONSE:
            self._fail(
                "http_gone",
                f"it closed the connection instead of answering GET {self._plan.path}",
                "see its log",
            )
        else:
            self._fail(
                Reason.BACKEND_GONE,
                "it closed the connection right after the TLS handshake",
                "see its log; it may not like the pool's machine_certificate",
            )

    def _answered(self, status: int | str | None) -> None:
        path = self._plan.path
        if isinstance(status, str):
            self._fail(
                "not_http",
                f"what it answered to GET {path} is not HTTP/1.1: {status}",
                "correct the backend's port, or remove health.http_get",
            )
        elif status is not None and has_status(self._plan.statuses, status):
            self._passed(f"{self._version} GET {path} answered {status} in {self._took()}")
        elif status is not None:
            self._fail(
                "http_status",
                f"GET {path} answered {status}",
                "see the backend's log; health.http_status says which statuses are good",
            )

    # Endings.

    def _took(self) -> str:
        at = self._shook_at if self._stage is Stage.LISTEN else time.monotonic()
        return f"{(at - self._began_at) * 1000:.0f} ms"

    def _passed(self, detail: str) -> None:
        self._end(CHECK_OK, CHECK_OK, detail, "")

    def _blame(self, failure: Failure) -> None:
        if self._established:
            failure = explain_rejection(after_handshake(failure), self._ssl)
        self._fail(failure.reason, failure.detail, REMEDIES[failure.reason])

    def _fail(self, word: str, detail: str, remedy: str) -> None:
        if len(self._order) > 1 and word != Reason.NO_RESOURCES:
            self._close()
            self._order.pop(0)
            self._open()
        else:
            self._end(self._stage.value.strip(), word, detail, remedy)

    def _end(self, label: str, word: str, detail: str, remedy: str) -> None:
        self._close()
        place = self._order[0]
        at = time.monotonic() if self._stage is not Stage.LISTEN else self._shook_at
        address = format_address(self._places[place][1])
        self._on_end(
            CheckResult(
                label,
                str(word),
                clip(detail, _DETAIL_CHARACTERS),
                remedy,
                self._began_at,
                at,
                place,
                address,
                self._version,
                self._not_after_at,
            )
        )

    def _close(self) -> None:
        self._deadline_at = float("inf")
        if self._sock is None:
            return
        if self._mask:
            self._selector.unregister(self._sock.fileno())
            self._mask = 0
        if self._ssl is not None:
            if self._established:
                stream.close_notify(self._ssl)
            stream.free(self._ssl, established=self._established)
            self._ssl = None
        self._established = False
        self._head = None
        self._sock.close()
        self._sock = None

    def _watch(self, mask: int) -> None:
        if self._sock is None or mask == self._mask:
            return
        if self._mask:
            self._selector.modify(self._sock.fileno(), mask, self.on_ready)
        else:
            self._selector.register(self._sock.fileno(), mask, self.on_ready)
        self._mask = mask
