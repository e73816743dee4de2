"""What is built from one configuration: its routes and backends, ready to use.

A route has two TLS contexts. The *ticket owner* is made before the workers are forked,
so every worker opens the tickets of every other. The *material* shows the certificate
and holds the CAs. At first the owner is its own material. A renewal replaces the
material, in each process for itself, and the owner stays: so tickets still count, as
long as the CAs are the same.

These objects live as long as their generation, and a renewal changes them in place. So
a session that refers to its route always sees today's trust.

A pointer to a context frees it when it is replaced, and a connection that uses it
keeps it until it ends.

Never: builds a context (that is `tls.material`).
Next: `relay.tls.renewal.renew_steps`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from relay.config.listener_model import Listener, Route
from relay.config.model import Config
from relay.core.proxy_header_out import SendProxy
from relay.core.routes import RouteTable
from relay.errors import Side
from relay.shared.addresses import Located
from relay.sockets import Address
from relay.tcp_options import SocketOptions
from relay.tls.certificates.pem import KeyPair
from relay.tls.certificates.validity_periods import ValidityPeriod, ValidityPeriods
from relay.tls.explain import Failure
from relay.tls.identity import Identity
from relay.tls.raw import NULL, Pointer
from relay.tls.revocation.judge import why_revoked
from relay.tls.revocation.revoked_set import RevokedSet
from relay.tls.staple import Staple
from relay.tls.trust import BackendTrust, ClientTrust
from relay.tls.trust_store import TrustedCas
from relay.tls.verification import Chain


@dataclass(slots=True, eq=False)
class InboundRoute:
    """One route, ready to accept."""

    where: str  # its configuration key
    label: str
    pool: str
    owner: Pointer
    alpn_callback: Any = field(repr=False)  # NULL if it negotiates no protocol
    starttls: bool  # clients may ask for TLS in the clear
    staple: Staple | None = field(repr=False)

    # Replaced by a renewal.
    material: Pointer
    pair: KeyPair
    cas: TrustedCas = field(repr=False)
    trust: ClientTrust
    revoked: RevokedSet | None = field(default=None, repr=False)
    periods: ValidityPeriods = field(default_factory=ValidityPeriods)
    pool_periods: ValidityPeriods = field(default_factory=ValidityPeriods)
    valid_from_at: float = 0.0  # outside these two times (Unix time) it is disabled
    valid_until_at: float = 0.0

    verified_by: ClientTrust = field(init=False, repr=False)
    """The trust that `material` has; on an old worker, `trust` may be newer."""

    def __post_init__(self) -> None:
        self.verified_by = self.trust

    @property
    def negotiates_alpn(self) -> bool:
        """Whether it selects a protocol from the client's list (RFC 7301)."""
        return bool(self.alpn_callback != NULL)

    def why_revoked(self, who: Identity, chain: Chain, now_at: float) -> Failure | None:
        """Why today's revocation lists refuse a client; see `tls.revocation.judge`."""
        if self.trust.crl is None:
            return None
        return why_revoked(Side.INBOUND, who, chain, self.trust, self.revoked, now_at)

    def set_periods(self, own: ValidityPeriods, of_pool: ValidityPeriods) -> None:
        """Set when the route's files, and its pool's, are valid."""
        self.periods, self.pool_periods = own, of_pool
        self.valid_from_at = max(own.from_at, of_pool.from_at)
        self.valid_until_at = min(own.until_at, of_pool.until_at)


@dataclass(slots=True, eq=False)
class PassthroughRoute:
    """One route that does not terminate TLS. It has no certificate and trusts no CA."""

    where: str
    label: str
    pool: str


AnyRoute = InboundRoute | PassthroughRoute


