"""Adds facts to a backend's failure: its certificate, its CAs, its answer.

This runs only for a connection that failed, so it may parse certificates.

Never: raises because of what a backend sent, or turns a failure into a success.
"""

from __future__ import annotations

import re
import socket
import struct
import time
from ipaddress import ip_address
from typing import Any

from relay.core.untrusted import clip
from relay.errors import Reason
from relay.sockets import StreamSocket
from relay.tls import verification
from relay.tls.certificates.certificate import Certificate
from relay.tls.certificates.names import SUBJECT_ALT_NAME
from relay.tls.certificates.purpose import NAME_CHARACTERS
from relay.tls.explain import GONE_ERRNOS, Failure, after_server_hello, before_server_hello
from relay.tls.identity import Identity, identity_of
from relay.tls.raw import NULL, Pointer, ffi, lib

_MAX_NAMES = 4
_NAME_BYTES = 256
_PEEK_BYTES = 64
# OpenSSL reads this many bytes before it finds that they are not a TLS record.
_HEADER_BYTES = 5
_RANDOM_BYTES = 32
_NO_RANDOM = bytes(_RANDOM_BYTES)
_RECORD_HEADER = struct.Struct("!BHH")
_APPLICATION_DATA = 23
# Level, number and content type, and a tag of 16 bytes (RFC 8446, 5.2).
_ALERT_RECORD_BYTES = 19
_UNREAD_ALERT = 256  # no alert has this number
_HTTP_STATUS = re.compile(rb"[0-9]\.[0-9] [0-9]{3}")
# X509_V_ERR_* of x509_vfy.h.
_SELF_SIGNED_LEAF, _SELF_SIGNED_IN_CHAIN = 18, 19
_ISSUER_MISSING = frozenset((2, 20, 21))


def explain_backend(failure: Failure, ssl: Pointer, sock: StreamSocket, name: str) -> Failure:
    """Add the details to a failed handshake with the backend that must be `name`."""
    if failure.reason is Reason.BACKEND_NOT_TLS:
        return _not_tls(failure, sock)
    if failure.alert >= 0:
        by_stage = after_server_hello if _knows_server_hello(ssl) else before_server_hello
        return explain_rejection(by_stage(failure), ssl)
    who = verification.refused_identity()
    if who is None:
        return failure
    if failure.reason is Reason.BACKEND_UNKNOWN_CA:
        detail = _unknown_ca(ssl)
    elif failure.reason is Reason.BACKEND_WRONG_NAME:
        detail = _wrong_name(name)
    else:
        detail = failure.detail
    return Failure(failure.reason, f"{detail or failure.detail}; {_certificate(who)}")


def explain_rejection(failure: Failure, ssl: Pointer) -> Failure:
    """Add the accepted CAs and the issuer of the machine certificate to a rejection.

    A failure that has them already is returned unchanged.
    """
    rejected = failure.reason is Reason.BACKEND_REJECTED_OUR_CERTIFICATE and failure.alert >= 0
    if not rejected or ssl is None:
        return failure
    authorities = _authorities(ssl)
    accepts = (
        f"it accepts certificates of {authorities}"
        if authorities
        else "it does not say which CAs it accepts"
    )
    own = ""
    certificate = lib.SSL_get_certificate(ssl)
    if certificate != NULL:
        who = identity_of(certificate)
        own = (
            f'; the machine certificate "{_short(who.subject)}" is issued by "{_short(who.issuer)}"'
        )
    return Failure(failure.reason, f"{failure.detail}: {accepts}{own}", failure.errno)


