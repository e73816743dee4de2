"""Handshakes between relay's TLS and the standard library's over a socket pair.

One thread steps both sides in turn, so neither has to wait.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relay.config.listener_model import Allow, Listener, Route
from relay.config.model import Config
from relay.config.pool_model import Backend, Pool
from relay.errors import Side
from relay.tls import stream, verification
from relay.tls.contexts import build_generation
from relay.tls.explain import Failure
from relay.tls.generation import BackendTarget, Generation, InboundRoute
from relay.tls.identity import Identity, peer_identity
from relay.tls.raw import Pointer, lib
from relay.tls.verification import Chain
from tests.support.pki import BACKEND_NAME, Files, Pki

PATIENCE_S = 10
MOST_STEPS = 200
NAME = "app.example.com"
TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
VERSIONS = {"TLSv1.2": TLS12, "TLSv1.3": TLS13}


def config_of(
    pki: Pki,
    *,
    routes: tuple[dict[str, Any], ...] = ({},),
    backends: tuple[dict[str, Any], ...] = ({},),
    **pool: Any,
) -> Config:
    """A configuration with one listener, `https`, and one pool, `main`.

    The dictionaries hold what differs from the defaults.
    """
    usual = {
        "pool": "main",
        "certificate": pki.gateway.certificate,
        "private_key": pki.gateway.key,
        "client_ca": pki.ca,
    }
    machine = {
        "machine_certificate": pki.machine.certificate,
        "machine_key": pki.machine.key,
        "backend_ca": pki.ca,
    }
    # As after loading: nothing is parsed again.
    made = tuple(
        Route.model_construct(
            **{
                **{name: value.default for name, value in Route.model_fields.items()},
                **usual,
                **each,
            }
        )
        for each in routes
    )
    members = tuple(
        Backend(**{"route": f"b{i}", "address": "127.0.0.1:1", "name": BACKEND_NAME, **each})
        for i, each in enumerate(backends, 1)
    )
    whole = Pool.model_construct(
        **{
            **{name: value.default for name, value in Pool.model_fields.items()},
            **machine,
            "backend": members,
            **pool,
        }
    )
    listener = Listener.model_construct(name="https", listen=("127.0.0.1:0",), route=made)
    return Config.model_construct(
        **{name: value.default for name, value in Config.model_fields.items()}
        | {"listener": (listener,), "pool": {"main": whole}}
    )


def generation_of(pki: Pki, number: int = 1, **differences: Any) -> Generation:
    """The TLS contexts of `config_of`."""
    return build_generation(config_of(pki, **differences), number)


def route_of(pki: Pki, **route: Any) -> InboundRoute:
    """One route that matches every name."""
    found = (
        generation_of(pki, routes=(route,))
        .routes["https"]
        .find(route.get("sni", (NAME,))[0].replace("*", "app"))
    )
    assert found is not None
    return found


def target_of(pki: Pki, name: str = BACKEND_NAME, **pool: Any) -> BackendTarget:
    """One backend's context."""
    return generation_of(pki, backends=({"name": name},), **pool).targets["main"][0]


def allow(**rules: tuple[str, ...]) -> Allow:
    """Allow rules as a configuration has them."""
    return Allow(**rules)


def client_context(
    pki: Pki, files: Files | None, version: ssl.TLSVersion | None = None, *, ca: Path | None = None
) -> ssl.SSLContext:
    """A stdlib client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca or pki.ca)
    if files is not None:
        context.load_cert_chain(files.certificate, files.key)
    if version is not None:
        with warnings.catch_warnings():
            # The tests of refusals use old TLS versions.
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = version
    return context


def server_context(
    pki: Pki, files: Files, version: ssl.TLSVersion | None = None, *, ca: Path | None = None
) -> ssl.SSLContext:
    """A stdlib backend that requires our machine certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    context.load_verify_locations(ca or pki.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected non-blocking sockets."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected non-blocking sockets that can be reset."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname(), PATIENCE_S)
        ours, _ = listener.accept()
    for each in (ours, theirs):
        each.setblocking(False)
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ours, theirs


def wait_readable(sock: socket.socket, patience_s: float = PATIENCE_S) -> None:
    """Block until the socket has something to read."""
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        assert selector.select(patience_s), f"nothing came within {patience_s} s"


def reset(sock: socket.socket) -> None:
    """Close a TCP socket with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


@dataclass(slots=True)
class Meeting:
    """The result of a handshake between relay and a stdlib peer.

    `peer` and `sock` are open when the handshake succeeded.
    """

    ssl: Any
    sock: socket.socket
    peer: ssl.SSLSocket
    result: stream.Progress | Failure
    identity: Identity | None = (
        None  # of the peer that was accepted, or whose certificate was refused
    )
    peer_error: OSError | None = None  # what the peer's handshake or its first read raised
    steps: int = 0
    established: bool = field(default=False)
    accepted: Identity | None = None  # the client that the check admitted
    chain: Chain = ()  # what a full handshake has verified above the peer's leaf

    @property
    def resumed(self) -> bool:
        """Whether relay's side resumed a session."""
        return stream.resumed(self.ssl)

    @property
    def reason(self) -> str:
        """The reason word for relay's failure, or `done`."""
        return self.result.reason.value if isinstance(self.result, Failure) else self.result.value

    @property
    def alert(self) -> str:
        """OpenSSL's word for the alert that the peer got."""
        return getattr(self.peer_error, "reason", None) or ""

    def send(self, data: bytes) -> None:
        """From us to the peer."""
        assert lib.SSL_write(self.ssl, data, len(data)) == len(data)

    def pending(self) -> bytes:
        """What the peer can read now."""
        return _read(self.peer)

    def close(self) -> None:
        """Free everything."""
        if self.ssl is not None:
            stream.free(self.ssl, established=self.established)
            self.ssl = None
        self.sock.close()
        self.peer.close()


