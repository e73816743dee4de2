"""TLS for the load generator and the backend.

pyOpenSSL makes the contexts. The rest calls OpenSSL through cffi, because both
processes share a CPU that must not be the bottleneck. Results are values: a positive
count, or `WANT_READ`, `WANT_WRITE`, `EOF`.

Never: is used by the relay. The measured code and the measuring code share nothing.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

from OpenSSL import SSL
from OpenSSL._util import ffi, lib

from bench.pki import Pki

WANT_READ, WANT_WRITE, EOF = -1, -2, 0
SUITE = b"TLS_AES_128_GCM_SHA256"
GROUP = b"X25519"
BUFFER_BYTES = 65_536

# Constants of OpenSSL's ssl.h. SSL_MODE_NO_AUTO_CHAIN: do not build the own
# certificate's chain again in every handshake.
_MODE_NO_AUTO_CHAIN = 0x8
(
    _SSL_ERROR_SSL,
    _SSL_ERROR_WANT_READ,
    _SSL_ERROR_WANT_WRITE,
    _SSL_ERROR_SYSCALL,
    _SSL_ERROR_ZERO_RETURN,
) = 1, 2, 3, 5, 6

buffer = ffi.new("char[]", BUFFER_BYTES)


class TlsError(Exception):
    """A connection failed; the text is OpenSSL's reason."""


class AbandonedError(TlsError):
    """The peer closed the connection before the handshake was done."""


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What one handshake agreed on."""

    version: str
    cipher: str
    group: str
    resumed: bool


def open_client_context(
    pki: Pki, *, server_name: str, same_cipher: bool, certificate: bool = True
) -> SSL.Context:
    """The load generator's context. It verifies the gateway."""
    context = _open_context(SSL.TLS_CLIENT_METHOD, pki, same_cipher=same_cipher)
    if certificate:
        _use(context, pki, "client")
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # pyOpenSSL has no public way to its SSL_CTX.
    param = lib.SSL_CTX_get0_param(context._context)  # noqa: SLF001
    name = server_name.encode()
    if lib.X509_VERIFY_PARAM_set1_host(param, name, len(name)) != 1:
        raise TlsError(f"OpenSSL refuses the name {server_name}")
    return context


def open_server_context(pki: Pki, *, same_cipher: bool, party: str = "backend") -> SSL.Context:
    """The backend's context. It requires the machine certificate."""
    context = _open_context(SSL.TLS_SERVER_METHOD, pki, same_cipher=same_cipher)
    _use(context, pki, party)
    context.set_session_id(b"bench")
    return context


def _open_context(method: int, pki: Pki, *, same_cipher: bool) -> SSL.Context:
    context = SSL.Context(method)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    if same_cipher:
        context.set_tls13_ciphersuites(SUITE)
    if lib.SSL_CTX_set1_curves_list(context._context, GROUP) != 1:  # noqa: SLF001
        raise TlsError("OpenSSL does not know the group X25519")
    context.load_verify_locations(str(pki.ca))
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    context.set_mode(_MODE_NO_AUTO_CHAIN)
    # A gateway may close with a bare FIN. The byte counts show whether data was lost.
    context.set_options(SSL.OP_IGNORE_UNEXPECTED_EOF)
    return context


def _use(context: SSL.Context, pki: Pki, party: str) -> None:
    context.use_certificate_chain_file(str(pki.pem(party)))
    context.use_privatekey_file(str(pki.pem(party)))


def open_client_ssl(
    context: SSL.Context, sock: socket.socket, server_name: bytes, session: Any = None
) -> Any:
    """An `SSL*` for a connected client socket, which may resume `session`."""
    ssl = lib.SSL_new(context._context)  # noqa: SLF001
    lib.SSL_set_fd(ssl, sock.fileno())
    lib.SSL_set_connect_state(ssl)
    lib.SSL_set_tlsext_host_name(ssl, server_name)
    if session is not None:
        lib.SSL_set_session(ssl, session)
    return ssl


def open_server_ssl(context: SSL.Context, sock: socket.socket) -> Any:
    """An `SSL*` for an accepted socket."""
    ssl = lib.SSL_new(context._context)  # noqa: SLF001
    lib.SSL_set_fd(ssl, sock.fileno())
    lib.SSL_set_accept_state(ssl)
    return ssl


def handshake(ssl: Any) -> int:
    """Do one step; 1 when the handshake is complete, or what it waits for."""
    result: int = lib.SSL_do_handshake(ssl)
    if result == 1:
        return 1
    wanted = check_result(ssl, result)
    if wanted == EOF:
        raise AbandonedError("the peer closed the connection during the handshake")
    return wanted


def check_result(ssl: Any, result: int) -> int:
    """The meaning of a failed OpenSSL call: `WANT_READ`, `WANT_WRITE` or `EOF`.

    Raises TlsError. Leaves OpenSSL's error queue empty.
    """
    error = lib.SSL_get_error(ssl, result)
    if error == _SSL_ERROR_WANT_READ:
        return WANT_READ
    if error == _SSL_ERROR_WANT_WRITE:
        return WANT_WRITE
    if error == _SSL_ERROR_ZERO_RETURN:
        return EOF
    code = lib.ERR_get_error()
    lib.ERR_clear_error()
    if error == _SSL_ERROR_SYSCALL and code == 0:
        raise TlsError("connection reset")
    text = lib.ERR_reason_error_string(code)
    raise TlsError(ffi.string(text).decode() if text != ffi.NULL else f"OpenSSL error {code:#x}")


def describe(ssl: Any) -> Negotiated:
    """What the finished handshake agreed on."""
    cipher = lib.SSL_get_current_cipher(ssl)
    group = lib.SSL_get0_group_name(ssl)
    return Negotiated(
        version=ffi.string(lib.SSL_get_version(ssl)).decode(),
        cipher=ffi.string(lib.SSL_CIPHER_get_name(cipher)).decode(),
        group=ffi.string(group).decode() if group != ffi.NULL else "",
        resumed=bool(lib.SSL_session_reused(ssl)),
    )


def take_session(ssl: Any) -> Any:
    """The connection's session, for a later `open_client_ssl`."""
    session = lib.SSL_get1_session(ssl)
    return ffi.gc(session, lib.SSL_SESSION_free)


def close(ssl: Any, sock: socket.socket) -> None:
    """Send close_notify if possible, and close."""
    lib.SSL_shutdown(ssl)
    lib.ERR_clear_error()
    lib.SSL_free(ssl)
    sock.close()
