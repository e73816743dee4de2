"""Which revocation lists a configuration needs, and which CAs have to have signed them.

Never: fetches a list.
Next: `relay.checker.crl_fetcher.CrlFetcher`
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from relay.checker.crl_fetch import Source
from relay.checker.crl_learned import Learned, LearningSet, hosts_in, is_on
from relay.checker.crl_verify import verifier
from relay.config.section import Crl
from relay.tls.certificates.certificate import Certificate
from relay.tls.generation import Generation
from relay.tls.revocation.fetched import learned_issuers
from relay.tls.trust_store import TrustedCas


@dataclass(slots=True)
class _Use:
    """What all routes and pools that use one URL have in common."""

    hosts: set[str] = field(default_factory=set)
    cas: dict[bytes, Certificate] = field(default_factory=dict)  # by DER

    def add(self, hosts: Iterable[str], cas: Iterable[Certificate]) -> None:
        self.hosts.update(hosts)
        self.cas.update((each.der, each) for each in cas)


def learning_sets(generation: Generation) -> list[LearningSet]:
    """The trust sets whose lists are found in certificates."""
    return [
        LearningSet(hosts_in(crl), cas.certificates)
        for crl, cas in _trust_sets(generation)
        if crl.from_certificates
    ]


def sources_of(generation: Generation, learned: Learned) -> dict[str, Source]:
    """The sources of all URLs, with the CAs that are trusted now."""
    uses: dict[str, _Use] = {}
    for crl, cas in _trust_sets(generation):
        hosts = hosts_in(crl)
        signers = cas.certificates
        urls = list(crl.urls)
        if crl.from_certificates:
            signers = (*signers, *learned_issuers(signers, learned.issuers))
            urls += [url for url in learned.urls if is_on(url, hosts)]
        for url in urls:
            uses.setdefault(url, _Use()).add(hosts, signers)
    return {
        url: Source(
            url, frozenset(use.hosts), verifier(tuple(use.cas.values())), frozenset(use.cas)
        )
        for url, use in uses.items()
    }


def _trust_sets(generation: Generation) -> Iterator[tuple[Crl, TrustedCas]]:
    """Settings and CAs of every route and pool with fetched lists, each once."""
    config = generation.config
    found: dict[tuple[Crl, int], tuple[Crl, TrustedCas]] = {}
    for listener in config.listener:
        for live, route in generation.terminating(listener):
            if route.revocation is not None:
                found[route.revocation, id(live.cas)] = route.revocation, live.cas
    for name, pool in config.pool.items():
        if pool.revocation is not None:
            for target in generation.targets[name][:1]:  # the same CAs for all
                found[pool.revocation, id(target.cas)] = pool.revocation, target.cas
    for crl, cas in found.values():
        if crl.urls or crl.from_certificates:
            yield crl, cas