def _read(peer: ssl.SSLSocket) -> bytes:
    try:
        return peer.recv(65536)
    except ssl.SSLWantReadError:
        return b""


def _run(
    side: Side,
    ours: Any,
    sock: socket.socket,
    peer: ssl.SSLSocket,
    check: Callable[[Identity], Failure | None] | None,
) -> Meeting:
    """Step both until both are done, or one has failed and the other has seen it.

    When the check raises, everything is closed.
    """
    meeting = Meeting(ours, sock, peer, stream.STEP_WANT_READ)
    try:
        return _step_both(meeting, side, check)
    except BaseException:
        meeting.close()
        raise


def _step_both(
    meeting: Meeting, side: Side, check: Callable[[Identity], Failure | None] | None
) -> Meeting:
    ours, sock, peer = meeting.ssl, meeting.sock, meeting.peer
    peer_done = False
    for _ in range(MOST_STEPS):
        meeting.steps += 1
        if meeting.result is not stream.DONE and not isinstance(meeting.result, Failure):
            meeting.result = stream.handshake(ours, side, check)
            meeting.accepted = verification.accepted_identity()
            meeting.chain = verification.accepted_chain() or meeting.chain
            if isinstance(meeting.result, Failure):
                meeting.identity = verification.refused_identity()
                sock.shutdown(socket.SHUT_WR)
        if not peer_done:
            try:
                peer.do_handshake()
                peer_done = True
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                pass
            except OSError as error:
                # With the traceback, the meeting would be in a cycle with this frame.
                meeting.peer_error = error.with_traceback(None)
                peer_done = True
                peer.shutdown(socket.SHUT_WR)
        if peer_done and isinstance(meeting.result, Failure):
            if meeting.peer_error is None:
                try:
                    assert _read(peer) == b""
                except OSError as error:
                    # As above: no cycle with this frame.
                    meeting.peer_error = error.with_traceback(None)
            return meeting
        if peer_done and meeting.result is stream.DONE:
            meeting.established = True
            meeting.identity = peer_identity(ours)
            return meeting
    raise AssertionError(
        f"the handshake goes on after {MOST_STEPS} steps: {meeting.result}, peer done: {peer_done}"
    )


def accept_on(route: InboundRoute, sock: socket.socket) -> Pointer:
    """A connection that accepts a client of the route on this socket."""
    return stream.accept(route.owner, route.material, sock.fileno())


@contextmanager
def meet_client(
    route: InboundRoute,
    context: ssl.SSLContext,
    *,
    name: str | None = NAME,
    session: ssl.SSLSession | None = None,
    check: Callable[[Identity], Failure | None] | None = None,
    pair: Callable[[], tuple[socket.socket, socket.socket]] = socket_pair,
) -> Iterator[Meeting]:
    """Accept a stdlib client."""
    ours, theirs = pair()
    peer = context.wrap_socket(
        theirs,
        server_hostname=name,
        do_handshake_on_connect=False,
        suppress_ragged_eofs=False,
        session=session,
    )
    yield from _closing(
        _run(
            Side.INBOUND,
            accept_on(route, ours),
            ours,
            peer,
            check,
        )
    )


@contextmanager
def meet_backend(
    target: BackendTarget,
    context: ssl.SSLContext,
    *,
    session: Any = None,
    alpn: bytes = b"",
    check: Callable[[Identity], Failure | None] = lambda _who: None,
    pair: Callable[[], tuple[socket.socket, socket.socket]] = socket_pair,
) -> Iterator[Meeting]:
    """Connect to a stdlib backend."""
    ours, theirs = pair()
    peer = context.wrap_socket(
        theirs, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=False
    )
    yield from _closing(
        _run(
            Side.OUTBOUND,
            stream.connect(target.context, ours.fileno(), target.server_name, alpn, session),
            ours,
            peer,
            check,
        )
    )


def _closing(meeting: Meeting) -> Iterator[Meeting]:
    try:
        yield meeting
    finally:
        meeting.close()


def begin_session(route: InboundRoute, context: ssl.SSLContext) -> ssl.SSLSession:
    """The session of a stdlib client that was admitted without any check by relay."""
    with meet_client(route, context) as meeting:
        return session_of(meeting)


def session_of(meeting: Meeting) -> ssl.SSLSession:
    """The session of a stdlib client, with its TLS 1.3 ticket."""
    meeting.send(b"ticket before this")
    assert meeting.pending() == b"ticket before this"
    session = meeting.peer.session
    assert session is not None
    return session
