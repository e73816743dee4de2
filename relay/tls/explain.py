"""Translates OpenSSL's errors, alerts and verify codes into a `Reason` with a detail.

Never: raises, or leaves anything in the error queue.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from relay.errors import SHORTAGES, Reason, Side
from relay.sockets import SourceError
from relay.tls.raw import NULL, ffi, lib

_MAX_ERRORS = 16
# SSL_R_*_ALERT_* are this plus the alert's number (RFC 8446 section 6).
_ALERT_BASE = 1000

# Reason codes of OpenSSL's SSL library (sslerr.h), stable since 1.1. In OpenSSL's other
# libraries the same numbers have other meanings.
_SSL_LIBRARY, _LIBRARY_SHIFT = 20, 23
# ERR_SYSTEM_FLAG of err.h: the rest of the code is an errno. A failed write leaves such
# an entry, a failed read does not.
_SYSTEM = 0x8000_0000
# ERR_R_MALLOC_FAILURE of err.h with FATAL and COMMON; the same in every library.
_MALLOC_FAILURE = 256 | 1 << 18 | 2 << 18
_VERIFY_FAILED = 134
_NO_PEER_CERTIFICATE = 199
_HTTP_REQUEST, _HTTPS_PROXY_REQUEST = 156, 155
_UNEXPECTED_EOF = 294
_WRONG_CURVE, _TOO_LONG = 378, 152
_DETAILS = {
    _TOO_LONG: "the certificates have more than 102400 bytes, which is OpenSSL's own limit",
    _WRONG_CURVE: "the key of the certificate is on a curve that is not in groups",
}

_INBOUND: dict[int, Reason] = {
    _NO_PEER_CERTIFICATE: Reason.NO_CERTIFICATE,
    258: Reason.PROTOCOL_VERSION,  # UNSUPPORTED_PROTOCOL
    191: Reason.PROTOCOL_VERSION,  # NO_PROTOCOLS_AVAILABLE
    396: Reason.PROTOCOL_VERSION,  # VERSION_TOO_LOW
    292: Reason.PROTOCOL_VERSION,  # BAD_LEGACY_VERSION: SSL 3.0 beside supported_versions
    193: Reason.NO_SHARED_CIPHER,
    101: Reason.NO_SHARED_GROUP,  # NO_SUITABLE_KEY_SHARE
    295: Reason.NO_SHARED_GROUP,  # NO_SUITABLE_GROUPS
    235: Reason.NO_SHARED_ALPN,  # NO_APPLICATION_PROTOCOL
    _WRONG_CURVE: Reason.NO_SHARED_GROUP,
    _TOO_LONG: Reason.CHAIN_TOO_LONG,
    _HTTP_REQUEST: Reason.PLAIN_HTTP,
    _HTTPS_PROXY_REQUEST: Reason.PLAIN_HTTP,
    _UNEXPECTED_EOF: Reason.PEER_GONE,
}
_OUTBOUND: dict[int, Reason] = {
    258: Reason.BACKEND_PROTOCOL_VERSION,
    191: Reason.BACKEND_PROTOCOL_VERSION,
    267: Reason.BACKEND_NOT_TLS,  # WRONG_VERSION_NUMBER: not a TLS record
    _HTTP_REQUEST: Reason.BACKEND_NOT_TLS,
    _HTTPS_PROXY_REQUEST: Reason.BACKEND_NOT_TLS,
    193: Reason.BACKEND_NO_SHARED_CIPHER,
    _TOO_LONG: Reason.BACKEND_CHAIN_TOO_LONG,
    _UNEXPECTED_EOF: Reason.BACKEND_GONE,
}

# RFC 8446 section 6.2.
_ALERTS: dict[int, str] = {
    0: "close_notify", 10: "unexpected_message",
    20: "bad_record_mac", 21: "decryption_failed", 22: "record_overflow",
    40: "handshake_failure", 41: "no_certificate", 42: "bad_certificate",
    43: "unsupported_certificate", 44: "certificate_revoked", 45: "certificate_expired",
    46: "certificate_unknown", 47: "illegal_parameter", 48: "unknown_ca",
    49: "access_denied", 50: "decode_error", 51: "decrypt_error",
    70: "protocol_version", 71: "insufficient_security",
    80: "internal_error", 86: "inappropriate_fallback", 90: "user_canceled",
    100: "no_renegotiation", 109: "missing_extension", 110: "unsupported_extension",
    112: "unrecognized_name", 113: "bad_certificate_status_response",
    115: "unknown_psk_identity", 116: "certificate_required",
    120: "no_application_protocol", 121: "ech_required",
}  # fmt: skip
_INBOUND_ALERTS: dict[int, Reason] = {
    42: Reason.ALERT_BAD_CERTIFICATE,
    43: Reason.ALERT_UNSUPPORTED_CERTIFICATE,
    44: Reason.ALERT_BAD_CERTIFICATE,
    45: Reason.ALERT_CERTIFICATE_EXPIRED,
    46: Reason.ALERT_CERTIFICATE_UNKNOWN,
    48: Reason.ALERT_UNKNOWN_CA,
    40: Reason.ALERT_HANDSHAKE_FAILURE,
    70: Reason.ALERT_PROTOCOL_VERSION,
}
_REJECTED = Reason.BACKEND_REJECTED_OUR_CERTIFICATE
_OUTBOUND_ALERTS: dict[int, Reason] = {
    41: _REJECTED, 42: _REJECTED, 43: _REJECTED, 44: _REJECTED, 45: _REJECTED, 46: _REJECTED,
    48: _REJECTED, 49: _REJECTED, 116: _REJECTED,
    40: Reason.BACKEND_NO_SHARED_CIPHER,
    70: Reason.BACKEND_PROTOCOL_VERSION,
    71: Reason.BACKEND_NO_SHARED_CIPHER,
    120: Reason.BACKEND_NO_SHARED_ALPN,
}  # fmt: skip
# Explains alerts of a backend whose reason does not say enough.
_OUTBOUND_HINTS: dict[int, str] = {
    51: "it could not verify the relay's signature; check that machine_key and"
    " machine_certificate belong together",
    80: "look for the cause in the backend's own log",
    86: "it considers this connection a protocol downgrade",
    112: "it does not serve this server name; set the backend's name",
    121: "it requires Encrypted Client Hello, which the relay does not support",
}
_ECH_REQUIRED = 121
# Alerts that mean "nothing in common", but only in answer to a ClientHello.
_NOTHING_IN_COMMON = frozenset((40, 70, 71, 86, 120))

_CHAIN_TOO_LONG = 22  # X509_V_ERR_CERT_CHAIN_TOO_LONG
# X509_V_ERR_* that only strict_x509 causes.
_STRICT_CODES = frozenset(range(80, 95))
_VERIFY_DETAILS = {
    # X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT
    2: "a CA of its chain is trusted, but its issuer is not; add the issuer to the file of CAs,"
    " or set partial_chain = true",
    # X509_V_ERR_INVALID_EXTENSION
    41: "the certificate has an extension twice, or one that cannot be parsed; reissue it",
}
# X509_V_ERR_* (x509_vfy.h). A code that is not here is INVALID_CERTIFICATE.
_VERIFY: dict[int, tuple[Reason, Reason]] = {
    code: (inbound, outbound)
    for codes, inbound, outbound in (
        ((2, 18, 19, 20, 21), Reason.UNKNOWN_CA, Reason.BACKEND_UNKNOWN_CA),
        ((10,), Reason.EXPIRED, Reason.BACKEND_EXPIRED),
        ((9,), Reason.NOT_YET_VALID, Reason.BACKEND_NOT_YET_VALID),
        ((26,), Reason.WRONG_PURPOSE, Reason.BACKEND_WRONG_PURPOSE),
        ((_CHAIN_TOO_LONG,), Reason.CHAIN_TOO_LONG, Reason.BACKEND_CHAIN_TOO_LONG),
        ((17,), Reason.NO_RESOURCES, Reason.NO_RESOURCES),  # OUT_OF_MEM
        ((23,), Reason.REVOKED, Reason.BACKEND_REVOKED),
        ((62, 64), Reason.INVALID_CERTIFICATE, Reason.BACKEND_WRONG_NAME),
    )
    for code in codes
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a handshake or a connection failed.

    `detail` is one line for people; it may contain what a peer sent.
    """

    reason: Reason
    detail: str = ""
    errno: int = field(default=0, compare=False)  # of the system call that failed, if one did
    alert: int = field(default=-1, compare=False)  # the number of the peer's alert, if it sent one


