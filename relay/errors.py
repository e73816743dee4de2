"""Every way the relay can fail, as values an operator can search for.

Never: formats for a terminal, exits, or logs (that is `cli`, `worker.session` and `logs.access_log`).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class FastStrEnum(StrEnum):
    """An enumeration whose members are keys on the hot path: Enum's own hash is a Python function, str's is not."""

    __hash__ = str.__hash__


class Side(FastStrEnum):
    """Which of a session's two TLS connections."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"


class Reason(FastStrEnum):
    """Why a session or a handshake ended. One closed list: metric label, log field and test id are the same word."""

    # A session that did its work.
    FINISHED = "finished"
    TRUNCATED = "truncated"
    IDLE_TIMEOUT = "idle_timeout"
    LINGER_TIMEOUT = "linger_timeout"
    DRAIN_TIMEOUT = "drain_timeout"
    GENERATION_ENDED = "generation_ended"
    INBOUND_RESET = "inbound_reset"
    OUTBOUND_RESET = "outbound_reset"

    # The first bytes.
    HELLO_TIMEOUT = "hello_timeout"
    PEER_GONE = "peer_gone"
    NOT_TLS = "not_tls"
    PLAIN_HTTP = "plain_http"
    MALFORMED_HELLO = "malformed_hello"
    UNKNOWN_SNI = "unknown_sni"
    NO_SNI = "no_sni"
    PER_CLIENT_LIMIT = "per_client_limit"
    HALF_OPEN_LIMIT = "half_open_limit"
    HALF_OPEN_PER_CLIENT = "half_open_per_client"
    DRAINING = "draining"

    # The client and its certificate.
    NO_CERTIFICATE = "no_certificate"
    UNKNOWN_CA = "unknown_ca"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    WRONG_PURPOSE = "wrong_purpose"
    INVALID_CERTIFICATE = "invalid_certificate"
    CHAIN_TOO_LONG = "chain_too_long"
    REVOKED = "revoked"
    NOT_ALLOWED = "not_allowed"
    PROTOCOL_VERSION = "protocol_version"
    NO_SHARED_CIPHER = "no_shared_cipher"
    NO_SHARED_GROUP = "no_shared_group"
    NO_SHARED_ALPN = "no_shared_alpn"
    SNI_MISMATCH = "sni_mismatch"
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    TLS_ERROR = "tls_error"

    # What the client's TLS library told us in an alert (RFC 8446, 6.2).
    ALERT_BAD_CERTIFICATE = "alert_bad_certificate"
    ALERT_UNKNOWN_CA = "alert_unknown_ca"
    ALERT_CERTIFICATE_EXPIRED = "alert_certificate_expired"
    ALERT_CERTIFICATE_UNKNOWN = "alert_certificate_unknown"
    ALERT_UNSUPPORTED_CERTIFICATE = "alert_unsupported_certificate"
    ALERT_HANDSHAKE_FAILURE = "alert_handshake_failure"
    ALERT_PROTOCOL_VERSION = "alert_protocol_version"
    ALERT_OTHER = "alert_other"

    # The backend.
    NO_BACKEND = "no_backend"
    CONNECTING_LIMIT = "connecting_limit"
    BACKEND_UNRESOLVED = "backend_unresolved"
    BACKEND_REFUSED = "backend_refused"
    BACKEND_UNREACHABLE = "backend_unreachable"
    BACKEND_TIMEOUT = "backend_timeout"
    BACKEND_GONE = "backend_gone"
    BACKEND_UNKNOWN_CA = "backend_unknown_ca"
    BACKEND_WRONG_NAME = "backend_wrong_name"
    BACKEND_EXPIRED = "backend_expired"
    BACKEND_NOT_YET_VALID = "backend_not_yet_valid"
    BACKEND_WRONG_PURPOSE = "backend_wrong_purpose"
    BACKEND_INVALID_CERTIFICATE = "backend_invalid_certificate"
    BACKEND_CHAIN_TOO_LONG = "backend_chain_too_long"
    BACKEND_REJECTED_OUR_CERTIFICATE = "backend_rejected_our_certificate"
    BACKEND_PROTOCOL_VERSION = "backend_protocol_version"
    BACKEND_NO_SHARED_CIPHER = "backend_no_shared_cipher"
    BACKEND_NO_SHARED_ALPN = "backend_no_shared_alpn"
    BACKEND_NOT_TLS = "backend_not_tls"
    BACKEND_HANDSHAKE_TIMEOUT = "backend_handshake_timeout"
    BACKEND_TLS_ERROR = "backend_tls_error"
    BACKEND_ALERT_OTHER = "backend_alert_other"
    BACKEND_DOWN = "backend_down"

    # Us.
    ROUTE_DISABLED = "route_disabled"
    POOL_DISABLED = "pool_disabled"
    NO_RESOURCES = "no_resources"
    INTERNAL_ERROR = "internal_error"


