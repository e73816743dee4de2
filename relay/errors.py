"""Every way the relay can fail, as values that an operator can search for.

Never: formats for a terminal, exits, or logs (see `cli`, `worker.session` and
`logs.access_log`).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class FastStrEnum(StrEnum):
    """A StrEnum for dictionary keys on the hot path.

    Enum's own hash is a Python function, that of str is not.
    """

    __hash__ = str.__hash__


class Side(FastStrEnum):
    """One of a session's two TLS connections."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"


class Reason(FastStrEnum):
    """Why a session or a handshake ended.

    A closed list: metric label, log field and test id are the same word. The
    remedy of each is in `relay.remedies`.
    """

    # Sessions that were established.
    FINISHED = "finished"
    TRUNCATED = "truncated"
    IDLE_TIMEOUT = "idle_timeout"
    LINGER_TIMEOUT = "linger_timeout"
    DRAIN_TIMEOUT = "drain_timeout"
    DRAINED = "drained"
    MAX_SESSION = "max_session"
    GENERATION_ENDED = "generation_ended"
    INBOUND_RESET = "inbound_reset"
    OUTBOUND_RESET = "outbound_reset"
    INBOUND_LOST = "inbound_lost"
    OUTBOUND_LOST = "outbound_lost"
    # The relay judged the session again, or an operator ended it.
    REVOKED_DURING_SESSION = "revoked_during_session"
    NOT_ALLOWED_DURING_SESSION = "not_allowed_during_session"
    EXPIRED_DURING_SESSION = "expired_during_session"
    BACKEND_REVOKED_DURING_SESSION = "backend_revoked_during_session"
    BACKEND_NOT_TRUSTED_DURING_SESSION = "backend_not_trusted_during_session"
    BACKEND_EXPIRED_DURING_SESSION = "backend_expired_during_session"
    KICKED = "kicked"

    # The first bytes.
    HELLO_TIMEOUT = "hello_timeout"
    PEER_GONE = "peer_gone"
    NOT_TLS = "not_tls"
    PLAIN_HTTP = "plain_http"
    MALFORMED_HELLO = "malformed_hello"
    UNKNOWN_SNI = "unknown_sni"
    NO_SNI = "no_sni"
    PROXY_PEER_REFUSED = "proxy_peer_refused"
    PROXY_HEADER_MISSING = "proxy_header_missing"
    PROXY_HEADER_INVALID = "proxy_header_invalid"
    PLAIN_POSTGRES = "plain_postgres"
    STARTTLS_REFUSED = "starttls_refused"
    BYTES_BEFORE_TLS = "bytes_before_tls"
    PER_CLIENT_LIMIT = "per_client_limit"
    PER_CLIENT_RATE = "per_client_rate"
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
    CRL_MISSING = "crl_missing"
    CRL_EXPIRED = "crl_expired"
    NOT_ALLOWED = "not_allowed"
    PROTOCOL_VERSION = "protocol_version"
    NO_SHARED_CIPHER = "no_shared_cipher"
    NO_SHARED_GROUP = "no_shared_group"
    NO_SHARED_ALPN = "no_shared_alpn"
    SNI_MISMATCH = "sni_mismatch"
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    TLS_ERROR = "tls_error"

    # Alerts that the client's TLS library sent (RFC 8446, section 6.2).
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
    BACKEND_WRONG_USER = "backend_wrong_user"
    BACKEND_EXPIRED = "backend_expired"
    BACKEND_NOT_YET_VALID = "backend_not_yet_valid"
    BACKEND_WRONG_PURPOSE = "backend_wrong_purpose"
    BACKEND_INVALID_CERTIFICATE = "backend_invalid_certificate"
    BACKEND_CHAIN_TOO_LONG = "backend_chain_too_long"
    BACKEND_REVOKED = "backend_revoked"
    BACKEND_CRL_MISSING = "backend_crl_missing"
    BACKEND_CRL_EXPIRED = "backend_crl_expired"
    BACKEND_REJECTED_OUR_CERTIFICATE = "backend_rejected_our_certificate"
    BACKEND_PROTOCOL_VERSION = "backend_protocol_version"
    BACKEND_NO_SHARED_CIPHER = "backend_no_shared_cipher"
    BACKEND_NO_SHARED_ALPN = "backend_no_shared_alpn"
    BACKEND_NOT_TLS = "backend_not_tls"
    BACKEND_NO_TLS = "backend_no_tls"
    BACKEND_STARTTLS_ERROR = "backend_starttls_error"
    BACKEND_HANDSHAKE_TIMEOUT = "backend_handshake_timeout"
    BACKEND_TLS_ERROR = "backend_tls_error"
    BACKEND_ALERT_OTHER = "backend_alert_other"
    BACKEND_DOWN = "backend_down"

    # The relay itself.
    ROUTE_DISABLED = "route_disabled"
    POOL_DISABLED = "pool_disabled"
    NO_RESOURCES = "no_resources"
    INTERNAL_ERROR = "internal_error"


class Place(NamedTuple):
    """A line, from 1, of a configuration file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


_MOST_KEYS, _KEYS_NAMED = 6, 3


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration: where (key path or file), what, the remedy.

    `temporary`: it may disappear by itself, such as a name that does not resolve yet.
    `place`: the line of the key, where it is known.
    """

    where: str
    what: str
    remedy: str = ""
    temporary: bool = False
    place: Place | None = field(default=None, compare=False)

    def __str__(self) -> str:
        text = f"{_first(self.where)}: {self.what}" + (f"; {self.remedy}" if self.remedy else "")
        if self.place is None or self.where.startswith(self.place.file):
            return text
        return f"{self.place}: {text}"


def _first(where: str) -> str:
    """Key paths for people: of a thousand keys with the same file, the first three."""
    keys = where.split(", ")
    if len(keys) <= _MOST_KEYS:
        return where
    return f"{', '.join(keys[:_KEYS_NAMED])} and {len(keys) - _KEYS_NAMED} more"


class RelayError(Exception):
    """Base of every exception that the relay raises on purpose."""


class ConfigError(RelayError):
    """The configuration, or a file it names, cannot be used. Holds all problems."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class StartupError(RelayError):
    """The configuration is right, but this machine does not let the relay start.

    Says what happened (`what`) and what to do (`hint`).
    """

    def __init__(self, what: str, hint: str) -> None:
        self.what = what
        self.hint = hint
        super().__init__(f"{what}; {hint}")


class FatalError(RelayError):
    """The relay was serving and cannot continue.

    For systemd this is not a failed start.
    """


class ControlError(RelayError):
    """The control socket did not answer as it should."""


class SessionError(RelayError):
    """A session cannot continue.

    The worker catches it, logs one line and adds one to a counter.
    """

    def __init__(self, side: Side, reason: Reason, detail: str = "") -> None:
        self.side = side
        self.reason = reason
        self.detail = detail
        super().__init__(f"{side}: {reason}" + (f" ({detail})" if detail else ""))


# ENOSPC: epoll_ctl reached fs.epoll.max_user_watches. EADDRNOTAVAIL: connect found no
# free local port.
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
    """Whether this error means that memory, descriptors or ports are used up."""
    if isinstance(error, OSError):
        return error.errno in SHORTAGES
    return isinstance(error, MemoryError)


def describe_error(error: BaseException | None) -> str:
    """The error as text for a log line."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) or "out of memory"
