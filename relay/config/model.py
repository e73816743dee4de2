"""The configuration as values: every key with its type and default.

Types are strict: "300" is not a number and "yes" is not a boolean, so that a mistake is
an error and not a guess. `config.values` has the types of single values, and
conf/relay.toml explains the keys.

Never: reads a file (see `config.load`) or compares one key with another (see
`config.rules`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from relay.config.values import (
    CIPHERS_TLS12,
    CIPHERSUITES_TLS13,
    INBOUND_GROUPS,
    MAX_CAS,
    OUTBOUND_GROUPS,
    AtExpiry,
    ChainDepth,
    DnsNames,
    FilePath,
    FilePaths,
    Grace,
    HexNumbers,
    OwnPath,
    Seconds,
    Strings,
    TlsVersion,
)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, str_strip_whitespace=True)


class Relay(_Section):
    """`[relay]`: the processes."""

    workers: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = "auto"
    state_dir: OwnPath = Path("run")
    drain_timeout_s: Seconds = 30
    # How often the certificate, key and CA files are looked at; 0 is never.
    watch_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 2
    # How long sessions on replaced workers may go on; 0 is no limit.
    reload_drain_s: Annotated[float, Field(ge=0, le=31_536_000, allow_inf_nan=False)] = 0
    old_generations: Annotated[int, Field(ge=1, le=32)] = 8
    user: str = ""
    group: str = ""
    admin_user: str = ""


class Admin(_Section):
    """`[admin]`: the process that serves /metrics and /balancer-manager.

    `listen` is an address, "unix:PATH" for a unix socket, or "" for none.
    """

    listen: str = "127.0.0.1:9180"
    hosts: DnsNames = ()
    user: str = ""
    password_file: FilePath | None = None

    @property
    def unix_path(self) -> Path | None:
        """The path of the unix socket; None if `listen` is not one."""
        return Path(self.listen.removeprefix("unix:")) if self.listen.startswith("unix:") else None


class Log(_Section):
    """`[log]`: the relay's messages on stderr, and the access log."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    access: str = "-"
    access_rotate_s: Annotated[int, Field(ge=1)] = 43_200
    access_format: str = "json"


class Timeouts(_Section):
    """`[timeouts]`: how long each step of a session may take, in seconds."""

    hello_s: Seconds = 5
    handshake_s: Seconds = 10
    sniff_s: Seconds = 2
    connect_s: Seconds = 5
    idle_s: Seconds = 300
    linger_s: Seconds = 5


class Limits(_Section):
    """`[limits]`: bounds per worker. 0 in a limit per client means no limit."""

    connections: Annotated[int, Field(ge=1, le=1_000_000)] = 20_000
    handshakes: Annotated[int, Field(ge=1, le=100_000)] = 2_048
    per_client: Annotated[int, Field(ge=0)] = 0
    half_open_per_client: Annotated[int, Field(ge=0)] = 1_024
    # At most OpenSSL's own limit.
    certificate_chain_bytes: Annotated[int, Field(ge=4_096, le=102_400)] = 32_768


class Allow(_Section):
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


class Crl(_Section):
    """`crl`: revocation lists of the CAs of a route or a pool, and what they decide."""

    files: FilePaths = ()
    urls: Strings = ()
    from_certificates: bool = False
    hosts: DnsNames = ()
    missing: Literal["refuse", "accept"] = "refuse"
    expired: Literal["refuse", "grace"] = "refuse"
    grace_s: Seconds = 86_400


class Route(_Section):
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

    @property
    def label(self) -> str:
        """The route's name in logs and metrics: its first SNI pattern, or "default"."""
        return self.sni[0] if self.sni else "default"

    @property
    def revocation(self) -> Crl | None:
        """The setting `crl`, or what its short form `client_crl` stands for."""
        return self.crl or (Crl(files=self.client_crl) if self.client_crl else None)


class Listener(_Section):
    """`[[listener]]`: addresses to accept on, and routes; the first match wins."""

    name: str
    listen: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    accept_proxy: bool = False
    freebind: bool = False  # also listen on addresses that no interface has yet
    route: Annotated[tuple[Route, ...], Field(strict=False, min_length=1)]


class Health(_Section):
    """`health`: active checks of a pool's backends."""

    interval_s: Seconds = 5
    timeout_s: Seconds = 2
    rise: Annotated[int, Field(ge=1)] = 2
    fall: Annotated[int, Field(ge=1)] = 3
    http_get: str = ""
    http_status: str = "200-399"


class Backend(_Section):
    """`[[pool.NAME.backend]]`: one backend of a pool."""

    route: str
    address: str
    name: str = ""
    weight: Annotated[int, Field(ge=1, le=256)] = 1
    standby: bool = False
    max_connections: Annotated[int, Field(ge=0, le=1_000_000)] = 0


class Pool(_Section):
    """`[pool.NAME]`: backends, balancing, and how the relay authenticates to them."""

    balance: Literal["round_robin", "least_connections", "random", "hash"] = "round_robin"
    load_factor: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 0
    slow_start_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 0
    sticky: Literal["none", "source", "identity", "cookie"] = "none"
    source_prefix_v4: Annotated[int, Field(ge=1, le=32)] = 32
    source_prefix_v6: Annotated[int, Field(ge=1, le=128)] = 128
    cookie: str = "JSESSIONID"
    sticky_fallback: Literal["source", "balance"] = "source"
    cookie_insert: bool = False
    cookie_secret_file: FilePath | None = None
    cookie_path: str = "/"
    cookie_secure: bool = True
    cookie_http_only: bool = True
    cookie_same_site: Literal["Lax", "Strict", "None", ""] = "Lax"
    machine_certificate: FilePath | None = None
    machine_key: FilePath | None = None
    key_passphrase_file: FilePath | None = None
    backend_ca: FilePath | None = None
    backend_crl: FilePaths = ()
    crl: Crl | None = None
    partial_chain: bool = False
    strict_x509: bool = False
    max_chain_depth: ChainDepth = MAX_CAS
    min_version: TlsVersion = "TLSv1.2"
    max_version: TlsVersion = "TLSv1.3"
    ciphers_tls12: str = CIPHERS_TLS12
    ciphersuites_tls13: str = CIPHERSUITES_TLS13
    groups: str = OUTBOUND_GROUPS
    retry_s: Seconds = 10
    max_connecting: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    on_down: Literal["keep", "close"] = "keep"
    at_expiry: AtExpiry = "close"
    expiry_grace_s: Grace = 0
    resolve_s: Seconds = 30
    send_proxy: Literal["", "v1", "v2"] = ""
    health: Health | None = None
    backend: Annotated[tuple[Backend, ...], Field(strict=False, min_length=1)]

    @property
    def revocation(self) -> Crl | None:
        """The setting `crl`, or what its short form `backend_crl` stands for."""
        return self.crl or (Crl(files=self.backend_crl) if self.backend_crl else None)


class Config(_Section):
    """One whole configuration file, `source`. Every path in it is absolute."""

    relay: Relay = Relay()
    admin: Admin = Admin()
    log: Log = Log()
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    listener: Annotated[tuple[Listener, ...], Field(strict=False, min_length=1)]
    # Names are not stripped: two could become equal, and one pool would silently
    # vanish.
    pool: Annotated[
        dict[Annotated[str, StringConstraints(strip_whitespace=False)], Pool], Field(min_length=1)
    ]
    source: Path = Field(default=Path(), exclude=True)
