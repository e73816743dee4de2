"""Replaces certificates and CAs of a running generation, without a fork or a drain.

The supervisor applies a renewal to its own objects, so that workers that it forks later
inherit it. It sends the same renewal to its workers and its checker, which apply it
too. A session that has begun its handshake keeps the context that it has.

A renewed file is read and checked before, in the child that inspects files. Whatever
fails here leaves that route or backend as it was.

Never: reads a file; touches a ticket owner, a socket or a session.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from relay.config.listener_model import Route
from relay.config.pool_model import Pool
from relay.config.section import Crl
from relay.files import Contents, Files
from relay.shared.sealed_memory import map_bytes
from relay.tls.certificates.configured import ChainRules, PairFiles
from relay.tls.certificates.pem import KeyPair
from relay.tls.certificates.validity_periods import ValidityPeriod
from relay.tls.context_inputs import ContextInputs, periods_of_pool, periods_of_route
from relay.tls.contexts import ParsedFiles
from relay.tls.generation import BackendTarget, Generation, InboundRoute
from relay.tls.material import backend_context, route_context
from relay.tls.revocation.revoked_set import RevokedSet
from relay.tls.revocation.trust_sets import set_name
from relay.tls.trust_store import TrustedCas


@dataclass(frozen=True, slots=True)
class Renewal:
    """What was renewed: certificates with their keys, CAs, OCSP responses, and lists.

    `contents` has the bytes of all these files, private keys included. `periods` are by
    configuration key, and only those that changed. The revoked certificates of a trust
    set are in a file of sealed memory of their own, which comes with the renewal:
    `revoked` says which one, by the name of the set.
    """

    contents: Contents = field(repr=False)
    pairs: frozenset[tuple[Path, Path]] = frozenset()
    cas: frozenset[Path] = frozenset()
    responses: frozenset[Path] = frozenset()  # OCSP responses
    periods: Mapping[str, ValidityPeriod] = field(default_factory=dict)
    revoked: Mapping[str, int] = field(default_factory=dict)

    def concerns_route(self, route: Route) -> bool:
        """Whether the route's material or trust changes."""
        return (
            (route.certificate, route.private_key) in self.pairs
            or route.client_ca in self.cas
            or route.ocsp_response in self.responses
            or self._has_lists(route.client_ca, route.revocation)
        )

    def concerns_pool(self, pool: Pool) -> bool:
        """Whether contexts or trust of the pool's backends change."""
        return (
            (pool.machine_certificate, pool.machine_key) in self.pairs
            or pool.backend_ca in self.cas
            or self._has_lists(pool.backend_ca, pool.revocation)
        )

    def _has_lists(self, cas: Path | None, crl: Crl | None) -> bool:
        return cas is not None and crl is not None and set_name(cas, crl) in self.revoked


def map_sets(renewal: Renewal, fds: Sequence[int]) -> dict[str, RevokedSet]:
    """The sets of a renewal, in these files. Raises OSError and ValueError."""
    return {name: RevokedSet(map_bytes(fds[index])) for name, index in renewal.revoked.items()}


def renew(
    generation: Generation, renewal: Renewal, revoked: Mapping[str, RevokedSet] | None = None
) -> None:
    """Apply a renewal at once. Raises ConfigError."""
    for _ in renew_steps(generation, renewal, revoked):
        pass


def renew_steps(
    generation: Generation, renewal: Renewal, revoked: Mapping[str, RevokedSet] | None = None
) -> Iterator[None]:
    """Apply a renewal; yields after every few milliseconds of work.

    `revoked` are its sets (see `map_sets`). Raises ConfigError.
    """
    generation.periods.update(renewal.periods)
    generation.revoked.update(revoked or {})
    files = ParsedFiles(
        ContextInputs(
            Files(renewal.contents),
            ciphers_checked=True,
            periods=generation.periods,
            revoked=generation.revoked,
        )
    )
    for listener in generation.config.listener:
        for live, route in generation.terminating(listener):
            if renewal.concerns_route(route):
                yield from _renew_route(live, route, renewal, files)
                yield
            live.set_periods(
                periods_of_route(generation.periods, live.where),
                periods_of_pool(generation.periods, live.pool),
            )
    for name, pool in generation.config.pool.items():
        if renewal.concerns_pool(pool):
            for target in generation.targets[name]:
                yield from _renew_target(target, pool, renewal, files)
                yield


def _renew_route(
    live: InboundRoute, route: Route, renewal: Renewal, files: ParsedFiles
) -> Generator[None, None, None]:
    where = live.where
    pair, cas = yield from _renewed(
        renewal,
        files,
        (f"{where}.certificate", _files_of(route), live.pair),
        (f"{where}.client_ca", route.client_ca, live.cas),
        ChainRules.of(route),
    )
    revoked = files.revoked_by(route.client_ca, route.revocation)
    trust = replace(live.trust, cas=cas.trust(revoked))
    same = pair is live.pair and cas is live.cas and trust.cas.digest == live.trust.cas.digest
    if not same:
        live.material = route_context(
            where,
            route,
            pair,
            cas,
            trust.cas,
            live.alpn_callback,
            live.staple,
            ciphers_checked=True,
        )
    if live.staple is not None:
        renewed = live.staple.file in renewal.responses
        latest = files.response(live.staple.file) if renewed else None
        live.staple.set(latest, pair.chain, cas.certificates)
    live.pair, live.cas, live.revoked = pair, cas, revoked
    live.trust = live.verified_by = trust


def _renew_target(
    target: BackendTarget, pool: Pool, renewal: Renewal, files: ParsedFiles
) -> Generator[None, None, None]:
    where = target.where
    pair, cas = yield from _renewed(
        renewal,
        files,
        (f"{where}.machine_certificate", _files_of(pool), target.pair),
        (f"{where}.backend_ca", pool.backend_ca, target.cas),
        ChainRules.of(pool),
    )
    revoked = files.revoked_by(pool.backend_ca, pool.revocation)
    if pair is not target.pair or cas is not target.cas:
        target.context = backend_context(
            where, pool, target.index, target.name, pair, cas, ciphers_checked=True
        )
    target.pair, target.cas, target.revoked = pair, cas, revoked
    target.trust = target.verified_by = replace(target.trust, cas=cas.trust(revoked))


def _renewed(
    renewal: Renewal,
    files: ParsedFiles,
    pair_use: tuple[str, PairFiles | None, KeyPair],
    cas_use: tuple[str, Path | None, TrustedCas],
    rules: ChainRules,
) -> Generator[None, None, tuple[KeyPair, TrustedCas]]:
    """The pair and the CAs to use now: renewed, or as before."""
    where, pair_files, pair = pair_use
    if pair_files is not None and pair_files[:2] in renewal.pairs:
        pair = files.pair(where, pair_files)
    where, file, cas = cas_use
    if file is not None and file in renewal.cas:
        cas = yield from files.cas(where, file, rules)
    return pair, cas


def _files_of(settings: Route | Pool) -> PairFiles | None:
    if isinstance(settings, Route):
        certificate, key = settings.certificate, settings.private_key
    else:
        certificate, key = settings.machine_certificate, settings.machine_key
    if certificate is None or key is None:
        return None
    return PairFiles(certificate, key, settings.key_passphrase_file)
