"""The trust sets of a configuration: each is a CA file with its revocation lists.

Routes and pools with the same CA file and the same lists share a set, so its revoked
certificates are in memory once.

Never: opens a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from relay.config.key_path import pool_path, routes_of
from relay.config.model import Config
from relay.config.section import Crl


@dataclass(frozen=True, slots=True)
class CrlUse:
    """One use of a trust set, by a route or by a pool.

    `where` is the key that names the lists, `files_where` the one of its files.
    """

    where: str
    files_where: str
    crl: Crl
    pool: str = ""  # empty for a route


@dataclass(frozen=True, slots=True)
class TrustSet:
    """A CA file with the sources of its lists. `where` is the key of the CA file."""

    name: str
    where: str
    cas: Path
    files: tuple[Path, ...]
    urls: tuple[str, ...]
    from_certificates: bool
    uses: tuple[CrlUse, ...] = ()

    @property
    def is_fetched(self) -> bool:
        """Whether lists may still come that are not there now."""
        return bool(self.urls) or self.from_certificates


def set_name(cas: Path, crl: Crl) -> str:
    """The name of the set of this CA file and these lists."""
    sources = repr((str(cas), *map(str, crl.files), "", *crl.urls, crl.from_certificates))
    hosts = repr(crl.hosts) if crl.from_certificates else ""
    return hashlib.sha256((sources + hosts).encode()).hexdigest()[:16]


def trust_sets_of(config: Config) -> dict[str, TrustSet]:
    """The sets by name, in the configuration's order."""
    found: dict[str, TrustSet] = {}
    for where, cas, use in _uses(config):
        name = set_name(cas, use.crl)
        crl, before = use.crl, found.get(name)
        found[name] = TrustSet(
            name,
            before.where if before else where,
            cas,
            crl.files,
            crl.urls,
            crl.from_certificates,
            (*(before.uses if before else ()), use),
        )
    return found


def _uses(config: Config) -> Iterator[tuple[str, Path, CrlUse]]:
    for where, _, route in routes_of(config):
        if route.client_ca is not None and route.revocation is not None:
            use = _use(where, "client_crl", route.crl, route.revocation)
            yield f"{where}.client_ca", route.client_ca, use
    for name, pool in config.pool.items():
        if pool.backend_ca is not None and pool.revocation is not None:
            where = pool_path(name)
            use = _use(where, "backend_crl", pool.crl, pool.revocation, name)
            yield f"{where}.backend_ca", pool.backend_ca, use


def _use(where: str, short: str, table: Crl | None, crl: Crl, pool: str = "") -> CrlUse:
    if table is None:
        return CrlUse(f"{where}.{short}", f"{where}.{short}", crl, pool)
    return CrlUse(f"{where}.crl", f"{where}.crl.files", crl, pool)
