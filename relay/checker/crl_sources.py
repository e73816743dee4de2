"""Which revocation lists a configuration needs, and which CAs have to have signed them.

Never: fetches a list.
Next: `relay.checker.crl_fetcher.CrlFetcher`
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from relay.checker.crl_fetch import Source
from relay.checker.crl_verify import verifier
from relay.config.model import Crl
from relay.tls.certificates.certificate import Certificate
from relay.tls.generation import Generation
from relay.tls.trust_store import TrustedCas


@dataclass(slots=True)
class _Use:
    """What all routes and pools that use one URL have in common."""

    hosts: set[str] = field(default_factory=set)
    cas: dict[bytes, Certificate] = field(default_factory=dict)  # by DER


def sources_of(generation: Generation) -> dict[str, Source]:
    """The sources of all configured URLs, with the CAs that are trusted now."""
    uses: dict[str, _Use] = {}
    for crl, cas in _trust_sets(generation):
        for url in crl.urls:
            use = uses.setdefault(url, _Use())
            use.hosts.update(host.strip("[]") for host in crl.hosts)
            use.cas.update((each.der, each) for each in cas.certificates)
    return {
        url: Source(url, frozenset(use.hosts), verifier(tuple(use.cas.values())))
        for url, use in uses.items()
    }


def _trust_sets(generation: Generation) -> Iterator[tuple[Crl, TrustedCas]]:
    """The settings and the CAs of every route and pool with revocation lists."""
    config = generation.config
    for listener in config.listener:
        for live, route in zip(generation.inbound[listener.name], listener.route, strict=True):
            if route.revocation is not None:
                yield route.revocation, live.cas
    for name, pool in config.pool.items():
        if pool.revocation is not None:
            for target in generation.targets[name][:1]:  # the same CAs for all
                yield pool.revocation, target.cas
