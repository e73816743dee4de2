"""One TLS connection on one socket: begin, handshake step by step, what was negotiated, end.

Theory of operation. An `SSL *` is bound to the socket's file descriptor, so OpenSSL reads and writes it without Python
in between. `handshake` is called whenever the socket is ready and returns a value, never an exception but those of `check`. OpenSSL calls
`VERIFY_CALLBACK` for every certificate it verifies. The callback never turns a refusal into an acceptance. It remembers the
first certificate that failed, because OpenSSL itself forgets it and an operator wants its name; and it asks the caller's
`check` about a leaf that OpenSSL accepts, so that a client refused by a rule is told by an alert and not by silence. OpenSSL does
not call it on a resumed handshake: there `SERVER_NAME_CALLBACK` asks `check` about the leaf in the ticket, when OpenSSL has decided to resume and
has not answered yet. One thread, one handshake step at a time: so one module-level slot for all this is enough.

Never: decides whether a peer is allowed (that is `identity.judge`), waits, or knows about sessions.
Next: `relay.tls.identity.admit`
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

from relay.core.hello_extensions import parse_name
from relay.errors import Reason, Side
from relay.tls.certificates.purpose import forbidding_extension, subject_in
from relay.tls.certificates.x509_fields import has_broken_extensions, to_der
from relay.tls.explain import Failure, explain_errno, explain_queue, explain_verify
from relay.tls.identity import LARGE_BYTES, Identity, identity_of, peer_identity
from relay.tls.raw import (
    BOTH_SHUT,
    ERROR_SSL,
    EXTENSION_OK,
    EXTENSION_REFUSED,
    HOST_NAME,
    NULL,
    OP_NO_TICKET,
    WANT_READ,
    WANT_WRITE,
    Pointer,
    ffi,
    lib,
)

_do_handshake = lib.SSL_do_handshake
_get_error = lib.SSL_get_error
_clear_error = lib.ERR_clear_error


class Progress(Enum):
    """How a handshake stands after a step; a step that failed gives a Failure instead."""

    DONE = "done"
    WANT_READ = "want_read"
    WANT_WRITE = "want_write"
    MORE = "more"  # of `relay.tls.stepwise`: go on, no event will come


DONE, STEP_WANT_READ, STEP_WANT_WRITE = Progress.DONE, Progress.WANT_READ, Progress.WANT_WRITE
STEP_MORE = Progress.MORE


Check = Callable[[Identity], Failure | None]


class _Verdict:
    """What the handshake step under way thinks of the peer's certificate: which it has refused, or `accepted`, and what to ask about those that OpenSSL accepts."""

    __slots__ = (
        "accepted",
        "at_fault",
        "bug",
        "check",
        "code",
        "depth",
        "failure",
        "identity",
        "side",
    )

    def __init__(self) -> None:
        self.accepted: Identity | None = None
        self.bug: BaseException | None = None
        self.check: Check | None = None
        self.failure: Failure | None = None
        self.code = 0
        self.depth = 0
        self.identity: Identity | None = None
        self.side = Side.INBOUND
        self.at_fault = b""  # DER of the certificate of the chain that OpenSSL stopped at


_verdict = _Verdict()
_CERT_REJECTED = lib.X509_V_ERR_CERT_REJECTED
# X509_V_ERR_* of x509_vfy.h: INVALID_PURPOSE, INVALID_CA by its old and new number, KEYUSAGE_NO_CERTSIGN.
_PURPOSE_CODES = frozenset((26, 24, 79, 32))
_ISSUER_UNKNOWN = 20  # X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY
_BAD_CERTIFICATE, _CERTIFICATE_EXPIRED = 42, 45  # RFC 8446, 6