def explain_unread(failure: Failure, sock: StreamSocket) -> Failure:
    """Recognize an unread alert after a write that failed right after the handshake.

    OpenSSL reads nothing more after a failed write. So an alert of a TLS 1.3 backend
    may be left in the socket, encrypted. Before the backend's first answer, no other
    record is this short.
    """
    if failure.reason is not Reason.BACKEND_GONE or failure.errno not in GONE_ERRNOS:
        return failure
    try:
        header = sock.recv(_RECORD_HEADER.size, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return failure
    if len(header) < _RECORD_HEADER.size:
        return failure
    kind, _, size = _RECORD_HEADER.unpack(header)
    if kind != _APPLICATION_DATA or size != _ALERT_RECORD_BYTES:
        return failure
    detail = "the backend answered the machine certificate with an alert and reset the connection"
    return Failure(Reason.BACKEND_REJECTED_OUR_CERTIFICATE, detail, failure.errno, _UNREAD_ALERT)


def no_shared_alpn(wanted: str, chosen: str) -> Failure:
    """The failure of a backend that did not select the client's ALPN protocol."""
    found = f"it agreed on {chosen!r}" if chosen else "it agreed on no protocol"
    detail = (
        f"{found} although the client speaks {wanted};"
        f" enable ALPN {wanted} at the backend, or remove {wanted} from alpn"
    )
    return Failure(Reason.BACKEND_NO_SHARED_ALPN, detail)


def _knows_server_hello(ssl: Pointer) -> bool:
    random: Any = ffi.new("unsigned char[]", _RANDOM_BYTES)
    lib.SSL_get_server_random(ssl, random, _RANDOM_BYTES)
    return bytes(ffi.buffer(random)) != _NO_RANDOM


def _not_tls(failure: Failure, sock: StreamSocket) -> Failure:
    try:
        rest = sock.recv(_PEEK_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        rest = b""
    line = rest.splitlines()[0] if rest else b""
    if _HTTP_STATUS.match(line):
        said = _short(f"HTTP/{line.decode('latin-1')}")
        return Failure(failure.reason, f'it answered "{said}": it speaks plain HTTP on this port')
    if line:
        said = _short(line.decode("latin-1"))
        return Failure(
            failure.reason,
            f'its answer is not TLS; after {_HEADER_BYTES} bytes it continues with "{said}"',
        )
    return Failure(failure.reason, f"its answer is not TLS ({failure.detail})")


def _sent_certificates(ssl: Pointer) -> list[Pointer]:
    chain = lib.SSL_get_peer_cert_chain(ssl)
    if chain == NULL:
        return []
    return [lib.sk_X509_value(chain, number) for number in range(lib.sk_X509_num(chain))]


def _unknown_ca(ssl: Pointer) -> str:
    code = verification.refusal_code()
    if code == _SELF_SIGNED_LEAF:
        return (
            "its certificate is self-signed; have it issued by a CA, or add this certificate to"
            " backend_ca"
        )
    at_fault = _load(verification.refused_at())
    if at_fault is None:
        return ""
    if code == _SELF_SIGNED_IN_CHAIN:
        root = _short(at_fault.subject.rfc4514_string())
        return (
            f'its chain ends at "{root}", which is not in backend_ca; add it to trust this backend'
        )
    if code not in _ISSUER_MISSING:
        return ""
    count = len(_sent_certificates(ssl))
    issuer = _short(at_fault.issuer.rfc4514_string())
    missing = f'the issuer "{issuer}" is neither among them nor in backend_ca'
    return (
        f"it sent {count} certificate{'' if count == 1 else 's'}, and {missing}: if it is an"
        " intermediate of a CA in backend_ca, add it to the backend's chain file;"
        " otherwise add it to backend_ca"
    )


def _wrong_name(name: str) -> str:
    leaf = _load(verification.refused_at())
    if leaf is None:
        return ""
    kind = "IP" if _is_address(name) else "DNS"
    if not leaf.has_extension(SUBJECT_ALT_NAME):
        no_names = "its certificate has no subjectAltName, and a CN does not count (RFC 9525)"
        return f"{no_names}; reissue it with {kind}:{name}"
    found = leaf.alt_names
    if found is None:
        return ""
    names = [*found.dns, *(str(ip_address(each)) for each in found.ip)]
    if not names:
        return f"its subjectAltName has no host name or address; reissue it with {kind}:{name}"
    shown = ", ".join(_short(each) for each in names[:_MAX_NAMES])
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    remedy = f'set name = "{_short(names[0])}" if that is the backend, or reissue it'
    return f"its certificate is for {shown}{more}, not for {name}; {remedy} with {kind}:{name}"


def _is_address(name: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in name else socket.AF_INET, name)
    except OSError:
        return False
    return True


def _certificate(who: Identity) -> str:
    if not who.serial:  # too large to be parsed
        return f"the backend's certificate: {who.subject}"
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(who.not_after_at))
    names = ", ".join(_short(each) for each in who.san_dns[:_MAX_NAMES]) or "none"
    return (
        f"the backend's certificate: subject {_short(who.subject)}, issuer {_short(who.issuer)},"
        f" serial {_short(who.serial)}, not after {until}, names {names}"
    )


def _authorities(ssl: Pointer) -> str:
    names = lib.SSL_get_client_CA_list(ssl)
    count = lib.sk_X509_NAME_num(names) if names != NULL else 0
    if count < 1:
        return ""
    buffer: Any = ffi.new("char[]", _NAME_BYTES)
    shown = []
    for number in range(min(count, _MAX_NAMES)):
        lib.X509_NAME_oneline(lib.sk_X509_NAME_value(names, number), buffer, _NAME_BYTES)
        text = ffi.string(buffer).decode("latin-1").removeprefix("/").replace("/", ",")
        shown.append(f'"{_short(text)}"')
    more = f" and {count - _MAX_NAMES} more" if count > _MAX_NAMES else ""
    return ", ".join(shown) + more


def _short(name: str) -> str:
    return clip(name, NAME_CHARACTERS)


def _load(der: bytes) -> Certificate | None:
    try:
        return Certificate.from_der(der) if der else None
    except ValueError:
        return None