def explain_verify(side: Side, code: int, depth: int) -> Failure:
    """The failure for an X509_V_ERR_* code.

    Depth 0 is the peer's own certificate; a larger depth is closer to the root.
    """
    text = _VERIFY_DETAILS.get(code) or _string(lib.X509_verify_cert_error_string(code))
    inbound, outbound = _VERIFY.get(
        code, (Reason.INVALID_CERTIFICATE, Reason.BACKEND_INVALID_CERTIFICATE)
    )
    which = "" if depth == 0 else f" (certificate {depth} of its chain)"
    if code == _CHAIN_TOO_LONG:
        cas = "1 CA" if depth == 1 else f"{depth} CAs"
        text, which = f"its chain has more than {cas} (max_chain_depth)", ""
    elif code in _STRICT_CODES:
        which += ", which strict_x509 refuses"
    return Failure(inbound if side is Side.INBOUND else outbound, text + which)


def explain_alert(side: Side, number: int) -> Failure:
    """The failure for an alert that answers a hello or a certificate."""
    name = _ALERTS.get(number, f"alert {number}")
    if side is Side.INBOUND:
        reason = _INBOUND_ALERTS.get(number, Reason.ALERT_OTHER)
        detail = f"the client sent the alert {name}"
        if number == _ECH_REQUIRED:
            detail += ": it encrypts its hello for this name, and the relay cannot decrypt it"
        return Failure(reason, detail, alert=number)
    hint = _OUTBOUND_HINTS.get(number)
    detail = f"the backend sent the alert {name}" + (f": {hint}" if hint else "")
    return Failure(_OUTBOUND_ALERTS.get(number, Reason.BACKEND_ALERT_OTHER), detail, alert=number)


