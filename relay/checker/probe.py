"""A probe of one endpoint: connect, handshake, and a GET if the pool has one.

A probe goes on when its socket is ready, and fails when its deadline passes. It ends
with a `ProbeResult`. Stages:

    CONNECT    TCP or a unix socket, then the PROXY header and the request for TLS, if
               the pool sends them
    STARTTLS   the answer to the request for TLS, if the pool asks for it in the clear
    HANDSHAKE  always in full, never resumed: every check verifies the chain, its dates
               and the name; then the PROXY header if the pool sends it inside TLS
    LISTEN     TLS 1.3 only, for LISTEN_S: a backend that refuses the relay's
               certificate does so, by an alert or by closing, after the relay's side of
               the handshake is done (RFC 8446, 4.4.2.4); in TLS 1.2 during it
    REQUEST, RESPONSE   the GET, up to the end of the response's head

Without TLS there is no HANDSHAKE and no LISTEN. Before a GET, LISTEN ends with the
backend's first record, because a server sends its tickets after it has accepted the
certificate. A GET sent earlier could be answered by a reset, which would destroy the
alert before it.

Never: decides whether a backend is up, blocks, or resumes a TLS session.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable

from relay.checker import failure as failures
from relay.checker.check import CheckSettings
from relay.checker.connection import CheckConnection
from relay.checker.failure import CheckFailure
from relay.checker.http import ResponseHead, render_get
from relay.checker.probe_result import LABELS, ProbeResult, Stage
from relay.config.http_statuses import has_status
from relay.core.postgres import SSL_REQUEST
from relay.errors import Reason, describe_error
from relay.shared.addresses import Endpoint
from relay.tls import stream
from relay.tls.explain import Failure, explain_connect, explain_start
from relay.tls.generation import BackendTarget, PlainTarget, Target
from relay.tls.identity import peer_identity

# More than the round-trip time between any two places on earth. It makes the check of a
# good backend longer, which delays no client.
LISTEN_S = 0.25


class Probe:
    """One running probe. `begin` starts it; `on_end` gets the result once.

    `at` calls back at an instant. `check_began_at` is when the whole check began.
    """

    def __init__(
        self,
        target: Target,
        settings: CheckSettings,
        endpoint: Endpoint,
        check_began_at: float,
        *,
        selector: selectors.BaseSelector,
        at: Callable[[float, Callable[[], None]], None],
        on_end: Callable[[ProbeResult], None],
    ) -> None:
        self._target = target
        self._settings = settings
        self._endpoint = endpoint
        self._began_at = check_began_at
        self._selector = selector
        self._at = at
        self._on_end = on_end
        self._stage = Stage.CONNECT
        self._connection: CheckConnection | None = None
        self._version, self._not_after_at = "", 0.0
        self._request = b""
        self._head = ResponseHead()
        self._established_at = 0.0
        self._deadline_at = self._check_deadline_at = float("inf")

    def begin(self) -> None:
        """Start. The probe may have ended when this returns."""
        self._check_deadline_at = time.monotonic() + self._settings.timeout_s
        self._set_deadline(self._check_deadline_at)
        try:
            self._connection = CheckConnection(
                self._endpoint, self._selector, self.on_ready, self._target.sources
            )
        except OSError as error:
            self._explain(explain_start(error))

    # Events.

    def on_ready(self) -> None:
        """The socket is ready."""
        connection = self._connection
        if connection is None:
            return
        if self._stage is Stage.CONNECT:
            self._connected(connection)
        elif self._stage is Stage.STARTTLS and isinstance(self._target, BackendTarget):
            self._read_answer(connection, self._target)
        elif self._stage is Stage.HANDSHAKE and isinstance(self._target, BackendTarget):
            self._handshake(connection, self._target)
        elif self._stage is Stage.REQUEST:
            self._send_request(connection)
        else:
            self._read(connection)

    def _set_deadline(self, deadline_at: float) -> None:
        self._deadline_at = deadline_at
        self._at(deadline_at, self._on_deadline)

    def _on_deadline(self) -> None:
        if time.monotonic() < self._deadline_at:
            return  # the deadline of an earlier stage, or the probe has ended
        if self._stage is Stage.LISTEN and self._connection is not None:
            self._not_refused(self._connection)
        elif self._stage is Stage.CONNECT:
            self._fail(failures.connect_timeout(self._settings))
        elif self._stage in {Stage.STARTTLS, Stage.HANDSHAKE}:
            self._fail(failures.handshake_timeout(self._settings))
        else:
            self._fail(failures.answer_timeout(self._settings))

    # Stages.

    def _connected(self, connection: CheckConnection) -> None:
        code = connection.connect_error()
        if code:
            self._explain(explain_connect(code))
            return
        try:
            first = b"" if self._settings.header_inside_tls else self._settings.proxy_header
            first += SSL_REQUEST if self._target.starttls else b""
            if first:
                connection.send_first(first)
        except OSError as error:
            self._explain(explain_connect(error.errno or 0))
            return
        if self._target.starttls:
            self._stage = Stage.STARTTLS
            connection.watch(selectors.EVENT_READ)
        elif isinstance(self._target, BackendTarget):
            self._begin_handshake(connection, self._target)
        elif isinstance(self._target, PlainTarget):
            self._connected_plain(connection, self._target)

    def _connected_plain(self, connection: CheckConnection, target: PlainTarget) -> None:
        """Without TLS, the user that listens on a unix socket is verified."""
        failure = connection.why_wrong_user(target)
        if failure is not None:
            self._explain(failure)
        elif self._settings.path:
            self._begin_request(connection)
        else:
            self._pass(f"connected in {self._took()}")

    def _read_answer(self, connection: CheckConnection, target: BackendTarget) -> None:
        """Read the answer to the request for TLS."""
        answer = connection.read_answer()
        if isinstance(answer, Failure):
            self._explain(answer)
        elif answer:
            self._begin_handshake(connection, target)

    def _begin_handshake(self, connection: CheckConnection, target: BackendTarget) -> None:
        self._stage = Stage.HANDSHAKE
        try:
            connection.begin_tls(target, self._settings.alpn)
        except MemoryError as error:
            self._explain(Failure(Reason.NO_RESOURCES, describe_error(error)))
            return
        self._handshake(connection, target)

    def _handshake(self, connection: CheckConnection, target: BackendTarget) -> None:
        done = connection.handshake(target, self._settings.reports)
        if isinstance(done, Failure):
            self._explain(done)
        elif done:
            self._handshake_done(connection)

    def _handshake_done(self, connection: CheckConnection) -> None:
        self._established_at = time.monotonic()
        self._version = stream.version(connection.ssl)
        peer = peer_identity(connection.ssl)
        self._not_after_at = peer.not_after_at if peer is not None else 0.0
        if self._settings.header_inside_tls:
            # A new connection has room for it.
            sent = connection.write(self._settings.proxy_header)
            if isinstance(sent, Failure):
                self._explain(sent)
                return
        if self._version == "TLSv1.3":
            self._stage = Stage.LISTEN
            self._set_deadline(min(self._check_deadline_at, self._established_at + LISTEN_S))
            connection.watch(selectors.EVENT_READ)
        elif self._settings.path:
            self._begin_request(connection)
        else:
            self._pass_handshake()

    def _not_refused(self, connection: CheckConnection) -> None:
        if self._settings.path:
            self._set_deadline(self._check_deadline_at)
            self._begin_request(connection)
        else:
            self._pass_handshake()

    def _begin_request(self, connection: CheckConnection) -> None:
        self._stage = Stage.REQUEST
        self._request = render_get(self._settings.path, self._target.name)
        self._send_request(connection)

    def _send_request(self, connection: CheckConnection) -> None:
        done = connection.write(self._request)
        if isinstance(done, Failure):
            self._explain(done)
        elif done:
            self._stage = Stage.RESPONSE
            connection.watch(selectors.EVENT_READ)

    def _read(self, connection: CheckConnection) -> None:
        path = self._settings.path
        while self._connection is not None:
            data = connection.read()
            if data is None:
                if self._stage is Stage.LISTEN and path:
                    self._not_refused(connection)  # the first record was a ticket
                return
            if isinstance(data, Failure):
                self._explain(data)
            elif self._stage is Stage.RESPONSE:
                self._on_response(data)
            elif not data:
                self._fail(failures.closed_after_handshake())
            elif path:
                self._fail(failures.data_before_request(path))
            else:  # a backend that sends data has accepted the certificate
                self._pass_handshake()

    def _on_response(self, data: bytes) -> None:
        path = self._settings.path
        if not data:
            self._fail(failures.closed_before_answer(path))
            return
        status = self._head.feed(data)
        if isinstance(status, str):
            self._fail(failures.not_http(path, status))
        elif status is not None and has_status(self._settings.statuses, status):
            self._pass(f"{self._version} GET {path} answered {status} in {self._took()}")
        elif status is not None:
            self._fail(failures.wrong_status(path, status))

    # Ends.

    def _ended_at(self) -> float:
        """Now; or after LISTEN, when the handshake was done."""
        return self._established_at if self._stage is Stage.LISTEN else time.monotonic()

    def _took(self) -> str:
        return f"{(self._ended_at() - self._began_at) * 1000:.0f} ms"

    def _pass_handshake(self) -> None:
        self._pass(f"{self._version} handshake in {self._took()}")

    def _pass(self, detail: str) -> None:
        self._end(None, detail.lstrip())  # there may be no TLS version

    def _explain(self, failure: Failure) -> None:
        if self._connection is not None:
            failure = self._connection.explain(failure)
        found = failures.of_reason(failure)
        if self._settings.proxy_header and self._stage is Stage.HANDSHAKE:
            detail = f"{found.detail or 'failed'}, after a PROXY header (send_proxy)"
            found = found._replace(detail=detail)
        self._fail(found)

    def _fail(self, failure: CheckFailure) -> None:
        self._end(failure, failure.detail)

    def _end(self, failure: CheckFailure | None, detail: str) -> None:
        self._close()
        label, ended_at = LABELS[self._stage], self._ended_at()
        self._on_end(
            ProbeResult(failure, label, detail, ended_at, self._version, self._not_after_at)
        )

    def _close(self) -> None:
        self._deadline_at = float("inf")
        if self._connection is not None:
            self._connection.close()
            self._connection = None
