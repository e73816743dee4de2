"""The callbacks that OpenSSL runs for a peer's certificate, and their results.

OpenSSL calls `VERIFY_CALLBACK` for every certificate that it verifies. The callback
never turns a refusal into an acceptance. It does two things:

- It keeps the first certificate that failed, because OpenSSL does not, and operators
  need its name.
- It calls the caller's `check` with a leaf that OpenSSL accepts. So a client that the
  check refuses gets an alert.

OpenSSL does not run it in a resumed handshake. In that case `SERVER_NAME_CALLBACK`
calls `check` with the leaf in the ticket, after OpenSSL has decided to resume and
before it answers. A worker has one thread and runs one handshake step at a time, so one
module-level state is enough.

Never: decides whether a peer is allowed (that is `identity.admit`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from relay.errors import Reason, Side
from relay.tls.certificates.purpose import forbidding_extension, subject_in
from relay.tls.certificates.x509_fields import has_broken_extensions, to_der
from relay.tls.explain import Failure, explain_verify
from relay.tls.identity import LARGE_BYTES, Identity, identity_of, peer_identity
from relay.tls.raw import EXTENSION_OK, EXTENSION_REFUSED, NULL, OP_NO_TICKET, Pointer, ffi, lib

Check = Callable[[Identity], Failure | None]
# The certificates above a leaf in its verified chain, its issuer first.
Chain: TypeAlias = tuple[Identity, ...]

_CERT_REJECTED, _CERT_REVOKED = lib.X509_V_ERR_CERT_REJECTED, lib.X509_V_ERR_CERT_REVOKED
_REVOKED = frozenset((Reason.REVOKED, Reason.BACKEND_REVOKED))
# X509_V_ERR_* of x509_vfy.h: INVALID_PURPOSE, INVALID_CA by its old and new number,
# KEYUSAGE_NO_CERTSIGN.
_INVALID_PURPOSE = 26
_PURPOSE_CODES = frozenset((_INVALID_PURPOSE, 24, 79, 32))
_CHAIN_TOO_LONG, _SELF_SIGNED_IN_CHAIN = 22, 19
_ISSUER_UNKNOWN = 20  # X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY
_MAX_ANCHORS = 64
_BAD_CERTIFICATE = 42  # RFC 8446, 6
_ALERTS = {Reason.REVOKED: 44, Reason.EXPIRED: 45}


class _State:
    """The result of the current handshake step for the peer's certificate.

    `check` is the caller's function. It admits or refuses a leaf that OpenSSL accepts.
    `above` are the certificates above that leaf, its issuer first.
    """

    __slots__ = (
        "above",
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
        self.above: Chain = ()
        self.accepted: Identity | None = None
        self.bug: BaseException | None = None
        self.check: Check | None = None
        self.failure: Failure | None = None
        self.code = 0
        self.depth = 0
        self.identity: Identity | None = None
        self.side = Side.INBOUND
        self.at_fault = b""  # DER of the certificate at which OpenSSL stopped


state = _State()


def _on_verify(ok: int, store_context: Any) -> int:
    depth: int = lib.X509_STORE_CTX_get_error_depth(store_context)
    if ok == 1:
        if state.check is None:
            return 1
        if depth != 0:  # they come from the root down
            above = state.above
            certificate = lib.X509_STORE_CTX_get_current_cert(store_context)
            who = identity_of(certificate) if above else _anchors.get(certificate)
            state.above = (who or _remember_anchor(certificate), *above)
            return 1
        state.identity = who = identity_of(lib.X509_STORE_CTX_get_current_cert(store_context))
        state.failure = state.check(who)
        if state.failure is None:
            state.accepted = who
            return 1
        state.code = _CERT_REJECTED
        # OpenSSL sends the alert certificate_revoked or bad_certificate for it.
        revoked = state.failure.reason in _REVOKED
        lib.X509_STORE_CTX_set_error(store_context, _CERT_REVOKED if revoked else _CERT_REJECTED)
        return 0
    if state.code == 0:
        _remember_refusal(store_context, depth)
    return 0


# A chain ends at a certificate of the context's store, which is the same object in
# every handshake. Finding it by its address saves 1.2 µs for its SHA-256 (timeit,
# CPython 3.11). The reference keeps the address from being used for another one.
_anchors: dict[Pointer, Identity] = {}


def _remember_anchor(certificate: Pointer) -> Identity:
    if len(_anchors) >= _MAX_ANCHORS:
        _anchors.clear()
    lib.X509_up_ref(certificate)
    who = _anchors[ffi.gc(certificate, lib.X509_free)] = identity_of(certificate)
    return who


def _on_verify_either_use(ok: int, store_context: Any) -> int:
    """Like `_on_verify`, for a store that accepts any purpose.

    The peer's certificate, and each CA above it, must be for TLS clients or servers.
    """
    if ok != 1:
        return _on_verify(ok, store_context)
    depth: int = lib.X509_STORE_CTX_get_error_depth(store_context)
    who = identity_of(lib.X509_STORE_CTX_get_current_cert(store_context))
    fault = who.tls_use.issuer_fault if depth else who.tls_use.leaf_fault
    if not fault:
        return _on_verify(ok, store_context)
    lib.X509_STORE_CTX_set_error(store_context, _INVALID_PURPOSE)
    _remember_refusal(store_context, depth)
    if depth:
        fault = _about_issuer(who.subject, depth, fault)
    state.failure = Failure(Reason.WRONG_PURPOSE, fault)
    return 0


def _about_issuer(subject: str, depth: int, fault: str) -> str:
    return f'its issuer "{subject}" (certificate {depth} of its chain) may not issue it: {fault}'


def _remember_refusal(store_context: Any, depth: int) -> None:
    state.code = lib.X509_STORE_CTX_get_error(store_context)
    state.depth = depth
    # The log names the peer's own certificate, even if its issuer is at fault.
    certificate = lib.X509_STORE_CTX_get0_cert(store_context)
    current = lib.X509_STORE_CTX_get_current_cert(store_context)
    if state.code == _ISSUER_UNKNOWN and current != NULL and has_broken_extensions(current):
        # The extension is at fault, and not a missing issuer.
        state.code = lib.X509_V_ERR_INVALID_EXTENSION
        lib.X509_STORE_CTX_set_error(store_context, state.code)
    elif state.code == _CHAIN_TOO_LONG and current != NULL and _is_self_issued(current):
        # Its chain ends here, at a root that is not trusted.
        state.code = _SELF_SIGNED_IN_CHAIN
        lib.X509_STORE_CTX_set_error(store_context, state.code)
    state.at_fault = b""
    # Only for these failures: otherwise any client could make the relay copy large
    # certificates.
    if state.side is Side.OUTBOUND or state.code in _PURPOSE_CODES:
        der = to_der(current) if current != NULL else b""
        state.at_fault = der if len(der) <= LARGE_BYTES else b""
    # Not cached: otherwise any client could fill the memory with certificates that no
    # trusted CA has signed.
    state.identity = identity_of(certificate, remember=False) if certificate != NULL else None


def _is_self_issued(certificate: Pointer) -> bool:
    issuer = lib.X509_get_issuer_name(certificate)
    return bool(lib.X509_NAME_cmp(issuer, lib.X509_get_subject_name(certificate)) == 0)


def _on_server_name(ssl: Any, alert: Any, _arg: Any) -> int:
    # The route was chosen earlier (relay.worker.intake). But OpenSSL stores only an
    # acknowledged name in a TLS 1.2 session. Without it SSL_get_servername returns
    # nothing on a resumed handshake, and the comparison with the peeked name fails.
    if state.check is None or not lib.SSL_session_reused(ssl):
        return EXTENSION_OK
    who = peer_identity(ssl)
    failure = state.check(who) if who is not None else Failure(Reason.NO_CERTIFICATE)
    if failure is None:
        state.accepted = who
        return EXTENSION_OK
    state.identity, state.failure = who, failure
    state.code, state.depth = _CERT_REJECTED, 0
    alert[0] = _ALERTS.get(failure.reason, _BAD_CERTIFICATE)
    return EXTENSION_REFUSED


def _on_server_name_no_ticket(ssl: Any, alert: Any, arg: Any) -> int:
    # In TLS 1.2 this is the last moment: the ServerHello promises a ticket or none.
    if not lib.SSL_session_reused(ssl) and ffi.string(lib.SSL_get_version(ssl)) == b"TLSv1.2":
        lib.SSL_set_options(ssl, OP_NO_TICKET)
    return _on_server_name(ssl, alert, arg)


def _on_bug(_kind: Any, bug: BaseException, _traceback: Any) -> None:
    state.bug = bug


# error=0: if a callback ever raises, the certificate is refused. `stream.handshake`
# raises the exception again.
VERIFY_CALLBACK: Any = ffi.callback(
    "int(int, X509_STORE_CTX *)", _on_verify, error=0, onerror=_on_bug
)
VERIFY_EITHER_USE: Any = ffi.callback(
    "int(int, X509_STORE_CTX *)", _on_verify_either_use, error=0, onerror=_on_bug
)
SERVER_NAME_CALLBACK: Any = ffi.callback(
    "int(SSL *, int *, void *)", _on_server_name, error=EXTENSION_REFUSED, onerror=_on_bug
)

# The same, for a route that gives TLS 1.2 clients no ticket.
NO_TLS12_TICKETS_CALLBACK: Any = ffi.callback(
    "int(SSL *, int *, void *)",
    _on_server_name_no_ticket,
    error=EXTENSION_REFUSED,
    onerror=_on_bug,
)


def explain_refusal(side: Side) -> Failure:
    """Why OpenSSL refused the peer's certificate, naming the extension at fault."""
    found = explain_verify(side, state.code, state.depth)
    if state.code not in _PURPOSE_CODES:
        return found
    issuer = state.depth > 0
    fault = forbidding_extension(state.at_fault, side, issuer=issuer)
    if not fault:
        return found
    if issuer:
        fault = _about_issuer(subject_in(state.at_fault), state.depth, fault)
    return Failure(found.reason, fault)


def refused_identity() -> Identity | None:
    """The certificate that the last handshake step refused; None if it refused none."""
    return state.identity if state.code else None


def accepted_identity() -> Identity | None:
    """The leaf that `check` accepted in the last handshake step.

    None if `check` was called in an earlier step, or not at all.
    """
    return state.accepted


def accepted_chain() -> Chain:
    """The certificates above the leaf that OpenSSL verified in the last handshake step.

    () if it verified none: in an earlier step, or because the session was resumed.
    """
    return state.above


def verified_chain(ssl: Pointer) -> list[bytes]:
    """The DER of each certificate that OpenSSL verified in this handshake, leaf first.

    Also if `check` refused the leaf afterwards. [] if the session was resumed.
    """
    chain = lib.SSL_get0_verified_chain(ssl)
    if chain == NULL:
        return []
    return [to_der(lib.sk_X509_value(chain, at)) for at in range(lib.sk_X509_num(chain))]


def refusal_code() -> int:
    """The X509_V_ERR_* code of the last handshake step, or 0."""
    return state.code


def refused_at() -> bytes:
    """The DER of the certificate that the last handshake step stopped at, or b""."""
    return state.at_fault if state.code else b""
