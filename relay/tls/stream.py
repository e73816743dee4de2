"""One TLS connection on one socket: open, handshake in steps, negotiated values, close.

An `SSL *` is bound to the socket's file descriptor, so OpenSSL reads and writes the
socket without Python in between. `handshake` is called whenever the socket is ready. It
returns a value and raises only what `check` raised. `verification` has OpenSSL's result
for the peer's certificate.

Never: decides whether a peer is allowed (that is `identity.admit`), waits, or knows
about sessions.
Next: `relay.tls.identity.admit`
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from relay.core.hello_extensions import parse_name
from relay.errors import Side
from relay.tls.explain import Failure, explain_errno, explain_queue
from relay.tls.raw import (
    BOTH_SHUT,
    ERROR_SSL,
    HOST_NAME,
    NULL,
    OP_NO_TICKET,
    WANT_READ,
    WANT_WRITE,
    Pointer,
    ffi,
    lib,
)
from relay.tls.verification import Check, explain_refusal
from relay.tls.verification import state as _state

_do_handshake = lib.SSL_do_handshake
_get_error = lib.SSL_get_error
_clear_error = lib.ERR_clear_error


class Progress(Enum):
    """The state of a handshake after a step.

    A step that failed returns a Failure instead.
    """

    DONE = "done"
    WANT_READ = "want_read"
    WANT_WRITE = "want_write"
    MORE = "more"  # from `relay.tls.stepwise`: call again, no event will come


DONE, STEP_WANT_READ, STEP_WANT_WRITE = Progress.DONE, Progress.WANT_READ, Progress.WANT_WRITE
STEP_MORE = Progress.MORE


def accept(owner: Pointer, material: Pointer, fd: int) -> Pointer:
    """A server-side connection on a non-blocking socket. The caller must `free` it.

    `owner` seals and opens the tickets; `material` has the certificate and the CAs. See
    `relay.tls.generation`.
    """
    ssl = _new(owner, fd)
    if material is not owner:
        lib.SSL_set_SSL_CTX(ssl, material)
    lib.SSL_set_accept_state(ssl)
    return ssl


def connect(
    context: Pointer, fd: int, server_name: bytes, alpn: bytes, session: Pointer | None
) -> Pointer:
    """A client-side connection on a non-blocking socket. The caller must `free` it.

    `server_name` is zero-terminated or empty, `alpn` is one protocol or empty,
    `session` is one to resume.
    """
    ssl = _new(context, fd)
    lib.SSL_set_connect_state(ssl)
    if server_name:
        lib.SSL_set_tlsext_host_name(ssl, server_name)
    if alpn:
        lib.SSL_set_alpn_protos(ssl, bytes((len(alpn),)) + alpn, len(alpn) + 1)
    if session is not None:
        lib.SSL_set_session(ssl, session)
    return ssl


def _new(context: Pointer, fd: int) -> Pointer:
    ssl = lib.SSL_new(context)
    if ssl == NULL or lib.SSL_set_fd(ssl, fd) != 1:
        lib.SSL_free(ssl)
        lib.ERR_clear_error()
        raise MemoryError("OpenSSL could not create a connection")
    return ssl


def handshake(ssl: Pointer, side: Side, check: Check | None = None) -> Progress | Failure:
    """Continue the handshake as far as the socket allows.

    `check` may refuse a leaf certificate that OpenSSL accepts.
    """
    _state.code = 0
    _state.accepted = _state.failure = None
    _state.above = ()
    _state.check, _state.side = check, side
    _clear_error()
    result = _do_handshake(ssl)
    if result == 1:
        _clear_error()
        return DONE
    error = _get_error(ssl, result)
    if error == WANT_READ:
        return STEP_WANT_READ
    if error == WANT_WRITE:
        return STEP_WANT_WRITE
    if _state.bug is not None:
        bug, _state.bug = _state.bug, None
        _clear_error()
        raise bug
    if error == ERROR_SSL and _state.code:
        _clear_error()
        return _state.failure or explain_refusal(side)
    return failure(side)


def failure(side: Side) -> Failure:
    """Why the last OpenSSL call failed.

    Call it right after SSL_get_error, before anything else can change errno.
    """
    errno = ffi.errno
    return explain_queue(side) if lib.ERR_peek_error() else explain_errno(side, errno)


_names: dict[Any, str] = {}


def _static(pointer: Any) -> str:
    """A C string that OpenSSL never frees, decoded once."""
    if pointer == NULL:
        return ""
    name = _names.get(pointer)
    if name is None:
        name = _names[pointer] = ffi.string(pointer).decode("ascii", "replace")
    return name


def version(ssl: Pointer) -> str:
    """The negotiated protocol by OpenSSL's name: TLSv1.2, TLSv1.3."""
    name = lib.SSL_get_version(ssl)
    return _names.get(name) or _static(name)


def cipher(ssl: Pointer) -> str:
    """The negotiated cipher suite by OpenSSL's name."""
    current = lib.SSL_get_current_cipher(ssl)
    if current == NULL:
        return ""
    name = lib.SSL_CIPHER_get_name(current)
    return _names.get(name) or _static(name)


def group(ssl: Pointer) -> str:
    """The key exchange group.

    "" for a resumption without a key exchange, or if the handshake failed early.
    """
    # SSL_get0_group_name crashes on a connection without a session.
    if lib.SSL_get_session(ssl) == NULL:
        return ""
    name = lib.SSL_get0_group_name(ssl)
    return "" if name == NULL else ffi.string(name).decode("ascii", "replace")


_alpn_pointer: Any = ffi.new("unsigned char **")
_alpn_length: Any = ffi.new("unsigned int *")


def alpn(ssl: Pointer) -> bytes:
    """The protocol negotiated with ALPN (RFC 7301); b"" for none."""
    lib.SSL_get0_alpn_selected(ssl, _alpn_pointer, _alpn_length)
    length = _alpn_length[0]
    return bytes(ffi.buffer(_alpn_pointer[0], length)) if length else b""


def server_name(ssl: Pointer) -> str:
    """The server name that OpenSSL read, normalized by `parse_name`; "" for none."""
    name = lib.SSL_get_servername(ssl, HOST_NAME)
    return "" if name == NULL else parse_name(ffi.string(name))


def resumed(ssl: Pointer) -> bool:
    """Whether the handshake resumed an earlier session."""
    return bool(lib.SSL_session_reused(ssl))


def forbid_resumption(ssl: Pointer) -> None:
    """Send this client no ticket. Must be called before its handshake is done."""
    lib.SSL_set_options(ssl, OP_NO_TICKET)


def close_notify(ssl: Pointer) -> None:
    """Tell the peer that no more data follows (RFC 8446, 6.1).

    If the socket's buffer is full the message is lost; this function does not wait.
    """
    if lib.SSL_shutdown(ssl) < 0:
        lib.ERR_clear_error()


def free(ssl: Pointer, *, established: bool) -> None:
    """Free the connection.

    An established one is marked as shut down; otherwise OpenSSL makes its session
    impossible to resume.
    """
    if established:
        lib.SSL_set_shutdown(ssl, BOTH_SHUT)
    lib.SSL_free(ssl)
    _clear_error()
