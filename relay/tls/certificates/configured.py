"""The certificate and CA files that a configuration names, and what each one is for.

Never: opens one of these files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from relay.config.key_path import pool_path, private_key_path, routes_of
from relay.config.listener_model import Route
from relay.config.model import Config
from relay.config.pool_model import Pool
from relay.config.values import MAX_CAS


class PairFiles(NamedTuple):
    """The files of one certificate and its key. The passphrase is the key's, if any."""

    certificate: Path
    private_key: Path
    passphrase: Path | None = None


class ChainRules(NamedTuple):
    """How the chains of a route's clients, or of a pool's backends, are verified."""

    partial_chain: bool = False
    strict_x509: bool = False
    max_chain_depth: int = MAX_CAS
    accept_server_certificates: bool = False

    @classmethod
    def of(cls, settings: Route | Pool) -> ChainRules:
        """The rules of this route or pool."""
        servers = isinstance(settings, Route) and settings.accept_server_certificates
        return cls(settings.partial_chain, settings.strict_x509, settings.max_chain_depth, servers)


DEFAULT_RULES = ChainRules()


@dataclass(frozen=True, slots=True)
class PairUse:
    """One use of a certificate and its key, in a route or as a machine certificate."""

    where: str
    files: PairFiles
    sni: tuple[str, ...] = ()
    pool: str = ""  # set for a machine certificate, empty for a route's
    groups: str = ""
    min_version: str = ""
    max_version: str = ""
    ciphers_tls12: str = ""  # of a route with TLS 1.2

    @property
    def key_where(self) -> str:
        """The configuration key that names the private key's file."""
        together = self.files.private_key == self.files.certificate
        return self.where if together else private_key_path(self.where)


@dataclass(frozen=True, slots=True)
class AuthorityUse:
    """One use of a CA file; `pool` is set for a backend_ca, empty for a client_ca."""

    where: str
    file: Path
    pool: str = ""
    names_sent: bool = False  # the certificate request lists the names of these CAs
    rules: ChainRules = DEFAULT_RULES


def pairs_of(config: Config) -> Iterator[PairUse]:
    """Every certificate with its key, in the configuration's order.

    Without a private_key setting the key is expected in the certificate's file.
    """
    for where, _, route in routes_of(config):
        if route.certificate is not None:
            yield PairUse(
                f"{where}.certificate",
                PairFiles(
                    route.certificate,
                    route.private_key or route.certificate,
                    route.key_passphrase_file,
                ),
                sni=route.sni,
                groups=route.groups,
                min_version=route.min_version,
                max_version=route.max_version,
                ciphers_tls12=route.ciphers_tls12 if route.min_version == "TLSv1.2" else "",
            )
    for name, pool in config.pool.items():
        if pool.machine_certificate is not None:
            yield PairUse(
                f"{pool_path(name)}.machine_certificate",
                PairFiles(
                    pool.machine_certificate,
                    pool.machine_key or pool.machine_certificate,
                    pool.key_passphrase_file,
                ),
                pool=name,
                groups=pool.groups,
                min_version=pool.min_version,
            )


def authorities_of(config: Config) -> Iterator[AuthorityUse]:
    """Every CA file, in the configuration's order."""
    for where, _, route in routes_of(config):
        if route.client_ca is not None:
            yield AuthorityUse(
                f"{where}.client_ca",
                route.client_ca,
                names_sent=route.send_ca_names,
                rules=ChainRules.of(route),
            )
    for name, pool in config.pool.items():
        if pool.backend_ca is not None:
            where = f"{pool_path(name)}.backend_ca"
            yield AuthorityUse(where, pool.backend_ca, pool=name, rules=ChainRules.of(pool))