def before_server_hello(failure: Failure) -> Failure:
    """Correct the reason of an alert that came before the ServerHello.

    The backend has not seen the machine certificate yet, so it cannot have rejected it.
    """
    if failure.alert >= 0 and failure.reason is _REJECTED:
        return Failure(
            Reason.BACKEND_ALERT_OTHER,
            f"{failure.detail} in answer to the ClientHello",
            alert=failure.alert,
        )
    return failure


def after_server_hello(failure: Failure) -> Failure:
    """Correct the reason of an alert that came after the ServerHello.

    Version and cipher are agreed on by then.
    """
    if failure.alert in _NOTHING_IN_COMMON:
        detail = (
            f"{failure.detail} after version and cipher were agreed on;"
            " it may have refused the pool's machine_certificate"
        )
        return Failure(Reason.BACKEND_ALERT_OTHER, detail, alert=failure.alert)
    return failure


def after_handshake(failure: Failure) -> Failure:
    """Correct the reason of an alert in an established session.

    There such an alert does not mean that nothing is in common. For example, a TLS 1.2
    peer sends it when the relay refuses to renegotiate.
    """
    if failure.alert not in _NOTHING_IN_COMMON:
        return failure
    inbound = failure.reason in (
        Reason.ALERT_HANDSHAKE_FAILURE,
        Reason.ALERT_PROTOCOL_VERSION,
        Reason.ALERT_OTHER,
    )
    reason = Reason.ALERT_OTHER if inbound else Reason.BACKEND_ALERT_OTHER
    return Failure(reason, f"{failure.detail} after the handshake", failure.errno)


def explain_queue(side: Side) -> Failure:
    """The failure for the error in OpenSSL's queue. Empties the queue."""
    codes: list[int] = []
    while (code := lib.ERR_get_error()) and len(codes) < _MAX_ERRORS:
        codes.append(code)
    lib.ERR_clear_error()
    if any(lib.ERR_GET_REASON(code) == _MALLOC_FAILURE for code in codes if not code & _SYSTEM):
        # This comes first: the other entries are consequences of it.
        return Failure(Reason.NO_RESOURCES, "OpenSSL could not allocate memory")
    known = _INBOUND if side is Side.INBOUND else _OUTBOUND
    for code in codes:
        if code >> _LIBRARY_SHIFT != _SSL_LIBRARY:
            continue
        number = lib.ERR_GET_REASON(code)
        if _ALERT_BASE <= number < _ALERT_BASE + 256:
            return explain_alert(side, number - _ALERT_BASE)
        if number in known:
            text = _DETAILS.get(number) or _string(lib.ERR_reason_error_string(code))
            return Failure(known[number], text)
    for code in codes:
        if code & _SYSTEM:
            return explain_errno(side, code & ~_SYSTEM)
    other = Reason.TLS_ERROR if side is Side.INBOUND else Reason.BACKEND_TLS_ERROR
    texts = filter(None, (_string(lib.ERR_reason_error_string(code)) for code in codes))
    return Failure(other, "; ".join(texts) or "OpenSSL gave no reason")


def explain_errno(side: Side, errno: int) -> Failure:
    """The failure for the errno of a system call in a handshake; 0 is end of file."""
    if errno in SHORTAGES:
        return Failure(Reason.NO_RESOURCES, os.strerror(errno), errno)
    gone = Reason.PEER_GONE if side is Side.INBOUND else Reason.BACKEND_GONE
    return Failure(gone, os.strerror(errno) if errno else "the connection was closed", errno)


_NOTHING_LISTENS = frozenset((111, 2))  # ECONNREFUSED; ENOENT: there is no such unix socket
_TIMED_OUT = 110
_QUEUE_FULL = 11  # EAGAIN, of a unix socket only
GONE_ERRNOS = frozenset((104, 32))  # ECONNRESET, EPIPE: the peer closed the connection


def explain_start(error: OSError) -> Failure:
    """The failure of a connection attempt that the kernel refused at once."""
    if isinstance(error, SourceError):
        return Failure(Reason.NO_RESOURCES, error.strerror or "")
    return explain_connect(error.errno or 0)


def explain_connect(errno: int) -> Failure:
    """The failure for the errno of a connection attempt to a backend."""
    text = os.strerror(errno)
    if errno in SHORTAGES:
        return Failure(Reason.NO_RESOURCES, text)
    if errno in _NOTHING_LISTENS:
        return Failure(Reason.BACKEND_REFUSED, text)
    if errno == _TIMED_OUT:
        return Failure(Reason.BACKEND_TIMEOUT, text)
    if errno == _QUEUE_FULL:
        return Failure(Reason.BACKEND_TIMEOUT, "its accept queue is full")
    return Failure(Reason.BACKEND_UNREACHABLE, text)


def _string(pointer: object) -> str:
    return "" if pointer == NULL else ffi.string(pointer).decode("ascii", "replace")
