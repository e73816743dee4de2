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

from pydantic import Field, StringConstraints

from relay.config.find import DEFAULT_STATE_DIR
from relay.config.listener_model import Listener
from relay.config.pool_model import Pool
from relay.config.section import Section
from relay.config.values import DnsNames, FilePath, OwnPath, Seconds, Strings


class Relay(Section):
    """`[relay]`: the processes."""

    workers: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = "auto"
    state_dir: OwnPath = Path(DEFAULT_STATE_DIR)
    drain_timeout_s: Seconds = 30
    # How long /readyz says no before the relay stops accepting.
    drain_delay_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 0
    # How often the certificate, key and CA files are looked at; 0 is never.
    watch_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 2
    # How long sessions on replaced workers may go on; 0 is no limit.
    reload_drain_s: Annotated[float, Field(ge=0, le=31_536_000, allow_inf_nan=False)] = 0
    old_generations: Annotated[int, Field(ge=1, le=32)] = 8
    user: str = ""
    group: str = ""
    admin_user: str = ""


class Admin(Section):
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


class Log(Section):
    """`[log]`: the relay's messages on stderr, and the access log."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    access: str = "-"
    access_rotate_s: Annotated[int, Field(ge=1)] = 43_200
    access_format: str = "json"


class Timeouts(Section):
    """`[timeouts]`: how long each step of a session may take, in seconds."""

    hello_s: Seconds = 5
    handshake_s: Seconds = 10
    sniff_s: Seconds = 2
    connect_s: Seconds = 5
    idle_s: Seconds = 300
    linger_s: Seconds = 5


class Limits(Section):
    """`[limits]`: bounds per worker. 0 in a limit per client means no limit."""

    connections: Annotated[int, Field(ge=1, le=1_000_000)] = 20_000
    handshakes: Annotated[int, Field(ge=1, le=100_000)] = 2_048
    per_client: Annotated[int, Field(ge=0)] = 0
    half_open_per_client: Annotated[int, Field(ge=0)] = 1_024
    # At most OpenSSL's own limit.
    certificate_chain_bytes: Annotated[int, Field(ge=4_096, le=102_400)] = 32_768


class Config(Section):
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
    # Files whose sections and keys are added; `config.include` reads them.
    include: Strings = ()
    source: Path = Field(default=Path(), exclude=True)