REMEDIES: dict[Reason, str] = {
    Reason.FINISHED: "",
    Reason.TRUNCATED: "the peer closed without close_notify; all bytes received were delivered, but it cannot be told whether it meant to send more",
    Reason.IDLE_TIMEOUT: "nothing was sent for timeouts.idle_s; raise it if such sessions are wanted",
    Reason.LINGER_TIMEOUT: "one side had ended and the other did not within timeouts.linger_s",
    Reason.DRAIN_TIMEOUT: "the relay was told to drain and this session outlived relay.drain_timeout_s",
    Reason.GENERATION_ENDED: (
        "the session was of an old configuration, and more than relay.old_generations of these still had sessions; raise it, or reload less often"
    ),
    Reason.INBOUND_RESET: "the client reset the connection",
    Reason.OUTBOUND_RESET: "the backend reset the connection; see its log",
    Reason.HELLO_TIMEOUT: "the client connected and did not send a whole ClientHello within timeouts.hello_s; a health check or port scan does this",
    Reason.PEER_GONE: "the client closed before the handshake was complete; a TCP health check does this",
    Reason.NOT_TLS: "the client did not start with a TLS record; it must speak TLS to this port",
    Reason.PLAIN_HTTP: "the client speaks plain HTTP to a TLS port; use https://",
    Reason.MALFORMED_HELLO: "the ClientHello does not follow RFC 8446 or is longer than 69632 bytes; look for a broken client or a scanner",
    Reason.UNKNOWN_SNI: "no route of this listener has this name; add it to a route's sni, or correct the client's URL",
    Reason.NO_SNI: "the client sent no server name and the listener has no route without sni; connect by name, or add a default route",
    Reason.PER_CLIENT_LIMIT: "this address has limits.per_client connections open",
    Reason.HALF_OPEN_LIMIT: "a newer client needed the place of this one, which had waited longest in its handshake; "
    "a flood does this: look at the client addresses with this reason, and raise limits.handshakes if these clients are wanted",
    Reason.HALF_OPEN_PER_CLIENT: "this client address has limits.half_open_per_client connections that have not finished their handshake; "
    "raise it if many clients share this address",
    Reason.DRAINING: "the relay was stopping while this connection had not finished its handshake",
    Reason.NO_CERTIFICATE: "the client sent no certificate; configure one signed by the route's client_ca in the client",
    Reason.UNKNOWN_CA: "the client's certificate does not lead to the route's client_ca; the client must send its intermediates, or its CA must be added to client_ca",
    Reason.EXPIRED: "renew the client's certificate (or its CA's); also compare the clocks",
    Reason.NOT_YET_VALID: "the certificate starts in the future; compare the clocks of the client's CA and this machine",
    Reason.WRONG_PURPOSE: "the client's certificate, or its CA's, is not for clients; reissue the one that the detail names with the usage that it lacks",
    Reason.INVALID_CERTIFICATE: "OpenSSL refused the client's certificate; the detail says why",
    Reason.CHAIN_TOO_LONG: "let the client send its certificate and its intermediates only; where they are wanted, raise limits.certificate_chain_bytes",
    Reason.REVOKED: "the client's certificate is on the route's client_crl; issue a new one",
    Reason.NOT_ALLOWED: "the certificate is valid but matches none of the route's allow rules; add it there if this client is wanted",
    Reason.PROTOCOL_VERSION: "the client offers no TLS version this route accepts; update the client: it must speak TLS 1.3, or TLS 1.2 where the route's min_version is TLSv1.2",
    Reason.NO_SHARED_CIPHER: "the client offers no cipher this route accepts; see ciphers_tls12 and ciphersuites_tls13",
    Reason.NO_SHARED_GROUP: "the client offers no key exchange group this route accepts; see groups",
    Reason.NO_SHARED_ALPN: "the client offers none of the route's alpn protocols",
    Reason.SNI_MISMATCH: "the server name changed between the peeked hello and the handshake; this is an attack or a broken client",
    Reason.HANDSHAKE_TIMEOUT: "the client did not finish the TLS handshake within timeouts.handshake_s",
    Reason.TLS_ERROR: "the client broke the TLS protocol; the detail is OpenSSL's word for it",
    Reason.ALERT_BAD_CERTIFICATE: "the client refused this route's certificate; check it with: relay check",
    Reason.ALERT_UNKNOWN_CA: "the client does not trust the CA of this route's certificate; install that CA in the client, or complete the chain in the certificate file",
    Reason.ALERT_CERTIFICATE_EXPIRED: "the client finds this route's certificate expired; renew it and reload",
    Reason.ALERT_CERTIFICATE_UNKNOWN: "the client refused this route's certificate; often the name it connected to is not in it",
    Reason.ALERT_UNSUPPORTED_CERTIFICATE: "the client refused this route's certificate; check its purpose (serverAuth) and key type",
    Reason.ALERT_HANDSHAKE_FAILURE: "the client found nothing in common with this route; compare versions, ciphers and groups",
    Reason.ALERT_PROTOCOL_VERSION: "the client does not accept the TLS version chosen; compare its settings with min_version",
    Reason.ALERT_OTHER: "the client ended the connection with the alert in the detail; see its log",
    Reason.NO_BACKEND: "no backend of the pool could be tried; see the pool's earlier failures",
    Reason.CONNECTING_LIMIT: "as many clients as the pool's max_connecting allows wait for its backends; find out why these are slow, or raise max_connecting",
    Reason.BACKEND_UNRESOLVED: "the backend's host name has no address; see whether the resolver of this machine answers: getent ahosts NAME, and correct address if the name is wrong",
    Reason.BACKEND_REFUSED: "nothing listens at the backend's address; start it, or correct address",
    Reason.BACKEND_UNREACHABLE: "the network says the backend cannot be reached; check address, routes and firewalls",
    Reason.BACKEND_TIMEOUT: "the backend did not accept the connection within timeouts.connect_s",
    Reason.BACKEND_GONE: "the backend closed the connection during the TLS handshake; see its log",
    Reason.BACKEND_UNKNOWN_CA: "the backend's certificate does not lead to the pool's backend_ca; complete its chain, or add its CA to backend_ca",
    Reason.BACKEND_WRONG_NAME: "the backend's certificate does not carry the name it must; set the backend's name, or issue a certificate with it",
    Reason.BACKEND_EXPIRED: "renew the backend's certificate (or its CA's); also compare the clocks",
    Reason.BACKEND_NOT_YET_VALID: "the backend's certificate starts in the future; compare the clocks",
    Reason.BACKEND_WRONG_PURPOSE: "the backend's certificate, or its CA's, is not for servers; reissue the one that the detail names with the usage that it lacks",
    Reason.BACKEND_INVALID_CERTIFICATE: "OpenSSL refused the backend's certificate; the detail says why",
    Reason.BACKEND_CHAIN_TOO_LONG: "let the backend send its certificate and its intermediates only; where they are wanted, raise limits.certificate_chain_bytes",
    Reason.BACKEND_REJECTED_OUR_CERTIFICATE: "the backend does not accept the pool's machine_certificate; compare the backend's client CA with the machine certificate's issuer",
    Reason.BACKEND_PROTOCOL_VERSION: "the backend offers no TLS version the pool accepts; update it: it must speak TLS 1.3, or TLS 1.2 where the pool's min_version is TLSv1.2",
    Reason.BACKEND_NO_SHARED_CIPHER: "the backend found no cipher or group in common with the pool; see the pool's ciphers_tls12, ciphersuites_tls13 and groups",
    Reason.BACKEND_NO_SHARED_ALPN: "the backend does not speak the protocol negotiated with the client; compare the route's alpn with the backend's",
    Reason.BACKEND_NOT_TLS: "the backend did not answer with TLS; check its port",
    Reason.BACKEND_HANDSHAKE_TIMEOUT: "the backend did not finish the TLS handshake within timeouts.handshake_s",
    Reason.BACKEND_TLS_ERROR: "the backend broke the TLS protocol; the detail is OpenSSL's word for it",
    Reason.BACKEND_ALERT_OTHER: "the backend ended the connection with the alert in the detail; see its log",
    Reason.BACKEND_DOWN: "the health checks found that this session's backend is down, and the pool's on_down is close",
    Reason.ROUTE_DISABLED: "the route cannot work, so its clients are refused with the alert internal_error; renew the file that the detail names: the relay sees it by itself",
    Reason.POOL_DISABLED: "the route's pool cannot work, so its clients are refused with the alert internal_error; renew the file that the detail names: the relay sees it by itself",
    Reason.NO_RESOURCES: "this machine gave no file descriptor, memory or local port for a connection; raise LimitNOFILE, MemoryMax or net.ipv4.ip_local_port_range, or lower limits.connections",
    Reason.INTERNAL_ERROR: "a bug in the relay; please report it with the message and the traceback in the log",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration: where (key path or file), what, and what to do.

    `temporary`: it may go away by itself, such as a name that does not resolve yet.
    """

    where: str
    what: str
    remedy: str = ""
    temporary: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"; {self.remedy}" if self.remedy else "")


class RelayError(Exception):
    """Root of everything the relay raises on purpose."""


class ConfigError(RelayError):
    """The configuration, or a file it names, cannot be used. Holds every problem found, not the first."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class StartupError(RelayError):
    """The configuration is fine but this machine does not let us start: what happened, and what to do."""

    def __init__(self, what: str, hint: str) -> None:
        self.what = what
        self.hint = hint
        super().__init__(f"{what}; {hint}")


class FatalError(RelayError):
    """The relay has served and cannot go on: to a service manager no failed start, but an end."""


class ControlError(RelayError):
    """The control socket did not answer as it should."""


class SessionError(RelayError):
    """A session cannot go on. Never leaves the worker: it becomes one log line and one counter."""

    def __init__(self, side: Side, reason: Reason, detail: str = "") -> None:
        self.side = side
        self.reason = reason
        self.detail = detail
        super().__init__(f"{side}: {reason}" + (f" ({detail})" if detail else ""))


# ENOSPC is epoll_ctl's word for fs.epoll.max_user_watches, EADDRNOTAVAIL connect's for no free
# local port.
SHORTAGES = frozenset(
    (
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOBUFS,
        errno.EADDRNOTAVAIL,
        errno.ENOSPC,
    )
)


def is_shortage(error: BaseException | None) -> bool:
    """Whether an exception says that this machine has no memory, descriptor or port left."""
    if isinstance(error, OSError):
        return error.errno in SHORTAGES
    return isinstance(error, MemoryError)


def describe_error(error: BaseException | None) -> str:
    """The exception for a log line."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) or "out of memory"