def _on_verify(ok: int, store_context: Any) -> int:
    depth: int = lib.X509_STORE_CTX_get_error_depth(store_context)
    if ok == 1:
        if depth != 0 or _verdict.check is None:
            return 1
        _verdict.identity = who = identity_of(lib.X509_STORE_CTX_get_current_cert(store_context))
        _verdict.failure = _verdict.check(who)
        if _verdict.failure is None:
            _verdict.accepted = who
            return 1
        _verdict.code = _CERT_REJECTED
        lib.X509_STORE_CTX_set_error(
            store_context, _CERT_REJECTED
        )  # the client gets the alert bad_certificate
        return 0
    if _verdict.code == 0:
        _verdict.code = lib.X509_STORE_CTX_get_error(store_context)
        _verdict.depth = depth
        # The peer's own, also when it is its issuer that is not liked: that is whom the log has to name.
        certificate = lib.X509_STORE_CTX_get0_cert(store_context)
        current = lib.X509_STORE_CTX_get_current_cert(store_context)
        if _verdict.code == _ISSUER_UNKNOWN and current != NULL and has_broken_extensions(current):
            _verdict.code = lib.X509_V_ERR_INVALID_EXTENSION  # the issuer is not what is wrong
            lib.X509_STORE_CTX_set_error(store_context, _verdict.code)
        _verdict.at_fault = b""
        # Not for a client's other faults: strangers could make us write down large certificates.
        if _verdict.side is Side.OUTBOUND or _verdict.code in _PURPOSE_CODES:
            der = to_der(current) if current != NULL else b""
            _verdict.at_fault = der if len(der) <= LARGE_BYTES else b""
        # Whoever connects could fill the memory with certificates that nobody has signed.
        _verdict.identity = (
            identity_of(certificate, remember=False) if certificate != NULL else None
        )
    return 0


def _on_server_name(ssl: Any, alert: Any, _arg: Any) -> int:
    # The route was chosen before (relay.worker.intake). But only a name that is acknowledged goes into a TLS 1.2 session, and without
    # it there, SSL_get_servername knows no name on a resumed handshake, and the comparison with the peeked one fails.
    if _verdict.check is None or not lib.SSL_session_reused(ssl):
        return EXTENSION_OK
    who = peer_identity(ssl)
    failure = _verdict.check(who) if who is not None else Failure(Reason.NO_CERTIFICATE)
    if failure is None:
        _verdict.accepted = who
        return EXTENSION_OK
    _verdict.identity, _verdict.failure, _verdict.code, _verdict.depth = (
        who,
        failure,
        _CERT_REJECTED,
        0,
    )
    alert[0] = _CERTIFICATE_EXPIRED if failure.reason is Reason.EXPIRED else _BAD_CERTIFICATE
    return EXTENSION_REFUSED


def _on_bug(_kind: Any, bug: BaseException, _traceback: Any) -> None:
    _verdict.bug = bug


# error=0: should the Python above ever raise, the certificate is refused. The exception goes on to who called `handshake`.
VERIFY_CALLBACK: Any = ffi.callback(
    "int(int, X509_STORE_CTX *)", _on_verify, error=0, onerror=_on_bug
)
SERVER_NAME_CALLBACK: Any = ffi.callback(
    "int(SSL *, int *, void *)", _on_server_name, error=EXTENSION_REFUSED, onerror=_on_bug
)


def accept(context: Pointer, fd: int) -> Pointer:
    """A server-side connection on a non-blocking socket; the caller owns it and calls `free`."""
    ssl = _new(context, fd)
    lib.SSL_set_accept_state(ssl)
    return ssl


def connect(
    context: Pointer, fd: int, server_name: bytes, alpn: bytes, session: Pointer | None
) -> Pointer:
    """A client-side connection; `server_name` zero-terminated or empty, `alpn` one protocol or empty, `session` one to resume."""
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
        raise MemoryError("OpenSSL could not make a connection")
    return ssl


def handshake(ssl: Pointer, side: Side, check: Check | None = None) -> Progress | Failure:
    """Go on with the handshake as far as the socket lets it; `check` may refuse a leaf certificate that OpenSSL accepts."""
    _verdict.code = 0
    _verdict.accepted = _verdict.failure = None
    _verdict.check, _verdict.side = check, side
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
    if _verdict.bug is not None:
        bug, _verdict.bug = _verdict.bug, None
        _clear_error()
        raise bug
    if error == ERROR_SSL and _verdict.code:
        _clear_error()
        return _verdict.failure or _explain_certificate(side)
    return failure(side)


