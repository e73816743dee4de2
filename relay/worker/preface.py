"""What a backend is sent before anything of the client: PROXY header, TLS request.

Theory of operation. A preface is made for each connection to a backend, so each attempt
sends it again. `before_tls` makes the one that goes out in the clear, as soon as the
connection is established. `inside_tls` makes the one that is the first data after the
TLS handshake. It waits in `Connection.preface`, and `go_on` sends what the socket
takes. What is left waits for the next event of the socket, within the deadlines of
CONNECT and OUTBOUND_TLS. A failure is the backend's, so the next one is tried: the
bytes are not the client's.

The bytes in the clear wait in the kernel for the TLS hello that follows at once, so
both leave in one segment (MSG_MORE).

Never: reads a byte that is not the answer to the preface.
Next: `relay.worker.outbound.handshake`
"""

from __future__ import annotations

from functools import lru_cache
from socket import MSG_MORE

from relay.core.address_set import UNIX
from relay.core.postgres import SSL_REQUEST
from relay.core.proxy_header_out import (
    LONGEST_CN,
    Addresses,
    CommonTlvs,
    SendProxy,
    Tls,
    build_tlvs,
    build_v1,
    build_v2,
    common_tlvs,
)
from relay.errors import Side
from relay.tls import stream
from relay.tls.certificates.algorithm_names import algorithm_names, signature_scheme
from relay.tls.certificates.certificate import Certificate
from relay.tls.explain import GONE_ERRNOS, Failure, explain_connect, explain_errno
from relay.tls.generation import InboundRoute, Target
from relay.tls.identity import peer_der
from relay.tls.pump import Status
from relay.tls.starttls import read_answer
from relay.tls.stream import DONE, STEP_WANT_WRITE, Progress
from relay.worker.connection import Connection, Preface
from relay.worker.session import Session


def before_tls(session: Session, target: Target) -> Preface:
    """What this backend is sent first, in the clear."""
    send = target.send_proxy
    header = proxy_header(session, send) if send is not None and not send.inside_tls else b""
    return Preface(header + SSL_REQUEST, read_answer) if target.starttls else Preface(header)


def inside_tls(session: Session, send: SendProxy) -> Preface:
    """What this backend is sent as the first data inside TLS."""
    return Preface(proxy_header(session, send))


def go_on(session: Session, end: Connection) -> Progress | Failure:
    """Send what the socket takes, and read the answer.

    Resets `end.preface` when all is done.
    """
    preface = end.preface
    if preface is None:
        return DONE
    if preface.unsent:
        went = _write(session, end, preface) if end.established else _send(end, preface)
        if went is not DONE:
            return went
    if preface.answer is not None:
        went = preface.answer(end.sock)
        if went is not DONE:
            return went
    end.preface = None
    return DONE


def _send(end: Connection, preface: Preface) -> Progress | Failure:
    """Send in the clear. The connection may not be established yet."""
    try:
        size = end.sock.send(preface.unsent, 0 if preface.answer is not None else MSG_MORE)
    except BlockingIOError:
        return STEP_WANT_WRITE
    except OSError as error:
        errno = error.errno or 0
        gone = errno in GONE_ERRNOS
        return explain_errno(Side.OUTBOUND, errno) if gone else explain_connect(errno)
    preface.unsent = preface.unsent[size:]
    return STEP_WANT_WRITE if preface.unsent else DONE


def _write(session: Session, end: Connection, preface: Preface) -> Progress | Failure:
    """Send inside TLS: all of it, or nothing yet."""
    pump = session.worker.pump
    if pump.push(end.ssl, preface.unsent) >= 0:
        preface.unsent = b""
        return DONE
    return STEP_WANT_WRITE if pump.status is Status.BLOCKED else stream.failure(Side.OUTBOUND)


# The PROXY header.


def proxy_header(session: Session, send: SendProxy) -> bytes:
    """The header that says who this client is, whether its TLS ends here or not."""
    addresses = _addresses(session)
    if send.version == 1:
        return build_v1(addresses)
    common, certificate = _common(session, send), b""
    if send.certificate and session.inbound.ssl is not None:
        certificate = peer_der(session.inbound.ssl)
    name = session.worker.log.name_of(session).encode()
    return build_v2(addresses, build_tlvs(common, name, certificate))


def _addresses(session: Session) -> Addresses | None:
    header = session.header
    if header is not None and header.destination is not None:
        return Addresses(session.client_host, session.client_port, *header.destination)
    if session.client_host == UNIX:
        return None
    host, port = session.listener.only_address or session.inbound.sock.getsockname()[:2]
    return Addresses(session.client_host, session.client_port, host, port)


def _common(session: Session, send: SendProxy) -> CommonTlvs:
    version, cipher, group, alpn, resumed, _ = session.inbound_tls
    who, route = session.identity, session.route
    if session.inbound.ssl is None or not isinstance(route, InboundRoute):
        return common_tlvs(send, session.sni, "", None)
    cn = who.cn[0] if who is not None and who.cn else ""
    if len(cn) > LONGEST_CN:
        cn = ""  # it is not sent, so it is not kept either
    offered = b"" if resumed else session.signatures
    leaf = route.pair.leaf
    return _of_client(send, session.sni, alpn, version, cipher, group, resumed, cn, leaf, offered)


@lru_cache(1024)
def _of_client(
    send: SendProxy,
    sni: str,
    alpn: str,
    version: str,
    cipher: str,
    group: str,
    resumed: bool,
    cn: str,
    leaf: Certificate,
    offered: bytes,
) -> CommonTlvs:
    """The TLVs of a client whose TLS ends here, for a route with this certificate."""
    key_alg, sig_alg = algorithm_names(leaf)
    sig_scheme = signature_scheme(leaf, version, cipher, offered)
    tls = Tls(version, cipher, group, resumed, cn, key_alg, sig_alg, sig_scheme)
    return common_tlvs(send, sni, alpn, tls)
