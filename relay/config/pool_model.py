"""`[pool.NAME]` and its backends as values.

Never: compares one key with another (see `config.rules`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from relay.config.address import unix_path
from relay.config.section import Crl, Keepalive, Off, Section
from relay.config.values import (
    CIPHERS_TLS12,
    CIPHERSUITES_TLS13,
    MAX_CAS,
    OUTBOUND_GROUPS,
    AtExpiry,
    ChainDepth,
    FilePath,
    FilePaths,
    Grace,
    OneOrMore,
    Seconds,
    Strings,
    TlsVersion,
)

CLIENT_NAME = "client"  # a value of `sni`

# The parts of a PROXY v2 header that `send_proxy_tlvs` can name.
PROXY_TLVS = (
    "alpn",
    "authority",
    "unique_id",
    "ssl",
    "ssl_version",
    "ssl_cn",
    "ssl_cipher",
    "ssl_sig_alg",
    "ssl_key_alg",
    "ssl_group",
    "ssl_sig_scheme",
)


class Health(Section):
    """`health`: active checks of a pool's backends."""

    interval_s: Seconds = 5
    timeout_s: Seconds = 2
    rise: Annotated[int, Field(ge=1)] = 2
    fall: Annotated[int, Field(ge=1)] = 3
    http_get: str = ""
    http_status: str = "200-399"


class Backend(Section):
    """`[[pool.NAME.backend]]`: one backend of a pool."""

    route: str
    address: str
    name: str = ""
    sni: str = ""  # "": that of the pool
    peer_user: str = ""
    weight: Annotated[int, Field(ge=1, le=256)] = 1
    standby: bool = False
    max_connections: Annotated[int, Field(ge=0, le=1_000_000)] = 0

    @property
    def unix_path(self) -> str:
        """The path of the unix socket; "" if `address` is not one."""
        return unix_path(self.address)


class Pool(Section):
    """`[pool.NAME]`: backends, balancing, and how the relay authenticates to them."""

    balance: Literal["round_robin", "least_connections", "random", "hash"] = "round_robin"
    load_factor: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 0
    slow_start_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 0
    sticky: Literal["none", "source", "identity", "cookie"] = "none"
    source_prefix_v4: Annotated[int, Field(ge=1, le=32)] = 32
    source_prefix_v6: Annotated[int, Field(ge=1, le=128)] = 128
    cookie: str = "JSESSIONID"
    cookie_separator: str = "."
    cookie_in_url: str = ""
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
    idle_s: Seconds | None = None  # None: that of the listener
    linger_s: Seconds | None = None
    keepalive: Annotated[Keepalive | None, Off] = Keepalive()
    user_timeout_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 120
    source: OneOrMore = ()  # at most one address of each family
    sni: str = ""
    starttls: Literal["", "postgres"] = ""
    send_proxy: Literal["", "v1", "v2", "v2-inside-tls"] = ""
    send_proxy_tlvs: Strings | None = None  # None: all
    send_proxy_certificate: bool = False
    health: Health | None = None
    backend: Annotated[tuple[Backend, ...], Field(strict=False, min_length=1)]

    @property
    def is_plain(self) -> bool:
        """Whether the relay does no TLS with these backends."""
        return self.machine_certificate is self.machine_key is self.backend_ca is None

    @property
    def revocation(self) -> Crl | None:
        """The setting `crl`, or what its short form `backend_crl` stands for."""
        return self.crl or (Crl(files=self.backend_crl) if self.backend_crl else None)