def _explain_certificate(side: Side) -> Failure:
    """Why OpenSSL refused the peer's certificate, with the extension that forbids its use."""
    found = explain_verify(side, _verdict.code, _verdict.depth)
    if _verdict.code not in _PURPOSE_CODES:
        return found
    issuer = _verdict.depth > 0
    fault = forbidding_extension(_verdict.at_fault, side, issuer=issuer)
    if not fault:
        return found
    if issuer:
        who = subject_in(_verdict.at_fault)
        fault = f'its issuer "{who}" (certificate {_verdict.depth} of its chain) is unfit: {fault}'
    return Failure(found.reason, fault)


def failure(side: Side) -> Failure:
    """Why the call that has just failed did; right after SSL_get_error, before any other call that may set errno."""
    errno = ffi.errno
    return explain_queue(side) if lib.ERR_peek_error() else explain_errno(side, errno)


def refused_identity() -> Identity | None:
    """Whose certificate the last handshake step refused; None when it did not fail for a certificate."""
    return _verdict.identity if _verdict.code else None


def accepted_identity() -> Identity | None:
    """Whom `check` has let in during the last handshake step; None when it was asked in an earlier one, or not at all."""
    return _verdict.accepted


def refusal_code() -> int:
    """The X509_V_ERR_* of the last handshake step; 0 when it did not fail for a certificate."""
    return _verdict.code


def refused_at() -> bytes:
    """The DER of the certificate that OpenSSL stopped at in the last handshake step; b"" for none."""
    return _verdict.at_fault if _verdict.code else b""


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
    """The protocol in use, as OpenSSL calls it: TLSv1.2, TLSv1.3."""
    return _static(lib.SSL_get_version(ssl))


def cipher(ssl: Pointer) -> str:
    """The cipher suite in use, by OpenSSL's name."""
    current = lib.SSL_get_current_cipher(ssl)
    return "" if current == NULL else _static(lib.SSL_CIPHER_get_name(current))


def group(ssl: Pointer) -> str:
    """The key exchange group of the connection; "" for a resumption without one, and when the handshake failed before there was a session."""
    if (
        lib.SSL_get_session(ssl) == NULL
    ):  # SSL_get0_group_name would look into it all the same, and crash
        return ""
    name = lib.SSL_get0_group_name(ssl)
    return "" if name == NULL else ffi.string(name).decode("ascii", "replace")


_alpn_pointer: Any = ffi.new("unsigned char **")
_alpn_length: Any = ffi.new("unsigned int *")


def alpn(ssl: Pointer) -> bytes:
    """The protocol negotiated through ALPN (RFC 7301), b"" for none."""
    lib.SSL_get0_alpn_selected(ssl, _alpn_pointer, _alpn_length)
    length = _alpn_length[0]
    return bytes(ffi.buffer(_alpn_pointer[0], length)) if length else b""


def server_name(ssl: Pointer) -> str:
    """The server name of the handshake as OpenSSL read it, in the words of `core.hello_extensions.parse_name`; "" for none."""
    name = lib.SSL_get_servername(ssl, HOST_NAME)
    return "" if name == NULL else parse_name(ffi.string(name))


def resumed(ssl: Pointer) -> bool:
    """Whether the handshake resumed an earlier session."""
    return bool(lib.SSL_session_reused(ssl))


def forbid_resumption(ssl: Pointer) -> None:
    """Give this client no ticket; to be called before its handshake is done."""
    lib.SSL_set_options(ssl, OP_NO_TICKET)


def close_notify(ssl: Pointer) -> None:
    """Tell the peer that nothing more comes from us (RFC 8446, 6.1). A socket that takes nothing more loses it; we do not wait."""
    if lib.SSL_shutdown(ssl) < 0:
        lib.ERR_clear_error()


def free(ssl: Pointer, *, established: bool) -> None:
    """Give the connection back. An established one is marked as properly shut, else OpenSSL forbids its session to be resumed."""
    if established:
        lib.SSL_set_shutdown(ssl, BOTH_SHUT)
    lib.SSL_free(ssl)
    _clear_error()
