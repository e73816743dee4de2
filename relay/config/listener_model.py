"""`[[listener]]` and its routes as values.

Never: compares one key with another (see `config.rules`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from relay.config.section import Crl, Keepalive, Off, Section
from relay.config.values import (
    CIPHERS_TLS12,
    CIPHERSUITES_TLS13,
    INBOUND_GROUPS,
    MAX_CAS,
    AtExpiry,
    ChainDepth,
    DnsNames,
    FilePath,
    FilePaths,
    Grace,
    HexNumbers,
    Seconds,
    Strings,
    TlsVersion,
)


class Allow(Section):
    """`allow`: which certificates of the CA are allowed; one matching entry is enough.

    Without `allow`, every certificate of the CA is allowed. An `allow` without any
    entry is an error (see `config.rules.access`).
    """

    cn: Strings = ()
    san_dns: DnsNames = ()
    san_uri: Strings = ()
    ip: Strings = ()
    email: Strings = ()
    ou: Strings = ()
    issuer: Strings = ()
    serial: HexNumbers = ()
    fingerprint_sha256: HexNumbers = ()


class Deny(Allow):
    """`deny`: the same keys, judged before `allow`; one matching entry is enough."""


class Route(Section):
    """`[[listener.route]]`: server names, pool, certificate, the clients' CAs."""

    sni: DnsNames = ()
    pool: str
    mode: Literal["terminate", "passthrough"] = "terminate"
    certificate: FilePath | None = None
    private_key: FilePath | None = None
    key_passphrase_file: FilePath | None = None
    ocsp_response: FilePath | None = None
    client_ca: FilePath | None = None
    client_crl: FilePaths = ()
    crl: Crl | None = None
    allow: Allow = Allow()
    deny: Deny = Deny()
    accept_server_certificates: bool = False
    partial_chain: bool = False
    strict_x509: bool = False
    max_chain_depth: ChainDepth = MAX_CAS
    min_version: TlsVersion = "TLSv1.2"
    max_version: TlsVersion = "TLSv1.3"
    ciphers_tls12: str = CIPHERS_TLS12
    ciphersuites_tls13: str = CIPHERSUITES_TLS13
    groups: str = INBOUND_GROUPS
    send_ca_names: bool = True
    session_tickets: bool = True  # a ticket costs 41 µs of CPU per full handshake
    at_expiry: AtExpiry = "close"
    expiry_grace_s: Grace = 0
    alpn: Strings = ()
    starttls: Literal["", "postgres"] = ""

    @property
    def label(self) -> str:
        """The route's name in logs and metrics: its first SNI pattern, or "default"."""
        return self.sni[0] if self.sni else "default"

    @property
    def revocation(self) -> Crl | None:
        """The setting `crl`, or what its short form `client_crl` stands for."""
        return self.crl or (Crl(files=self.client_crl) if self.client_crl else None)


class AcceptProxy(Section):
    """`accept_proxy`: the peers whose connections start with a PROXY header."""

    from_: Annotated[
        Strings,
        Field(
            alias="from",
            min_length=1,
            description='IP addresses and networks of the balancers, and "unix" for unix sockets.',
        ),
    ]


class Listener(Section):
    """`[[listener]]`: addresses to accept on, and routes; the first match wins."""

    name: str
    listen: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    accept_proxy: Annotated[AcceptProxy | None, Off] = None
    freebind: bool = False  # also listen on addresses that no interface has yet
    # New connections per second of one client address or prefix; 0 is no limit.
    per_client_rate: Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)] = 0
    per_client_burst: Annotated[int, Field(ge=0, le=1_000_000)] = 0  # 0: from the rate
    per_client_prefix_v4: Annotated[int, Field(ge=1, le=32)] = 32
    per_client_prefix_v6: Annotated[int, Field(ge=1, le=128)] = 64
    max_session_s: Annotated[float, Field(ge=0, le=31_536_000, allow_inf_nan=False)] = 0
    idle_s: Seconds | None = None  # None: that of [timeouts]
    linger_s: Seconds | None = None
    keepalive: Annotated[Keepalive | None, Off] = Keepalive()
    user_timeout_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 120
    log_probes: bool = True
    probes_from: Strings = ()
    route: Annotated[tuple[Route, ...], Field(strict=False, min_length=1)]

    @property
    def terminating(self) -> tuple[Route, ...]:
        """The routes that terminate TLS."""
        return tuple(route for route in self.route if route.mode == "terminate")