@dataclass(slots=True, eq=False, kw_only=True)
class Target:
    """One backend, ready to connect to."""

    where: str  # the configuration key of its pool
    index: int  # in its pool
    pool: str
    route: str
    address: str
    family: int
    sockaddr: Any  # () if the host name has no address; the path of a unix socket
    name: str
    options: SocketOptions = ()  # of connections to it
    sources: Mapping[int, Address] = field(default_factory=dict)  # to connect from, by family
    send_proxy: SendProxy | None = None
    starttls: bool = False  # the backend is asked for TLS in the clear
    has_preface: bool = field(init=False)
    """Whether something is sent before TLS, or before the client's bytes."""

    def __post_init__(self) -> None:
        send = self.send_proxy
        self.has_preface = self.starttls or (send is not None and not send.inside_tls)


@dataclass(slots=True, eq=False, kw_only=True)
class PlainTarget(Target):
    """One backend without TLS of ours: of passthrough routes, or on a unix socket.

    `peer_uid` is the user that must listen on the unix socket.
    """

    peer_user: str
    peer_uid: int


@dataclass(slots=True, eq=False, kw_only=True)
class BackendTarget(Target):
    """One backend with TLS. Its context accepts only its own name."""

    server_name: bytes  # the SNI to send, zero-terminated; b"" for none
    sends_client_name: bool = False  # clients' SNI; health checks send server_name

    # Replaced by a renewal.
    context: Pointer
    pair: KeyPair
    cas: TrustedCas = field(repr=False)
    trust: BackendTrust
    revoked: RevokedSet | None = field(default=None, repr=False)

    verified_by: BackendTrust = field(init=False, repr=False)
    """The trust that `context` has; on an old worker, `trust` may be newer."""

    def __post_init__(self) -> None:
        Target.__post_init__(self)
        self.verified_by = self.trust

    def why_revoked(self, who: Identity, chain: Chain, now_at: float) -> Failure | None:
        """Why today's revocation lists refuse the backend."""
        if self.trust.crl is None:
            return None
        return why_revoked(Side.OUTBOUND, who, chain, self.trust, self.revoked, now_at)


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """One loaded configuration with everything built from it.

    `inbound` has the routes of each listener that terminate TLS, in the order of the
    configuration, and `routes` finds any route by a server name. A pool is in `targets`
    if its backends speak TLS with the relay, and in `plain` if not. `periods` are by
    configuration key.
    """

    number: int
    config: Config
    inbound: dict[str, tuple[InboundRoute, ...]]
    routes: dict[str, RouteTable[AnyRoute]]
    targets: dict[str, tuple[BackendTarget, ...]]
    plain: dict[str, tuple[PlainTarget, ...]]
    secrets: dict[str, bytes] = field(repr=False)  # of the pools that insert cookies
    addresses: dict[str, tuple[Located, ...]] = field(default_factory=dict)  # of backends' names
    periods: dict[str, ValidityPeriod] = field(default_factory=dict)
    revoked: dict[str, RevokedSet] = field(default_factory=dict)  # by the trust set's name
    users: dict[str, int] = field(default_factory=dict)  # the ids of `peer_user`

    def terminating(self, listener: Listener) -> Iterator[tuple[InboundRoute, Route]]:
        """The routes of a listener that terminate TLS, with their settings."""
        return zip(self.inbound[listener.name], listener.terminating, strict=True)

    def backends(self, pool: str) -> tuple[Target, ...]:
        """The backends of a pool."""
        return self.targets[pool] or self.plain[pool]

    def pairs(self) -> dict[str, KeyPair]:
        """Every certificate with its key, by configuration key."""
        routes = (one for several in self.inbound.values() for one in several)
        targets = (one for several in self.targets.values() for one in several)
        return {f"{each.where}.certificate": each.pair for each in routes} | {
            f"{each.where}.machine_certificate": each.pair for each in targets
        }


def free_steps(generation: Generation) -> Iterator[None]:
    """Free a generation's contexts in steps.

    Freeing 500 at once would block the supervisor for 0.1 s.
    """
    kept: list[object] = [one for several in generation.inbound.values() for one in several]
    kept += [one for several in generation.targets.values() for one in several]
    generation.inbound.clear()
    generation.routes.clear()
    generation.targets.clear()
    generation.revoked.clear()
    while kept:
        kept.pop()
        yield
